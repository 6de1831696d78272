//! `cargo metadata` of a cell, which is kept like a compilation. rust-analyzer gets it without the crates that no
//! cell can name.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cells::compile::kept::Kept;
use crate::config::Config;

/// Returns the output of `cargo metadata` for the package in `folder`, or the exit status where it failed.
pub fn metadata(folder: &Path, cargo: &mut Command, args: &[OsString], config: &Config) -> Result<Result<String, i32>> {
    let kept = Kept::of(folder, args, config);
    if let Some(Value::String(found)) = kept.find() {
        return Ok(Ok(found));
    }
    // Of a crate that `:dep` names, evcxr asks for the metadata of a package without the others. cargo would forget the
    // versions of these, and compile their newest ones.
    let lock = folder.join("Cargo.lock");
    let before = fs::read(&lock);
    let Output { status, stdout, .. } = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if let Ok(before) = before
        && fs::read(&lock).ok().as_ref() != Some(&before)
    {
        fs::write(&lock, before).with_context(|| format!("cannot write {}", lock.display()))?;
    }
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        print!("{text}");
        return Ok(Err(status.code().unwrap_or(1)));
    }
    let found: Value = serde_json::from_str(&text).unwrap_or_default();
    // Packages in folders of the user's may change.
    let own = found["packages"].as_array().into_iter().flatten().filter(|package| package["source"].is_null());
    let manifests = own.filter_map(|package| package["manifest_path"].as_str().map(PathBuf::from));
    // If it cannot be kept, cargo is asked again.
    let _ = kept.keep(text.clone().into(), manifests.filter(|path| !path.starts_with(folder)).collect());
    Ok(Ok(text))
}

/// Returns `metadata` without the crates that no cell can name.
pub fn pruned(metadata: String, config: &Config) -> String {
    serde_json::from_str(&metadata).map_or(metadata, |found| prune(found, config).to_string())
}

fn prune(mut metadata: Value, config: &Config) -> Value {
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
        let kept = config.crates.get(&own).and_then(|found| found.interface.as_ref());
        let node = metadata["resolve"]["nodes"].as_array().into_iter().flatten().find(|node| node["id"] == id);
        for dependency in node.and_then(|node| node["deps"].as_array()).into_iter().flatten() {
            let dependency = &dependency["pkg"];
            if kept.is_none_or(|kept| kept.contains(&name(&metadata["packages"], dependency))) {
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
    let edited = |package: &&mut Value| {
        let name = package["name"].as_str().unwrap_or_default();
        config.crates.get(name).is_some_and(|found| found.edited)
    };
    for package in metadata["packages"].as_array_mut().into_iter().flatten().filter(edited) {
        // rust-analyzer reads the whole folders of the manifest and of each target: that of `build.rs` may hold a large
        // `target` folder, or the sources of all crates.
        let Some(root) = package["manifest_path"].as_str().and_then(|path| path.strip_suffix("Cargo.toml")) else {
            continue;
        };
        let source = format!("{root}src/");
        package["manifest_path"] = format!("{source}Cargo.toml").into();
        if let Some(targets) = package["targets"].as_array_mut() {
            targets.retain(|target| target["src_path"].as_str().is_some_and(|path| path.starts_with(&source)));
        }
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_new_crate_changes_the_version_of_no_other() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let lock = folder.path().join("Cargo.lock");
        fs::write(&lock, "all of them").expect("written");
        let mut cargo = Command::new("sh");
        cargo.args(["-c", "echo only the new one > Cargo.lock; echo {}"]).current_dir(folder.path());
        let found = metadata(folder.path(), &mut cargo, &["metadata".into()], &Config::default());
        assert_eq!(found.expect("it was asked").as_deref(), Ok("{}\n"));
        assert_eq!(fs::read_to_string(&lock).expect("it is there"), "all of them");
    }

    #[test]
    fn only_what_cells_can_name_is_left() {
        let package = |name: &str| {
            let targets = ["build.rs", "src/lib.rs"].map(|file| json!({"src_path": format!("/{name}/{file}")}));
            json!({"id": name, "name": name, "manifest_path": format!("/{name}/Cargo.toml"), "targets": targets})
        };
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
        let config = "[crates.kdlab]\ninterface = ['tch']\nedited = true\n[crates.tch]\ninterface = []";
        let pruned = prune(metadata, &toml::from_str(config).expect("a configuration"));
        let names: Vec<_> = pruned["packages"].as_array().into_iter().flatten().map(|p| p["name"].clone()).collect();
        // A crate that a cell asks for by `:dep` is there with all its dependencies.
        assert_eq!(json!(names), json!(["ctx", "kdlab", "tch", "ndarray", "rand", "core"]));
        assert_eq!(pruned["resolve"]["nodes"][1]["dependencies"], json!(["tch", "rand"]));
        assert_eq!(pruned["resolve"]["nodes"][2], node("tch", &["ndarray"]));
        assert_eq!(pruned["packages"][1]["manifest_path"], "/kdlab/src/Cargo.toml");
        assert_eq!(pruned["packages"][1]["targets"], json!([{"src_path": "/kdlab/src/lib.rs"}]));
        assert_eq!(pruned["packages"][2]["targets"].as_array().map(Vec::len), Some(2), "it is nobody's to edit");
    }
}
