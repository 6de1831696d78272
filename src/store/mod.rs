//! Files: atomic writes, tensors, tables, event files, checksums and downloads; one request of JSON; the folder of data
//! and weights; work on all cores; how much memory there is; a computation's share of the cores.

pub(crate) mod atomic;
pub(crate) mod cores;
pub(crate) mod csv_file;
pub(crate) mod digest;
pub(crate) mod download;
pub(crate) mod event_file;
pub(crate) mod folders;
pub(crate) mod http;
pub(crate) mod memory;
pub(crate) mod tensors;
pub(crate) mod threads;

pub(crate) use folders::{cache_folder, variable};
