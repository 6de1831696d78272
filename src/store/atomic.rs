//! Files that are written as a whole or not at all: first beside their place, then renamed. A killed process leaves no
//! partial file.

use crate::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes `path` atomically: `write` fills a temporary file in the same folder, which is then synced and renamed.
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

/// Waits until no other process or thread holds the lock file at `path`. The lock is held until the result is dropped
/// or the process ends, even if it is killed.
pub(crate) fn lock(path: &Path) -> Result<std::fs::File> {
    let file = std::fs::File::create(path).map_err(|e| Error::io("writing", path, e))?;
    // Some network file systems have no locks. What is written under a lock is checked and renamed anyway.
    let _ = file.lock();
    Ok(file)
}

/// [`lock`] without waiting: `None` if another process or thread holds the lock. The file then names that process.
pub(crate) fn try_lock(path: &Path) -> Result<Option<std::fs::File>> {
    let io = |e| Error::io("writing", path, e);
    path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(io)?;
    let mut file = std::fs::File::options().create(true).truncate(false).write(true).open(path).map_err(io)?;
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        return Ok(None);
    }
    // As in `lock`, a file system without locks is not an error.
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
    Ok(Some(file))
}

/// Renames a file that cannot be read to the first free `NAME.damaged-N` beside it, and returns the new path.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (1..).map(|n| path.with_file_name(format!("{name}.damaged-{n}"))).find(|path| !path.exists());
    let aside = free.unwrap_or_else(|| path.to_owned());
    std::fs::rename(path, &aside).map_err(|e| Error::io("renaming", path, e))?;
    Ok(aside)
}
