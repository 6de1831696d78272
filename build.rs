//! Compiles `src/native/shim.cpp` against libtorch's headers, and tells this package's tests, benches and examples
//! where libtorch lies, so that plain `cargo test` finds it.

use std::env::{self, VarError};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const SHIM: &str = "src/native/shim.cpp";

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SHIM}");
    let Ok(lib) = env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        eprintln!("torch-sys did not say where libtorch lies: kdlab builds on Linux and macOS");
        return ExitCode::FAILURE;
    };
    let Some(include) = headers(&lib) else {
        eprintln!("{} has no libtorch headers in an include folder beside it: run `cargo lab setup`", lib.display());
        return ExitCode::FAILURE;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    let mut shim = cc::Build::new();
    // The shim only hands calls on, and as torch-sys it compiles in half the time without optimisation.
    shim.cpp(true).std("c++17").opt_level(0).debug(false).warnings(false).file(SHIM);
    shim.include(include.join("torch/csrc/api/include")).include(include);
    shim.define("_GLIBCXX_USE_CXX11_ABI", variable("LIBTORCH_CXX11_ABI").as_deref().unwrap_or("1"));
    if lib.join("libtorch_cuda.so").exists() {
        shim.define("KDLAB_CUDA", None);
    }
    shim.compile("kdlab_shim");
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

fn variable(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    match env::var(name) {
        Err(VarError::NotPresent) => None,
        found => Some(found.unwrap_or_default()),
    }
}
