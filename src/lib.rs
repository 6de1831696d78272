//! Knowledge distillation of convolutional networks, for notebooks on the evcxr kernel.
//!
//! The rooms, each of which uses only those above it:
//!
//! | room | what is in it |
//! | --- | --- |
//! | `error`, `store` | errors; files that are whole or absent, tensors on disk, downloads |
//! | [`data`] | images with labels, in three splits |
//! | [`models`] | the student, the teachers and their weight files |
//! | [`train`] | losses, the teacher's cached outputs, the training loop |
//! | [`study`] | sweeps over many fits and their verdict; the article's mistakes |
//! | [`show`] | everything that a cell displays |
//! | [`Lab`], [`Profile`] | what holds them together for a notebook |

pub mod data;
mod error;
mod lab;
pub mod models;
mod profile;
pub mod show;
pub mod store;
pub mod study;
pub mod train;

pub use error::{Error, Result};
pub use lab::Lab;
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
