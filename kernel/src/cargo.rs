//! `cargo` for evcxr and for the rust-analyzer inside it.
//!
//! rust-analyzer runs it to learn which crates a cell depends on. It then reads and analyses all of them, though cells name
//! only the crate and tch: what these two are made of is left out of the answer. evcxr runs it to compile cells
//! ([`crate::compile`]).

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::compile;

/// The user's own `CARGO_HOME`. rust-analyzer prefers the cargo below `CARGO_HOME` to all others, so the kernel's points
/// to a folder with a link to this program.
const HOME: &str = "KDLAB_CARGO_HOME";

/// Crates with nothing of their dependencies in their interface, other than the named ones.
const CLOSED: [(&str, &[&str]); 2] = [("kdlab", &["tch"]), ("tch", &[])];

/// Whether this program was started under this name.
pub fn is_named(tool: &str) -> bool {
    std::env::args_os().next().is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == tool))
}

/// Takes the folder with the links out of the environment.
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
        if let Some(home) = std::env::var_os(HOME) {
            std::env::set_var("CARGO_HOME", home);
        }
    }
}

/// `rustup`, which evcxr asks for the cargo behind rustup's own: it is told of this one.
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
    if let Some(folder) = cells() {
        let here = std::env::current_dir().is_ok_and(|here| here == folder);
        match args.first().and_then(|name| name.to_str()) {
            Some("build") if here => std::process::exit(compile::build(&folder, &mut command, &args)?),
            Some("check") if here => {
                if let Some(status) = compile::check(&folder, &args)? {
                    std::process::exit(status);
                }
            }
            Some("metadata") if here || is_about_cells(&args) => {
                let found = match compile::metadata(&folder, &mut command, &args)? {
                    Ok(found) => found,
                    Err(status) => std::process::exit(status),
                };
                let pruned = is_about_cells(&args).then(|| serde_json::from_str(&found).ok()).flatten();
                let said = pruned.map_or(found, |metadata| prune(metadata).to_string());
                return std::io::stdout().write_all(said.as_bytes()).context("nobody listens");
            }
            _ => {}
        }
    }
    Err(command.exec()).context("cannot start cargo")
}

/// The folder in which evcxr builds cells.
fn cells() -> Option<PathBuf> {
    std::env::var_os("EVCXR_TMPDIR").and_then(|folder| Path::new(&folder).canonicalize().ok())
}

/// rust-analyzer names the toolchain by its folder; there cargo starts sooner than through rustup.
fn real() -> PathBuf {
    let toolchain = std::env::var_os("RUSTUP_TOOLCHAIN").map(|folder| Path::new(&folder).join("bin/cargo"));
    toolchain.filter(|cargo| cargo.is_file()).unwrap_or_else(|| "cargo".into())
}

/// `cargo metadata`, with dependencies, of the package that evcxr makes of a cell.
fn is_about_cells(args: &[OsString]) -> bool {
    let cells = std::env::var_os("EVCXR_TMPDIR").map(|dir| Path::new(&dir).join("Cargo.toml").into_os_string());
    let has = |name: &str| args.iter().any(|arg| arg == name);
    has("metadata") && !has("--no-deps") && cells.is_some_and(|cells| args.contains(&cells))
}

fn prune(mut metadata: Value) -> Value {
    let name = |packages: &Value, id: &Value| -> String {
        let package = packages.as_array().into_iter().flatten().find(|package| package["id"] == *id);
        package.and_then(|package| package["name"].as_str()).unwrap_or_default().to_owned()
    };
    let mut reached = HashSet::new();
    let mut left: Vec<Value> = metadata["workspace_members"].as_array().cloned().unwrap_or_default();
    while let Some(id) = left.pop() {
        if !reached.insert(id.clone()) {
            continue;
        }
        let own = name(&metadata["packages"], &id);
        let kept = CLOSED.iter().find(|(closed, _)| *closed == own).map(|(_, kept)| *kept);
        let node = metadata["resolve"]["nodes"].as_array().into_iter().flatten().find(|node| node["id"] == id);
        for dependency in node.and_then(|node| node["deps"].as_array()).into_iter().flatten() {
            let dependency = &dependency["pkg"];
            if kept.is_none_or(|kept| kept.contains(&name(&metadata["packages"], dependency).as_str())) {
                left.push(dependency.clone());
            }
        }
    }
    let retain = |list: &mut Value, key: &str| {
        if let Some(list) = list.as_array_mut() {
            list.retain(|entry| reached.contains(if key.is_empty() { entry } else { &entry[key] }));
        }
    };
    retain(&mut metadata["packages"], "id");
    retain(&mut metadata["resolve"]["nodes"], "id");
    for node in metadata["resolve"]["nodes"].as_array_mut().into_iter().flatten() {
        retain(&mut node["deps"], "pkg");
        retain(&mut node["dependencies"], "");
    }
    for package in metadata["packages"].as_array_mut().into_iter().flatten().filter(|p| p["name"] == "kdlab") {
        // The folder of the manifest is read as a whole, and beside it lie a Python environment and everything built.
        let manifest = package["manifest_path"].as_str().map(|path| path.replace("Cargo.toml", "src/Cargo.toml"));
        package["manifest_path"] = manifest.into();
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_cells_can_name_is_left() {
        let package = |name: &str| json!({"id": name, "name": name, "manifest_path": format!("/{name}/Cargo.toml")});
        let node = |name: &str, deps: &[&str]| {
            let linked: Vec<Value> = deps.iter().map(|dep| json!({"name": dep, "pkg": dep})).collect();
            json!({"id": name, "deps": linked, "dependencies": deps})
        };
        let all = ["ctx", "kdlab", "tch", "image", "png", "ndarray", "half", "rand", "core"];
        let metadata = json!({
            "packages": all.map(package),
            "workspace_members": ["ctx"],
            "resolve": {"nodes": [
                node("ctx", &["kdlab", "tch", "ndarray"]), node("kdlab", &["tch", "image", "rand"]),
                node("tch", &["ndarray", "half"]), node("image", &["png"]), node("png", &[]),
                node("ndarray", &["rand"]), node("half", &[]), node("rand", &["core"]), node("core", &[]),
            ]},
        });
        let pruned = prune(metadata);
        let names: Vec<_> = pruned["packages"].as_array().into_iter().flatten().map(|p| p["name"].clone()).collect();
        // What a cell asks for by `:dep` is there with all that it needs.
        assert_eq!(json!(names), json!(["ctx", "kdlab", "tch", "ndarray", "rand", "core"]));
        assert_eq!(pruned["resolve"]["nodes"][1]["dependencies"], json!(["tch", "rand"]));
        assert_eq!(pruned["resolve"]["nodes"][2], node("tch", &["ndarray"]));
        assert_eq!(pruned["packages"][1]["manifest_path"], "/kdlab/src/Cargo.toml");
    }
}
