//! The template: the build directory from which those of kernels are copied ([`crate::build_directories`]). The step
//! `prebuild` of set-up makes it before anybody opens a notebook, by running two cells in a kernel, and again whenever
//! the crate's sources change.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Context, Result};

use crate::files;
use crate::paths::{Flavour, Paths};
use crate::setup::libtorch::TORCH;
use crate::steps::Step;
use crate::{build_directories, execute, kernel, progress};

/// Returns the step. Its version is what the template would be built from now.
pub fn step(paths: &Paths, flavour: Flavour) -> Result<Step<'_>> {
    let version = format!("{:016x} {TORCH} {flavour} noted", fingerprint_of_template(paths)?);
    let what = "compiling the crate for the kernel, so that the first cell need not".into();
    Ok(Step { name: "prebuild", what, version, paths })
}

/// Builds the template through the real kernel, so that it is exactly what kernels need.
pub fn build(paths: &Paths, flavour: Flavour) -> Result<()> {
    let step = step(paths, flavour)?;
    let template = paths.template();
    let damaged = build_directories::damaged(&template);
    if let Some(first) = damaged.first() {
        progress::line(&format!("{first} in the kernel's build template is damaged: cargo compiles it again"));
        build_directories::remove_all(&template, &damaged)?;
        files::remove(&paths.stamp(step.name))?;
    }
    step.run(&template.join(build_directories::BUILT_FROM), || {
        let lock = build_directories::template_lock(paths)?;
        lock.lock().context("cannot lock the kernel's build template")?;
        files::create_dir(Some(&template))?;
        files::remove(&template.join(build_directories::BUILT_FROM))?;
        fs::copy(paths.root.join("Cargo.lock"), template.join("Cargo.lock")).context("cannot copy Cargo.lock")?;
        files::write(&paths.build_directories()?.join(".cargo/config.toml"), build_directories::CARGO)?;
        let notebook = paths.kdlab.join("prebuild.ipynb");
        files::write(&notebook, PREBUILD)?;
        let mut command = execute::executor(paths)?;
        command.arg(&notebook).arg(&notebook).env(kernel::BUILD_DIRECTORY, &template);
        step.command(&mut command)?;
        files::remove(&notebook)?;
        build_directories::list_libraries(&template)?;
        files::write(&template.join(build_directories::BUILT_FROM), &step.version)
    })
}

/// The notebook whose run builds the template. It has two cells, because only the second one is compiled without cargo.
const PREBUILD: &str = r#"{"cells": [
{"cell_type": "code", "id": "a", "execution_count": null, "metadata": {}, "outputs": [],
"source": "let t = tch::Tensor::from_slice(&[1f32, 2.0]);\nprintln!(\"{:?}\", t);"},
{"cell_type": "code", "id": "b", "execution_count": null, "metadata": {}, "outputs": [], "source": "t.size()"}
], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
"#;

/// Returns a number that changes whenever cargo would rebuild the crate in a build directory.
fn fingerprint_of_template(paths: &Paths) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    files::fingerprint(paths, &["src", "kernel/client", "Cargo.toml", "Cargo.lock", "build.rs"])?.hash(&mut hasher);
    kernel::dependencies(paths).hash(&mut hasher);
    build_directories::CARGO.hash(&mut hasher);
    Ok(hasher.finish())
}
