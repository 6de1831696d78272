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

/// Waits until no other process or thread holds the lock file at `path`; it is ours until the result is dropped or
/// the process ends, however it ends.
pub(crate) fn lock(path: &Path) -> Result<std::fs::File> {
    let file = std::fs::File::create(path).map_err(|e| Error::io("writing", path, e))?;
    // Some network file systems know no locks. What is written under one is checked and renamed anyway.
    let _ = file.lock();
    Ok(file)
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Hex SHA-256 over parts one after the other.
pub(crate) fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    parts.into_iter().for_each(|p| hash.update(p));
    hex(&hash.finalize())
}
