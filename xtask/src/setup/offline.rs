//! What an unpacked bundle offers to the steps of set-up, which look here before they use the network.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::files;
use crate::paths::Paths;
use crate::progress;
use crate::steps::Step;

/// Names for people where the steps look first.
pub fn source(paths: &Paths) -> &'static str {
    if paths.bundle().is_dir() { "the bundle" } else { "PyPI" }
}

/// Returns a part of the bundle, if there is one that holds what `step` wants.
pub fn part(step: &Step, name: &str) -> Option<PathBuf> {
    let dir = step.paths.bundle().join(name);
    let manifest = fs::read_to_string(step.paths.bundle().join("manifest.json")).ok()?;
    let manifest: Value = serde_json::from_str(&manifest).ok()?;
    let found = manifest["steps"][step.name].as_str()?;
    if found != step.version {
        progress::line(&format!(
            "[{}] the bundle holds another version than this repository wants; fetching it",
            step.name
        ));
        return None;
    }
    dir.is_dir().then_some(dir)
}

/// Returns the bundle's kernel, if it was compiled from these `sources` and starts on this machine.
pub fn kernel(paths: &Paths, sources: &[&str]) -> Option<PathBuf> {
    let dir = paths.bundle().join("kernel");
    let kernel = dir.join("kdlab-kernel");
    // Without a file to read, the kernel ends with an error of its own. If the C library is too old, the error of the
    // loader looks different.
    let output = Command::new(&kernel).arg("no-such-file").output().ok()?;
    let why = if !output.stderr.starts_with(b"Error:") {
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    } else if sources.iter().any(|name| files(&dir.join("sources").join(name)) != files(&paths.root.join(name))) {
        "its sources have changed since".into()
    } else {
        return Some(kernel);
    };
    progress::line(&format!("[kernel] the bundle's kernel cannot be used: {why}"));
    None
}

/// Returns all files at or below a path, by their names.
fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(path: &Path, name: PathBuf, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            walk(&entry.path(), name.join(entry.file_name()), found);
        }
        if let Ok(bytes) = fs::read(path) {
            found.insert(name, bytes);
        }
    }
    let mut found = BTreeMap::new();
    walk(path, PathBuf::new(), &mut found);
    found
}

/// Puts the bundle's data and weights where the crate looks for them, unless there are some already.
pub fn fill_cache(paths: &Paths) -> Result<()> {
    let bundled = paths.bundle().join("cache");
    for folder in fs::read_dir(&bundled).into_iter().flatten().flatten() {
        let target = paths.cache()?.join(folder.file_name());
        files::create_dir(Some(&target))?;
        for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            place(&file.path(), &target.join(file.file_name()))?;
        }
    }
    Ok(())
}

/// Puts one file into place, whole or not at all. It is a second name for the same file where the file system allows.
fn place(from: &Path, to: &Path) -> Result<()> {
    if to.exists() || fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let beside = to.with_extension(format!("{}.part", std::process::id()));
    let copied = fs::copy(from, &beside).and_then(|_| fs::rename(&beside, to));
    copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::compile::SOURCES;
    use std::os::unix::fs::PermissionsExt;

    /// A repository set up from a bundle whose kernel says this when it starts.
    fn scene(says: &str) -> (tempfile::TempDir, Paths) {
        let folder = tempfile::tempdir().expect("the temporary folder can be written");
        let root = folder.path().to_path_buf();
        let paths = Paths::of(root);
        for base in [paths.root.clone(), paths.bundle().join("kernel/sources")] {
            fs::create_dir_all(base.join("kernel/src/deep")).expect("it can be made");
            for name in ["kernel/src/deep/a.rs", "kernel/Cargo.toml", "Cargo.lock"] {
                fs::write(base.join(name), name).expect("it can be written");
            }
        }
        let kernel = paths.bundle().join("kernel/kdlab-kernel");
        fs::write(&kernel, format!("#!/bin/sh\necho \"{says}\" >&2\nexit 1\n")).expect("it can be written");
        fs::set_permissions(&kernel, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
        fs::write(paths.bundle().join("manifest.json"), r#"{"steps": {"venv": "1"}}"#).expect("it can be written");
        (folder, paths)
    }

    #[test]
    fn the_kernel_is_taken_where_it_starts_and_is_of_these_sources() {
        let (_folder, paths) = scene("Error: cannot read no-such-file");
        assert!(kernel(&paths, &SOURCES).is_some());
        fs::write(paths.root.join("kernel/src/deep/a.rs"), "changed").expect("it can be written");
        assert_eq!(kernel(&paths, &SOURCES), None);
        let (_folder, paths) = scene("kdlab-kernel: version GLIBC_9.99 not found");
        assert_eq!(kernel(&paths, &SOURCES), None);
        fs::remove_dir_all(paths.bundle()).expect("it is there");
        assert_eq!(kernel(&paths, &SOURCES), None);
    }

    #[test]
    fn a_part_is_taken_for_the_versions_it_was_made_for() {
        let (_folder, paths) = scene("");
        fs::create_dir_all(paths.bundle().join("wheels")).expect("it can be made");
        let step = |version: &str| Step { name: "venv", what: String::new(), version: version.into(), paths: &paths };
        assert!(part(&step("1"), "wheels").is_some());
        assert_eq!(part(&step("2"), "wheels"), None);
        assert_eq!(part(&step("1"), "libtorch"), None);
    }
}
