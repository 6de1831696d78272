//! Files that are whole or absent: written beside their place and renamed, so a kill leaves no half of one.

use crate::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes `path` atomically: `write` fills a temporary file in the same folder, which is synced and renamed.
pub(crate) fn write_atomic(path: &Path, write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>) -> Result<()> {
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

/// [`lock`], but `None` where somebody else holds it. The file then names the process that does.
pub(crate) fn try_lock(path: &Path) -> Result<Option<std::fs::File>> {
    let io = |e| Error::io("writing", path, e);
    path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(io)?;
    let mut file = std::fs::File::options().create(true).truncate(false).write(true).open(path).map_err(io)?;
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        return Ok(None);
    }
    // As for `lock`, a file system without locks is no reason to refuse.
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
    Ok(Some(file))
}

/// Renames a file that can't be read to the first free `NAME.damaged-N` beside it; returns its new path.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (1..).map(|n| path.with_file_name(format!("{name}.damaged-{n}"))).find(|path| !path.exists());
    let aside = free.unwrap_or_else(|| path.to_owned());
    std::fs::rename(path, &aside).map_err(|e| Error::io("renaming", path, e))?;
    Ok(aside)
}
