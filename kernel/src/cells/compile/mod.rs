//! How cells are compiled: this program stands in for cargo, rustup and cargo's wrapper around rustc.

pub mod build;
pub mod cargo;
pub mod checks;
pub mod crate_library;
pub mod damaged;
pub mod environment;
pub mod impls;
pub mod kept;
pub mod level;
pub mod loops;
pub mod metadata;
pub mod notice;
pub mod own;
pub mod recursion;
pub mod rustc;
pub mod stops;
pub mod store;
