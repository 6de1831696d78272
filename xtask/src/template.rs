//! The build directory that slots are copied from: built by the kernel itself, rebuilt when the crate's sources change.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};

use crate::paths::{Flavour, Paths};
use crate::setup::libtorch::TORCH;
use crate::steps::{self, Step};
use crate::{execute, kernel, progress, slots};

/// The step, with what the template would be built from now as its version.
pub fn step(paths: &Paths, flavour: Flavour) -> Result<Step<'_>> {
    let version = format!("{:016x} {TORCH} {flavour} noted", fingerprint_of_template(paths)?);
    let what = "compiling the crate for the kernel, so that the first cell need not".into();
    Ok(Step { name: "prebuild", what, version, paths })
}

/// Builds the template through the real kernel, so that it is exactly what kernels want.
pub fn build(paths: &Paths, flavour: Flavour) -> Result<()> {
    let step = step(paths, flavour)?;
    let template = paths.template();
    let damaged = slots::damaged(&template);
    if let Some(first) = damaged.first() {
        progress::line(&format!("{first} in the kernel's build template is damaged: cargo compiles it again"));
        slots::remove_all(&template, &damaged)?;
        steps::remove(&paths.stamp(step.name))?;
    }
    step.run(&template.join(slots::BUILT_FROM), || {
        let lock = slots::template_lock(paths)?;
        lock.lock().context("cannot lock the kernel's build template")?;
        steps::create_dir(Some(&template))?;
        steps::remove(&template.join(slots::BUILT_FROM))?;
        let cells_lock = template.join("Cargo.lock");
        fs::copy(paths.root.join("Cargo.lock"), &cells_lock).context("cannot copy Cargo.lock")?;
        steps::write(&paths.slots().join(".cargo/config.toml"), CARGO)?;
        let notebook = paths.kdlab.join("prebuild.ipynb");
        steps::write(&notebook, PREBUILD)?;
        let mut command = execute::executor(paths)?;
        command.arg(&notebook).arg(&notebook).env(kernel::BUILD_DIRECTORY, &template);
        step.command(&mut command)?;
        steps::remove(&notebook)?;
        slots::note_libraries(&template)?;
        steps::write(&template.join(slots::BUILT_FROM), &step.version)
    })
}

/// For cargo in all slots, beside evcxr's own profile: a minute less to compile. torch-sys only hands calls on, and nothing
/// here is packed by zstd.
const CARGO: &str = r#"[profile.dev]
lto = "off"

[profile.dev.package]
torch-sys = { opt-level = 0 }
zstd-sys = { opt-level = 0 }
"#;

/// Two cells, for the second of them finds the incremental state of the first.
const PREBUILD: &str = r#"{"cells": [
{"cell_type": "code", "id": "a", "execution_count": null, "metadata": {}, "outputs": [], "source": "let t = tch::Tensor::from_slice(&[1f32, 2.0]);\nprintln!(\"{:?}\", t);"},
{"cell_type": "code", "id": "b", "execution_count": null, "metadata": {}, "outputs": [], "source": "t.size()"}
], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
"#;

/// Changes whenever cargo would rebuild the crate in a slot.
fn fingerprint_of_template(paths: &Paths) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    fingerprint(paths, &["src", "kernel/client", "Cargo.toml", "Cargo.lock", "build.rs"])?.hash(&mut hasher);
    kernel::dependencies(paths).hash(&mut hasher);
    CARGO.hash(&mut hasher);
    Ok(hasher.finish())
}

/// Changes whenever cargo would rebuild what these files and folders make: it goes by the same times and lengths.
pub fn fingerprint(paths: &Paths, sources: &[&str]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for name in sources {
        hash_tree(&paths.root.join(name), &mut hasher)?;
    }
    let rustc =
        Command::new("rustc").arg("-vV").output().context("cannot start rustc; install Rust from https://rustup.rs")?;
    rustc.stdout.hash(&mut hasher);
    Ok(hasher.finish())
}

fn hash_tree(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    let found = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if found.is_dir() {
        let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        names.sort();
        return names.iter().try_for_each(|name| hash_tree(name, hasher));
    }
    path.hash(hasher);
    found.len().hash(hasher);
    let changed = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    changed.map(|time| time.as_nanos()).hash(hasher);
    Ok(())
}
