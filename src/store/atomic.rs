//! Files that are written as a whole or not at all: first beside their place, then renamed. A killed process leaves no
//! partial file.

use crate::{Error, Result};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Writes `path` atomically: `write` fills a temporary file in the same folder, which is then synced and renamed.
pub(crate) fn write_atomic(path: &Path, write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let done = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        // As for any new file, the umask decides who may read it.
        let everybody = std::fs::Permissions::from_mode(0o666);
        let mut temporary = tempfile::Builder::new().permissions(everybody).tempfile_in(folder)?;
        write(temporary.as_file_mut())?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    done().map_err(|e| Error::io("writing", path, e))
}

/// Writes a value as indented JSON, as [`write_atomic`] does.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(value).map_err(|e| Error::Data(format!("{}: {e}", path.display())))?;
    write_bytes(path, &json)
}

/// Writes bytes that are in memory, as [`write_atomic`] does.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |f| f.write_all(bytes))
}

/// Waits until no other process or thread holds the lock file at `path`. The lock is held until the result is dropped
/// or the process ends, even if it is killed.
pub(crate) fn lock(path: &Path) -> Result<std::fs::File> {
    let file = std::fs::File::create(path).map_err(|e| Error::io("writing", path, e))?;
    // Some network file systems have no locks. Writing without one is safe, because files are renamed into place.
    let _ = file.lock();
    Ok(file)
}

/// Locks as [`lock`] does, without waiting. Returns `None` if another process or thread holds the lock; the id of that
/// process is in the file.
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

/// Renames a folder to the first free `NAME-N` beside it and returns its new path.
pub(crate) fn make_room(folder: &Path) -> Result<PathBuf> {
    rename_to_free(folder, "-")
}

/// Renames a file that cannot be read to the first free `NAME.damaged-N` beside it and returns its new path.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf> {
    rename_to_free(path, ".damaged-")
}

fn rename_to_free(path: &Path, ending: &str) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut names = (1..).map(|n| path.with_file_name(format!("{name}{ending}{n}")));
    let free = names.find(|path| !path.exists()).unwrap_or_else(|| path.to_owned());
    std::fs::rename(path, &free).map_err(|e| Error::io("renaming", path, e))?;
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_read_an_ordinary_file_may_read_these() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, ordinary) = (folder.path().join("ours"), folder.path().join("ordinary"));
        write_bytes(&ours, b"x").unwrap();
        std::fs::write(&ordinary, b"x").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&ordinary));
    }
}
