//! Compiles the C++ of `src/native` against libtorch's headers, and tells this package's tests, benches and examples
//! where libtorch lies, so that plain `cargo test` finds it.

use std::env::{self, VarError};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const NATIVE: &str = "src/native";

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={NATIVE}");
    let Ok(lib) = env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        eprintln!("torch-sys did not say where libtorch lies: kdlab builds on Linux and macOS");
        return ExitCode::FAILURE;
    };
    let Some(include) = headers(&lib) else {
        eprintln!("{} has no libtorch headers in an include folder beside it: run `cargo lab setup`", lib.display());
        return ExitCode::FAILURE;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    let mut build = cc::Build::new();
    // The C++ only hands calls on, and as torch-sys it compiles in half the time without optimisation.
    build.cpp(true).std("c++17").opt_level(0).debug(false).warnings(false);
    build.include(include.join("torch/csrc/api/include")).include(include);
    // Last of all, for where gloo's own headers are absent.
    build.flag("-idirafter").flag(format!("{NATIVE}/opaque"));
    build.define("_GLIBCXX_USE_CXX11_ABI", variable("LIBTORCH_CXX11_ABI").as_deref().unwrap_or("1"));
    let mut group = build.clone();
    group.file(format!("{NATIVE}/group.cpp"));
    build.file(format!("{NATIVE}/shim.cpp"));
    let mut with_nccl = None;
    if lib.join("libtorch_cuda.so").exists() {
        build.define("KDLAB_CUDA", None);
        with_nccl = nccl(&lib).map(|headers| {
            let mut group = group.clone();
            group.define("KDLAB_NCCL", None).includes(headers).cargo_warnings(false);
            group
        });
    }
    // Side by side, because reading the headers takes nearly all of the time.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Where a part of CUDA's headers is missing, gloo adds up the gradients of GPUs, too.
            if with_nccl.is_none_or(|group| group.try_compile("kdlab_group").is_err()) {
                group.compile("kdlab_group");
            }
        });
        build.compile("kdlab_shim");
    });
    ExitCode::SUCCESS
}

/// The headers of the libtorch whose libraries torch-sys links: it takes them from the same places.
fn headers(lib: &Path) -> Option<PathBuf> {
    let named = match variable("LIBTORCH_USE_PYTORCH") {
        Some(_) => None,
        None => variable("LIBTORCH_INCLUDE").map(|folder| Path::new(&folder).join("include")),
    };
    let beside = lib.parent().map(|folder| folder.join("include"));
    named.into_iter().chain(beside).find(|folder| folder.join("ATen/ATen.h").exists())
}

/// The folders with the headers of CUDA and NCCL, where there are any: beside PyTorch's wheel, or installed for all.
fn nccl(lib: &Path) -> Option<Vec<PathBuf>> {
    let wheels = lib.canonicalize().ok()?.join("../../nvidia");
    let beside = ["cu13/include", "cu13/include/cccl", "nccl/include"].map(|folder| wheels.join(folder));
    let for_all = ["/usr/local/cuda/include", "/usr/local/cuda/include/cccl", "/usr/include"].map(PathBuf::from);
    beside.iter().chain(&for_all).any(|folder| folder.join("nccl.h").exists()).then(|| {
        // `/usr/include` is searched anyway, and must stay last.
        beside.into_iter().chain(for_all.into_iter().take(2)).filter(|folder| folder.exists()).collect()
    })
}

fn variable(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    match env::var(name) {
        Err(VarError::NotPresent) => None,
        found => Some(found.unwrap_or_default()),
    }
}
