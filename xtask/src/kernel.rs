//! The kernel as Jupyter starts it: in a warm build directory, with libtorch and the prelude at hand.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::paths::{self, Paths};
use crate::slots;
use crate::steps;
use crate::tools;

/// Makes the kernel use this build directory, whatever its locks say: set-up builds the template through it.
pub const BUILD_DIRECTORY: &str = "KDLAB_KERNEL_BUILD_DIRECTORY";

/// Set to `stock`, starts evcxr_jupyter as it is: no live parts, but the same notebooks.
const KIND: &str = "KDLAB_KERNEL";

/// Macros by which people and `notebooks.py` know what ended a cell, where evcxr_jupyter stands alone.
const STOP_MARKER: &str = include_str!("stop_marker.rs");

/// Names the file descriptor of the lock of the build directory, for the kernel.
const LOCK: &str = "LIVE_KERNEL_LOCK";

/// Names the folder for what the kernel keeps, for the kernel.
const CACHE: &str = "LIVE_KERNEL_CACHE";

/// In the template: the folder where cargo kept the crates that it was built of.
const CARGO_HOME_OF: &str = "cargo-home";

/// Variables that would make cargo or torch-sys build otherwise than the warm build directory was.
const FOREIGN: [&str; 16] = [
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_PROFILE_DEV_OPT_LEVEL",
    "CARGO_PROFILE_DEV_DEBUG",
    "CARGO_PROFILE_DEV_LTO",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "LIBTORCH_USE_PYTORCH",
    "LIBTORCH_INCLUDE",
    "LIBTORCH_LIB",
    "LIBTORCH_CXX11_ABI",
    "LIBTORCH_STATIC",
];

/// Replaces this process by the kernel. Only returns with an error.
pub fn start(paths: &Paths, connection_file: &Path) -> Result<()> {
    if !paths.kernel().is_file() {
        bail!("the kernel is not set up: run `cargo lab setup`");
    }
    let stock = tools::set(KIND).is_some_and(|kind| kind == "stock");
    paths::check(paths)?;
    let mut command = Command::new(paths.kernel());
    command.env_remove(LOCK);
    let dir = match tools::set(BUILD_DIRECTORY) {
        Some(dir) => {
            let dir = PathBuf::from(dir);
            let home = own_cargo_home();
            steps::write(&dir.join(CARGO_HOME_OF), &home.to_string_lossy())?;
            dir
        }
        None => {
            let slot = slots::take(paths)?;
            // The lock lives on in the kernel, which keeps it from what cells start, and ends with it, however it ends.
            command.env(LOCK, slot.lock.as_raw_fd().to_string());
            fcntl_setfd(&slot.lock, FdFlags::empty()).context("cannot hand the lock of the build directory on")?;
            std::mem::forget(slot.lock);
            slot.dir
        }
    };
    tools::as_without_cargo(&mut command).env_remove("CARGO");
    if stock {
        command.arg("--control_file");
    }
    let config = configure(paths, stock)?;
    command.arg(connection_file).envs(paths.environment()?);
    command.env("CARGO_HOME", cargo_home(paths)).env(CACHE, paths.kernel_config());
    for name in FOREIGN {
        command.env_remove(name);
    }
    command.env_remove(BUILD_DIRECTORY).env("EVCXR_TMPDIR", dir).env("EVCXR_CONFIG_DIR", config);
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", paths.kernel().display()))
}

/// Dependencies of every cell. Cells name tch themselves, the rest comes through the crate.
pub fn dependencies(paths: &Paths) -> String {
    let [kdlab, client] = [&paths.root, &paths.root.join("kernel/client")].map(|path| path.display().to_string());
    format!(":dep kdlab = {{ path = {kdlab:?} }}\n:dep kdlab-client = {{ path = {client:?} }}\n:dep tch = \"0.26\"\n")
}

/// Writes what evcxr reads at start-up, from the repository as it is now: edits to the prelude take effect at once.
fn configure(paths: &Paths, stock: bool) -> Result<PathBuf> {
    let config = paths.kernel_config().join(if stock { "stock" } else { "live" });
    let read = |name: &str| {
        let file = paths.root.join("prelude").join(name);
        std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    let (dependencies, prelude) = (dependencies(paths), read("prelude.rs")?);
    // As one piece, the dependencies among it: evcxr compiles and analyses each piece on its own.
    let text = match stock {
        true => {
            let home = cargo_home(paths);
            format!(":build_env CARGO_HOME={}\n{dependencies}{STOP_MARKER}\n{prelude}", home.display())
        }
        // The live kernel adds its own.
        false => format!("{dependencies}{prelude}"),
    };
    steps::write(&config.join("prelude.rs"), &text)?;
    steps::write(&config.join("kernel.toml"), &read("kernel.toml")?)?;
    steps::remove(&config.join("init.evcxr"))?;
    Ok(config)
}

/// Where cargo keeps the crates that cells are built of.
fn cargo_home(paths: &Paths) -> PathBuf {
    // cargo compiles all crates again where it finds them in another folder, so kernels keep to the one of set-up.
    let of_set_up = fs::read_to_string(paths.template().join(CARGO_HOME_OF)).ok().map(PathBuf::from);
    of_set_up.filter(|home| home.is_dir()).unwrap_or_else(own_cargo_home)
}

/// Where cargo keeps crates for whoever calls this program.
fn own_cargo_home() -> PathBuf {
    let default = || PathBuf::from(tools::set("HOME").unwrap_or_default()).join(".cargo");
    tools::set("CARGO_HOME").map_or_else(default, PathBuf::from)
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
