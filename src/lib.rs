//! Knowledge distillation of convolutional networks, for notebooks on the evcxr kernel.
//!
//! Arrows point one way: [`data`] and [`models`] are used by [`distill`], and [`show`] draws what they make.

pub mod data;
pub mod distill;
mod error;
mod files;
pub mod models;
pub mod show;

pub use error::{Error, Result};
