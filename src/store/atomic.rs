//! Files that are written as a whole or not at all: first beside their place, then renamed. A killed process leaves no
//! partial file.

use crate::{Error, Result};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use sysinfo::System;

/// Pause between two looks at a lock that another process holds.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);

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
    let file = open_lock(path)?;
    // Some network file systems have no locks. Writing without one is safe, because files are renamed into place.
    let _ = file.lock();
    Ok(file)
}

/// Locks as [`lock`] does, without waiting. Returns `None` if another process or thread holds the lock; [`holder`] says
/// which.
pub(crate) fn try_lock(path: &Path) -> Result<Option<std::fs::File>> {
    let io = |e| Error::io("writing", path, e);
    let mut file = open_lock(path)?;
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        return Ok(None);
    }
    // As in `lock`, a file system without locks is not an error.
    let host = System::host_name().unwrap_or_else(|_| "this machine".into());
    file.set_len(0).and_then(|()| writeln!(file, "process {} on {host}", std::process::id())).map_err(io)?;
    Ok(Some(file))
}

fn open_lock(path: &Path) -> Result<std::fs::File> {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let open = || std::fs::File::options().create(true).truncate(false).write(true).open(path);
    made.and_then(|()| open()).map_err(|e| Error::io("writing", path, e))
}

/// Locks as [`try_lock`] does, and waits while another process holds the lock; stderr says which, after `what`. Returns
/// `None` when `stopped` says so meanwhile.
pub(crate) fn wait_for(path: &Path, what: &str, stopped: &dyn Fn() -> bool) -> Result<Option<std::fs::File>> {
    let mut told = false;
    while !stopped() {
        if let Some(lock) = try_lock(path)? {
            return Ok(Some(lock));
        }
        if !std::mem::replace(&mut told, true) {
            eprintln!("{what}: {} makes it already; waiting for it", holder(path));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(None)
}

/// The process that holds a lock of [`try_lock`], for a message.
pub(crate) fn holder(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    if text.is_empty() { "another process".into() } else { text.trim_end().to_owned() }
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
