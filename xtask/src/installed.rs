//! What a user of an installation ([`crate::install`]) has: folders of their own, with links to what is shared.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::{build_directories, files, tools};

/// Prepares a user's folders for a kernel: the settings for cargo, and links to data, weights, and the course's
/// teacher.
pub fn prepare(paths: &Paths) -> Result<()> {
    let offline = paths.kdlab.join("offline.toml");
    let crates = if offline.is_file() { format!("include = [{:?}]\n", offline.display()) } else { String::new() };
    files::write(&paths.build_directories()?.join(".cargo/config.toml"), &(crates + build_directories::CARGO))?;
    link(&paths.shared_cache(), &paths.cache()?)?;
    link(&paths.shared_runs(), &paths.runs()?)
}

/// Makes a link in `to` for each file below `from` that is not there.
fn link(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let passing = ["lock", "part"].iter().any(|end| path.extension().is_some_and(|found| found == *end));
        if path.is_dir() {
            link(&path, &target)?;
        } else if !passing && !target.exists() {
            files::create_dir(Some(to))?;
            // A link to what another installation had.
            let _ = fs::remove_file(&target);
            match symlink(&path, &target) {
                // Another kernel of this user is as fast.
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("cannot write in {}", to.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Returns the folder with the user's own notebooks. Those of the course that are not in it are copied first.
pub fn notebooks(paths: &Paths) -> Result<PathBuf> {
    let home = tools::variable("HOME").context("HOME is not set: set it to a folder of yours")?;
    let own = Path::new(&home).join("kdlab");
    complete(&paths.notebooks(), &own)?;
    Ok(own)
}

fn complete(from: &Path, to: &Path) -> Result<()> {
    files::create_dir(Some(to))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?.flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            complete(&path, &target)?;
        } else if !target.exists() {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files::write(&target, &text)?;
        }
    }
    Ok(())
}
