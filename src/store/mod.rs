//! Files: atomic writes, tensors, checksums, downloads, and the folder they are kept in.

pub(crate) mod atomic;
pub(crate) mod digest;
pub mod download;
mod folders;
pub(crate) mod tensors;

pub use folders::cache_folder;
pub(crate) use folders::variable;
