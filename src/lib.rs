//! Knowledge distillation of convolutional networks, for notebooks on the evcxr kernel.
//!
//! The rooms, each of which uses only those above it:
//!
//! | room | what is in it |
//! | --- | --- |
//! | `gpu`, `error`, `store` | a full GPU; errors; files that are whole or absent, tensors on disk, downloads |
//! | `native` | operations of libtorch that tch does not wrap, in C++ |
//! | [`data`] | images with labels, in three splits |
//! | [`models`] | the student, the teachers and their weight files |
//! | [`train`] | losses, the teacher's cached outputs, the training loop |
//! | [`study`] | sweeps over many fits and their verdict; the article's mistakes |
//! | [`show`] | everything that a cell displays |
//! | [`Lab`], [`Teacher`], [`Profile`] | what holds them together for a notebook |

#![warn(missing_docs)]

// Tests that are compiled as a part of the crate name it as all others do.
#[cfg(test)]
extern crate self as kdlab;

pub mod data;
mod error;
mod gpu;
mod lab;
pub mod models;
mod native;
mod profile;
pub mod show;
mod store;
pub mod study;
#[cfg(test)]
#[path = "../tests/inside/mod.rs"]
mod tests;
pub mod train;

pub use error::{Error, Result};
pub use lab::{Lab, Teacher};
pub use profile::Profile;
