//! Names and entries of folders.

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Refuses a download that the user switched off.
pub(super) fn downloads_are_off(name: &str, cache: &Path) -> Error {
    let cache = cache.display();
    Error::Network(format!(
        "{name} is not in {cache} and downloads are switched off; set KDLAB_DATA to a folder that holds it"
    ))
}

/// The entries of a folder sorted by name, without hidden ones.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = || -> std::io::Result<Vec<PathBuf>> {
        let mut paths =
            std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
        paths.retain(|path| !file_name(path).starts_with('.'));
        paths.sort();
        Ok(paths)
    };
    let folder = folder.display();
    paths().map_err(|e| Error::Io(format!("reading the data folder {folder}: {e}; check the path (KDLAB_DATA)")))
}

/// The last part of a path.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
