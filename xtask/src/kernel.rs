//! Starts the kernel for Jupyter: in a warm build directory, with libtorch and the prelude in place.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::paths::{self, Paths};
use crate::tools;
use crate::{build_directories, files, gpu, installed};

/// Names the build directory for the kernel, regardless of locks: set-up builds the template through it.
pub const BUILD_DIRECTORY: &str = "KDLAB_KERNEL_BUILD_DIRECTORY";

/// If it is `stock`, evcxr_jupyter starts as it is: the same notebooks without live parts.
const KIND: &str = "KDLAB_KERNEL";

/// Macros that tell people and `notebooks.py` what ended a cell of the stock kernel.
const STOP_MARKER: &str = include_str!("stop_marker.rs");

/// Tells the kernel the file descriptor of the build directory's lock.
const LOCK: &str = "LIVE_KERNEL_LOCK";

/// Tells the kernel the folder for what it keeps.
const CACHE: &str = "LIVE_KERNEL_CACHE";

/// Tells the kernel the same folder of the installation.
const SHARED: &str = "LIVE_KERNEL_SHARED";

/// Tells the kernel the program and first arguments that start another one.
const LAUNCHER: &str = "LIVE_KERNEL_LAUNCHER";

/// Tells the kernel to wait until a notebook takes it.
const RESERVE: &str = "LIVE_KERNEL_RESERVE";

/// The file in the template that names the folder where cargo kept the crates it was built from.
const CARGO_HOME_OF: &str = "cargo-home";

/// Variables that would make cargo or torch-sys build differently from the warm build directory.
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

/// Replaces this process by the kernel. Returns only with an error.
pub fn start(paths: &Paths, connection_file: &Path) -> Result<()> {
    if !paths.kernel().is_file() {
        bail!("the kernel is not set up: run `cargo lab setup`");
    }
    let stock = tools::variable(KIND).is_some_and(|kind| kind == "stock");
    paths::check(paths)?;
    let mut command = Command::new(paths.kernel());
    command.env_remove(LOCK);
    let dir = match tools::variable(BUILD_DIRECTORY) {
        Some(dir) => {
            let dir = PathBuf::from(dir);
            let home = own_cargo_home();
            files::write(&dir.join(CARGO_HOME_OF), &home.to_string_lossy())?;
            dir
        }
        None => {
            if paths.installed {
                installed::prepare(paths)?;
                command.env(SHARED, paths.shared_kernel_config());
            }
            let taken = build_directories::take(paths)?;
            // The kernel inherits the lock, keeps it from what cells start, and releases it however it ends.
            command.env(LOCK, taken.lock.as_raw_fd().to_string());
            fcntl_setfd(&taken.lock, FdFlags::empty()).context("cannot pass on the lock of the build directory")?;
            std::mem::forget(taken.lock);
            taken.dir
        }
    };
    tools::without_cargo_variables(&mut command).env_remove("CARGO");
    if stock {
        command.arg("--control_file");
    }
    let config = configure(paths, stock)?;
    command.arg(connection_file).envs(paths.environment()?).envs(gpu::limit()?);
    command.env("CARGO_HOME", cargo_home(paths)).env(CACHE, paths.kernel_config()?);
    for name in FOREIGN {
        command.env_remove(name);
    }
    command.env_remove(BUILD_DIRECTORY).env("EVCXR_TMPDIR", dir).env("EVCXR_CONFIG_DIR", config);
    let launcher = serde_json::json!([std::env::current_exe()?, "kernel"]);
    command.env(LAUNCHER, launcher.to_string());
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", paths.kernel().display()))
}

/// Starts a kernel that waits in reserve for the first notebook of the Jupyter server with this process number.
pub fn start_reserve(paths: &Paths, notebooks: &Path, jupyter: u32) -> Result<()> {
    if tools::variable(KIND).is_none_or(|kind| kind != "stock") {
        let mut command = Command::new(paths.lab());
        command.args(["kernel", "reserve"]).current_dir(notebooks).envs(paths.environment()?);
        command.env("KDLAB_ROOT", &paths.root).env("JPY_PARENT_PID", jupyter.to_string()).env(RESERVE, "wait");
        command.process_group(0).stdin(Stdio::null()).spawn().context("cannot start a kernel in reserve")?;
    }
    Ok(())
}

/// Returns the dependencies of every cell. Cells name tch themselves; the rest comes through the crate.
pub fn dependencies(paths: &Paths) -> String {
    let [kdlab, client] = [&paths.root, &paths.root.join("kernel/client")].map(|path| path.display().to_string());
    format!(":dep kdlab = {{ path = {kdlab:?} }}\n:dep kdlab-client = {{ path = {client:?} }}\n:dep tch = \"0.26\"\n")
}

/// Writes what evcxr reads at start-up, from the repository as it is now, so that edits to the prelude take effect at
/// once.
fn configure(paths: &Paths, stock: bool) -> Result<PathBuf> {
    let config = paths.kernel_config()?.join(if stock { "stock" } else { "live" });
    let read = |name: &str| {
        let file = paths.root.join("prelude").join(name);
        std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    let (dependencies, prelude) = (dependencies(paths), read("prelude.rs")?);
    // As one piece with the dependencies, because evcxr compiles and analyses each piece on its own.
    let text = match stock {
        true => {
            let home = cargo_home(paths);
            format!(":build_env CARGO_HOME={}\n{dependencies}{STOP_MARKER}\n{prelude}", home.display())
        }
        // The live kernel adds its own macros.
        false => format!("{dependencies}{prelude}"),
    };
    files::write(&config.join("prelude.rs"), &text)?;
    files::write(&config.join("kernel.toml"), &read("kernel.toml")?)?;
    files::remove(&config.join("init.evcxr"))?;
    Ok(config)
}

/// Returns the folder where cargo keeps the crates that cells are built from.
fn cargo_home(paths: &Paths) -> PathBuf {
    // cargo compiles all crates again if it finds them in another folder, so kernels use the folder of set-up.
    let of_set_up = fs::read_to_string(paths.template().join(CARGO_HOME_OF)).ok().map(PathBuf::from);
    of_set_up.filter(|home| home.is_dir()).unwrap_or_else(own_cargo_home)
}

/// Returns the folder where cargo keeps crates for the caller of this program.
fn own_cargo_home() -> PathBuf {
    let default = || PathBuf::from(tools::variable("HOME").unwrap_or_default()).join(".cargo");
    tools::variable("CARGO_HOME").map_or_else(default, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_keep_to_the_crates_of_set_up_while_they_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::of(folder.path().into());
        assert_eq!(cargo_home(&paths), own_cargo_home());
        let home = folder.path().join("home of set-up");
        files::write(&paths.template().join(CARGO_HOME_OF), home.to_str().unwrap()).unwrap();
        assert_eq!(cargo_home(&paths), own_cargo_home(), "it is gone");
        fs::create_dir(&home).unwrap();
        assert_eq!(cargo_home(&paths), home);
    }
}
