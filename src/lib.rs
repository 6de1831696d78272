//! Knowledge distillation of convolutional networks, for notebooks on the evcxr kernel.
//!
//! Arrows point one way: [`data`] and [`models`] are used by [`distill`], [`show`] draws what they make, and [`Lab`]
//! holds them together for a notebook.

pub mod data;
pub mod distill;
mod error;
mod files;
mod lab;
pub mod live;
pub mod models;
mod profile;
pub mod show;

pub use error::{Error, Result};
pub use lab::{Lab, ResultRow};
pub use profile::Profile;

/// Linkers drop a library that nothing asks for. torch-sys names libtorch's part for CUDA and asks it for nothing, and
/// without it libtorch sees no GPU: this is a function of its C interface, which is never called.
#[cfg(libtorch_cuda)]
#[used]
static LIBTORCH_CUDA: unsafe extern "C" fn(i32, *mut *mut std::ffi::c_void) -> i32 = aoti_torch_create_cuda_guard;

#[cfg(libtorch_cuda)]
unsafe extern "C" {
    fn aoti_torch_create_cuda_guard(device: i32, guard: *mut *mut std::ffi::c_void) -> i32;
}
