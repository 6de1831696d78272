//! Files that are whole or absent: written beside their place and renamed, so a kill leaves no half of one.

use crate::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes `path` atomically: `write` fills a temporary file in the same folder, which is synced and renamed.
pub(crate) fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let done = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        write(temporary.as_file_mut())?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    done().map_err(|e| Error::io("writing", path, e))
}

/// [`write_atomic`] for bytes already in memory.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |f| f.write_all(bytes))
}
