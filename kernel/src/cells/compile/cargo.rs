//! `cargo` and `rustup` as evcxr and its rust-analyzer find them.
//!
//! evcxr runs cargo to compile cells. rust-analyzer runs it to learn which crates a cell depends on, and then reads
//! and analyses them all.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cells::compile::{build, metadata};
use crate::config::Config;
use crate::private;
use anyhow::{Context, Result};

/// Returns whether this program was started under this name.
pub fn is_named(tool: &str) -> bool {
    std::env::args_os().next().is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == tool))
}

/// Removes the folder with the links to this program from the environment.
pub fn restore_home() {
    let own = std::env::current_exe().ok();
    let is_ours = |folder: &PathBuf| own.is_some() && folder.join("cargo").canonicalize().ok() == own;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::env::split_paths(&path).filter(|folder| !is_ours(folder)));
    // SAFETY: called before there are other threads.
    unsafe {
        if let Ok(path) = path {
            std::env::set_var("PATH", path);
        }
        if let Some(home) = std::env::var_os(private::CARGO_HOME) {
            std::env::set_var("CARGO_HOME", home);
        }
    }
}

/// Acts as `rustup`, which evcxr asks for the path of cargo: names the link to this program.
pub fn rustup() -> Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args == ["which", "cargo"] {
        let link = which("cargo").context("no cargo in PATH")?;
        println!("{}", link.display());
        return Ok(());
    }
    restore_home();
    Err(Command::new("rustup").args(&args).exec()).context("cannot start rustup")
}

fn which(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(tool)).find(|file| file.is_file())
}

pub fn run() -> Result<()> {
    restore_home();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = Command::new(real());
    command.args(&args);
    if let Some(folder) = build_directory() {
        end_with_interpreter();
        // The server reports an error in the configuration before the first cell.
        let config = Config::load().unwrap_or_default();
        let here = std::env::current_dir().is_ok_and(|here| here == folder);
        match args.first().and_then(|name| name.to_str()) {
            Some("build") if here => std::process::exit(build::build(&folder, &mut command, &args, &config)?),
            Some("check") if here => {
                if let Some(status) = build::check(&folder, &args, &config)? {
                    std::process::exit(status);
                }
            }
            Some("metadata") if here || is_about_cells(&args) => {
                let found = match metadata::metadata(&folder, &mut command, &args, &config)? {
                    Ok(found) => found,
                    Err(status) => std::process::exit(status),
                };
                let said = if is_about_cells(&args) { metadata::pruned(found, &config) } else { found };
                return std::io::stdout().write_all(said.as_bytes()).context("nobody listens");
            }
            _ => {}
        }
    }
    Err(command.exec()).context("cannot start cargo")
}

/// Ends this process and all compilers once the interpreter that started it has ended, however that came about.
fn end_with_interpreter() {
    // Only a kernel's own processes have a process group of their own.
    if std::env::var_os(private::FOLDER).is_none() {
        return;
    }
    let interpreter = rustix::process::getppid();
    std::thread::spawn(move || {
        while rustix::process::getppid() == interpreter {
            std::thread::sleep(Duration::from_millis(200));
        }
        let _ = rustix::process::kill_current_process_group(rustix::process::Signal::KILL);
    });
}

/// Returns the folder in which evcxr builds cells.
fn build_directory() -> Option<PathBuf> {
    std::env::var_os("EVCXR_TMPDIR").and_then(|folder| Path::new(&folder).canonicalize().ok())
}

/// Returns the real cargo. rust-analyzer names the toolchain by its folder, where cargo starts sooner than through
/// rustup.
fn real() -> PathBuf {
    let toolchain = std::env::var_os("RUSTUP_TOOLCHAIN").map(|folder| Path::new(&folder).join("bin/cargo"));
    toolchain.filter(|cargo| cargo.is_file()).unwrap_or_else(|| "cargo".into())
}

/// Returns whether this is `cargo metadata`, with dependencies, of the package that evcxr makes of a cell.
fn is_about_cells(args: &[OsString]) -> bool {
    let manifest = std::env::var_os("EVCXR_TMPDIR").map(|dir| Path::new(&dir).join("Cargo.toml").into_os_string());
    let has = |name: &str| args.iter().any(|arg| arg == name);
    has("metadata") && !has("--no-deps") && manifest.is_some_and(|manifest| args.contains(&manifest))
}
