//! Files and folders: writes and replaces them without leaving one half-written, removes and measures them.

use std::fs::{self, File, FileTimes};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};

use crate::paths::Paths;

/// Creates a folder and those above it. `None` is fine.
pub fn create_dir(dir: Option<&Path>) -> Result<()> {
    match dir {
        Some(dir) => fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display())),
        None => Ok(()),
    }
}

/// Removes a file, a link or a whole folder. It is fine if there is nothing.
pub fn remove(path: &Path) -> Result<()> {
    let done = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    done.with_context(|| format!("cannot remove {}", path.display()))
}

/// Writes a file. It writes beside the target and renames, so that a reader sees the old text or the new one.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    create_dir(path.parent())?;
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&beside, text).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Removes `dir` and puts `beside` in its place.
pub fn replace(beside: &Path, dir: &Path) -> Result<()> {
    remove(dir)?;
    fs::rename(beside, dir).with_context(|| format!("cannot move {} to {}", beside.display(), dir.display()))
}

/// Makes `to` the same as `from`, a file, a link or a folder. Files keep their time stamps, and those that are the same
/// already are left alone.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    copy_tree(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    let (source, there) = (fs::symlink_metadata(from)?, fs::symlink_metadata(to).ok());
    if there.as_ref().is_some_and(|there| there.file_type() != source.file_type()) {
        if there.is_some_and(|there| there.is_dir()) { fs::remove_dir_all(to)? } else { fs::remove_file(to)? }
    }
    if source.is_dir() {
        fs::create_dir_all(to)?;
        for gone in fs::read_dir(to)?.flatten().filter(|entry| !from.join(entry.file_name()).exists()) {
            if gone.path().is_dir() { fs::remove_dir_all(gone.path())? } else { fs::remove_file(gone.path())? }
        }
        for entry in fs::read_dir(from)?.flatten() {
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if source.is_symlink() {
        let target = fs::read_link(from)?;
        if fs::read_link(to).ok().as_ref() != Some(&target) {
            let _ = fs::remove_file(to);
            std::os::unix::fs::symlink(target, to)?;
        }
    } else {
        let changed = source.modified()?;
        let same = fs::metadata(to).is_ok_and(|there| there.len() == source.len())
            && (fs::metadata(to)?.modified()? == changed || fs::read(from)? == fs::read(to)?);
        if !same {
            let _ = fs::remove_file(to);
            fs::copy(from, to)?;
            File::options().append(true).open(to)?.set_times(FileTimes::new().set_modified(changed))?;
        }
    }
    Ok(())
}

/// Returns the bytes on disk below `dir`. A file with several names counts once.
pub fn disk_usage(dir: &Path) -> u64 {
    fn walk(dir: &Path, seen: &mut std::collections::HashSet<(u64, u64)>) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.metadata() {
                Ok(found) if found.is_dir() => walk(&entry.path(), seen),
                Ok(found) if seen.insert((found.dev(), found.ino())) => found.blocks() * 512,
                _ => 0,
            })
            .sum()
    }
    walk(dir, &mut Default::default())
}

/// Returns a number that changes whenever cargo would rebuild what is made of these files and folders. Like cargo, it
/// goes by times and lengths.
pub fn fingerprint(paths: &Paths, sources: &[&str]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for name in sources {
        hash_tree(&paths.root.join(name), &mut hasher)?;
    }
    let rustc =
        Command::new("rustc").arg("-vV").output().context("cannot start rustc; install Rust from https://rustup.rs")?;
    rustc.stdout.hash(&mut hasher);
    Ok(hasher.finish())
}

fn hash_tree(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    let found = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if found.is_dir() {
        let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        names.sort();
        return names.iter().try_for_each(|name| hash_tree(name, hasher));
    }
    path.hash(hasher);
    found.len().hash(hasher);
    let changed = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    changed.map(|time| time.as_nanos()).hash(hasher);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_and_what_is_the_same_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for file in ["a", "below/b", "c"] {
            write(&from.join(file), file).unwrap();
        }
        std::os::unix::fs::symlink("a", from.join("link")).unwrap();
        copy(&from, &to).unwrap();
        let changed = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(changed(&to.join("below/b")), changed(&from.join("below/b")), "cargo would compile it again");
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("a"));
        let before = changed(&to.join("a"));
        std::thread::sleep(std::time::Duration::from_millis(20));
        // As after a new clone: the same text with another time.
        fs::write(from.join("a"), "a").unwrap();
        fs::write(from.join("c"), "new").unwrap();
        fs::remove_dir_all(from.join("below")).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(changed(&to.join("a")), before);
        assert_eq!(fs::read_to_string(to.join("c")).unwrap(), "new");
        assert!(!to.join("below").exists());
    }
}
