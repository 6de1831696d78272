//! What the kernel sees of the toolchain. The rust-analyzer inside it reads and analyses every crate it hears of before the
//! first cell's variables have types, so it hears of those that cells can name. Cells are compiled through a cargo of the
//! kernel's own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::steps;
use crate::tools;

/// std's own dependencies, and the vendors' instructions in `core::arch`, are three times as much as all this.
const LIBRARY: [&str; 3] = ["alloc", "core", "std"];

/// Variables for the kernel, and the folders that they name.
pub fn environment(paths: &Paths, stock: bool) -> Result<Vec<(&'static str, OsString)>> {
    let mut variables = vec![];
    if let Some(found) = paths.rust_library().or_else(|| Some(sysroot()?.join("lib/rustlib/src/rust/library")))
        // Where it is missing, rust-analyzer has rustup fetch it.
        && found.join("core").is_dir()
    {
        variables.push(("RUST_SRC_PATH", outline(paths, &found)?.into()));
    }
    let home = paths.kernel_config().join("cargo");
    let tools = home.join("bin");
    for name in ["cargo", "rustup"] {
        link(&paths.kernel(), &tools.join(name))?;
    }
    if !stock {
        let path = tools::set("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path)));
        variables.push(("PATH", path.context("PATH")?));
    }
    variables.push(("KDLAB_CARGO_HOME", cargo_home(paths).into()));
    variables.push(("CARGO_HOME", home.into()));
    Ok(variables)
}

/// The library in `found` without what its functions do, written when a toolchain or the kernel is new.
fn outline(paths: &Paths, found: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    found.hash(&mut hasher);
    for file in [&found.join("core/src/lib.rs"), &paths.kernel()] {
        let changed = fs::metadata(file).and_then(|found| found.modified());
        changed.with_context(|| format!("cannot read {}", file.display()))?.hash(&mut hasher);
    }
    let folder = paths.kernel_config().join("outline");
    let library = folder.join(format!("{:016x}", hasher.finish()));
    steps::create_dir(folder.parent())?;
    // Several kernels may start at once.
    let lock = File::create(folder.with_extension("lock")).context("cannot write in .kdlab")?;
    lock.lock().context("cannot lock the outline of Rust's library")?;
    if !library.is_dir() {
        // Kernels that run have read theirs.
        steps::remove(&folder)?;
        let beside = folder.join(std::process::id().to_string());
        for name in LIBRARY.map(|name| format!("{name}/src")) {
            let mut command = Command::new(paths.kernel());
            command.arg("--outline").arg(found.join(&name)).arg(beside.join(&name));
            if !command.status().context("cannot start the kernel")?.success() {
                bail!("cannot outline Rust's library in {}", found.display());
            }
        }
        fs::rename(&beside, &library).with_context(|| format!("cannot write {}", library.display()))?;
    }
    Ok(library)
}

/// Where cargo keeps crates. Cells are built with it, whatever rust-analyzer is shown.
pub fn cargo_home(paths: &Paths) -> PathBuf {
    // cargo compiles all crates again where it finds them in another folder, so kernels keep to the one of set-up.
    let of_set_up = fs::read_to_string(paths.template().join(CARGO_HOME_OF)).ok().map(PathBuf::from);
    of_set_up.filter(|home| home.is_dir()).unwrap_or_else(own_cargo_home)
}

/// In the template: the folder where cargo kept the crates that it was built of.
pub const CARGO_HOME_OF: &str = "cargo-home";

/// Where cargo keeps crates for whoever calls this program.
pub fn own_cargo_home() -> PathBuf {
    let default = || PathBuf::from(tools::set("HOME").unwrap_or_default()).join(".cargo");
    tools::set("CARGO_HOME").map_or_else(default, PathBuf::from)
}

fn sysroot() -> Option<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().into())
}

/// Makes `link` point to `target`; another kernel may do so at the same time.
fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    steps::create_dir(link.parent())?;
    let beside = link.with_extension(std::process::id().to_string());
    symlink(target, &beside)
        .and_then(|()| fs::rename(&beside, link))
        .with_context(|| format!("cannot link {} to {}", link.display(), target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_keep_to_the_crates_of_set_up_while_they_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths { root: folder.path().into(), kdlab: folder.path().join(".kdlab") };
        assert_eq!(cargo_home(&paths), own_cargo_home());
        let home = folder.path().join("home of set-up");
        steps::write(&paths.template().join(CARGO_HOME_OF), home.to_str().unwrap()).unwrap();
        assert_eq!(cargo_home(&paths), own_cargo_home(), "it is gone");
        fs::create_dir(&home).unwrap();
        assert_eq!(cargo_home(&paths), home);
    }
}
