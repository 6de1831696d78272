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
