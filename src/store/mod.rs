//! Files: atomic writes, tensors, checksums and downloads; the folder of data and weights; work on all cores.

pub(crate) mod atomic;
pub(crate) mod cores;
pub(crate) mod digest;
pub(crate) mod download;
pub(crate) mod folders;
pub(crate) mod tensors;

pub(crate) use folders::{cache_folder, variable};
