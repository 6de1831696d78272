//! Files: atomic writes, tensors, checksums, downloads, and the folder they are kept in.

pub(crate) mod atomic;
pub(crate) mod digest;
pub mod download;
pub(crate) mod folders;
pub(crate) mod tensors;

pub(crate) use folders::{cache_folder, variable};
