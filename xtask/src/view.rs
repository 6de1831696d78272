//! What the kernel sees of the toolchain. The rust-analyzer inside it reads and analyses every crate it hears of before the
//! first cell's variables have types, so it hears of those that cells can name. Cells are compiled through a cargo of the
//! kernel's own.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::{self, Paths};
use crate::steps;

/// std's own dependencies, and the vendors' instructions in `core::arch`, are three times as much as all this.
const LIBRARY: [&str; 3] = ["alloc", "core", "std"];

/// Variables for the kernel, and the folders that they name.
pub fn environment(paths: &Paths, stock: bool) -> Result<Vec<(&'static str, OsString)>> {
    let mut variables = vec![];
    if let Some(found) = paths.rust_library().or_else(|| Some(sysroot()?.join("lib/rustlib/src/rust/library")))
        // Where it is missing, rust-analyzer has rustup fetch it.
        && found.join("core").is_dir()
    {
        let library = paths.kernel_config().join("library");
        for name in LIBRARY {
            link(&found.join(name), &library.join(name))?;
        }
        variables.push(("RUST_SRC_PATH", library.into()));
    }
    let home = paths.kernel_config().join("cargo");
    let tools = home.join("bin");
    for name in ["cargo", "rustup"] {
        link(&paths.kernel(), &tools.join(name))?;
    }
    if !stock {
        let path = paths::set("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path)));
        variables.push(("PATH", path.context("PATH")?));
    }
    variables.push(("KDLAB_CARGO_HOME", cargo_home().into()));
    variables.push(("CARGO_HOME", home.into()));
    Ok(variables)
}

/// Where cargo keeps crates. Cells are built with it, whatever rust-analyzer is shown.
pub fn cargo_home() -> PathBuf {
    let default = || PathBuf::from(paths::set("HOME").unwrap_or_default()).join(".cargo");
    paths::set("CARGO_HOME").map_or_else(default, PathBuf::from)
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
