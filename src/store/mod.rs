//! What is kept on disk: files that are whole or absent, tensors, checksums, downloads, and where they lie.

pub(crate) mod atomic;
pub(crate) mod digest;
pub mod download;
mod folders;
pub(crate) mod tensors;

pub use folders::cache_folder;
pub(crate) use folders::variable;
