//! Bakes the place of libtorch into this package's tests, benches and examples, so that plain `cargo test` finds it; and says
//! whether that libtorch has a part for CUDA.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(libtorch_cuda)");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        if Path::new(&lib).join("libtorch_cuda.so").exists() {
            println!("cargo:rustc-cfg=libtorch_cuda");
        }
    }
}
