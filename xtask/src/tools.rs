//! The programs of this machine: cargo, Python, a C++ compiler, the NVIDIA driver; and how to install what is missing.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns an environment variable, or `None` if it is unset or empty.
pub fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Returns the cargo that started this program, so that kernels and tests use the same toolchain.
pub fn cargo() -> OsString {
    variable("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Removes the variables that `cargo run` adds to the environment: some of them make cargo rebuild crates such as ring
/// that a plain `cargo` would leave alone.
pub fn without_cargo_variables(command: &mut Command) -> &mut Command {
    let foreign = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
        "CARGO_TARGET_TMPDIR",
        "OUT_DIR",
    ];
    for (name, _) in env::vars_os() {
        if foreign.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command
}

/// Asks the system to end a program when this process ends, however that happens. Only Linux can do so.
pub fn end_with_this_process(command: &mut Command) -> &mut Command {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;
        let ask = || Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?);
        // SAFETY: one system call, which is allowed between fork and exec.
        unsafe { command.pre_exec(ask) };
    }
    command
}

/// Adds rustup's folder to `PATH` if cargo is not in it: shells read the folder from a profile, desktops and services
/// do not.
pub fn find_rust() {
    let path = env::var_os("PATH").unwrap_or_default();
    if finds(&path, "cargo") && finds(&path, "rustc") {
        return;
    }
    let home = variable("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cargo")));
    let Some(tools) = home.map(|home| home.join("bin")).filter(|tools| tools.join("cargo").is_file()) else { return };
    if let Ok(path) = env::join_paths(env::split_paths(&path).chain([tools])) {
        // SAFETY: called before there are other threads.
        unsafe { env::set_var("PATH", path) };
    }
}

/// Makes this process and those that it starts use the Rust in this folder.
pub fn use_rust(rust: &Path) {
    let bin = rust.join("bin");
    let old = env::var_os("PATH").unwrap_or_default();
    let others = env::split_paths(&old).filter(|folder| *folder != bin);
    if let Ok(path) = env::join_paths(std::iter::once(bin.clone()).chain(others)) {
        // SAFETY: called before there are other threads.
        unsafe {
            env::set_var("PATH", path);
            env::set_var("CARGO", bin.join("cargo"));
            // evcxr asks rustup, where there is one.
            env::set_var("RUSTUP_TOOLCHAIN", rust);
        }
    }
}

/// Returns whether `PATH` holds a program of this name.
pub fn in_path(program: &str) -> bool {
    finds(&env::var_os("PATH").unwrap_or_default(), program)
}

/// Whether a program lies in a folder of a `PATH`.
pub fn finds(path: &OsStr, program: &str) -> bool {
    env::split_paths(path).any(|folder| folder.join(program).is_file())
}

/// Returns the C++ compiler that tch will be built with.
pub fn compiler() -> Option<OsString> {
    let compilers = variable("CXX").into_iter().chain(["c++".into(), "g++".into(), "clang++".into()]);
    let works = |compiler: &OsString| {
        Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    compilers.into_iter().find(works)
}

/// Returns a Python that torch 2.13.0 has wheels for and that can make a virtual environment with pip in it.
pub fn python() -> Option<PathBuf> {
    pythons().next()
}

/// Returns all such Pythons by their names, the system's own last.
pub fn pythons() -> impl Iterator<Item = PathBuf> {
    let check = "import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 15))";
    let names = ["python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.14"].map(PathBuf::from);
    let names = variable("KDLAB_PYTHON").map(PathBuf::from).into_iter().chain(names).chain(["/usr/bin/python3".into()]);
    let fits = move |name: &PathBuf| {
        Command::new(name).args(["-c", check]).output().is_ok_and(|output| output.status.success())
    };
    names.filter(fits)
}

/// Returns what the NVIDIA driver says about itself, or `None` if there is no driver.
pub fn nvidia_driver() -> Option<String> {
    if let Ok(text) = fs::read_to_string("/proc/driver/nvidia/version") {
        return text.lines().next().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    // WSL has no such file, but has the tool.
    let version = first_line(Command::new("nvidia-smi").args(["--query-gpu=driver_version", "--format=csv,noheader"]))?;
    Some(format!("NVIDIA driver {}", version.trim()))
}

/// Returns the first line that a program prints, or `None` if it fails.
pub fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

/// Says how to install something with the machine's own package manager.
fn how_to_install(pacman: &str, debian: &str, fedora: &str, macos: &str) -> String {
    let here = |program: &str| Path::new("/usr/bin").join(program).exists();
    if cfg!(target_os = "macos") {
        format!("run `{macos}`")
    } else if here("apt-get") {
        format!("run `sudo apt-get install {debian}`")
    } else if here("dnf") {
        format!("run `sudo dnf install {fedora}`")
    } else if here("pacman") {
        format!("run `sudo pacman -S {pacman}`")
    } else {
        format!("install it with your package manager (Debian calls it {debian}, Fedora {fedora})")
    }
}

/// Says how to install a C++ compiler.
pub fn how_to_install_compiler() -> String {
    how_to_install("gcc", "build-essential", "gcc-c++", "xcode-select --install")
}

/// Says how to install Python.
pub fn how_to_install_python() -> String {
    how_to_install("python", "python3-venv python3-pip", "python3-pip", "brew install python@3.13")
}
