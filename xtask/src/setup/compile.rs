//! The step that compiles the live kernel.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::offline;
use crate::files;
use crate::paths::Paths;
use crate::steps::Step;
use crate::tools;

/// What the kernel is compiled from, apart from the crates.
pub const SOURCES: [&str; 3] = ["kernel/src", "kernel/Cargo.toml", "Cargo.lock"];

/// Returns the step.
pub fn step(paths: &Paths) -> Result<Step<'_>> {
    let version = format!("{:016x}", files::fingerprint(paths, &SOURCES)?);
    Ok(Step { name: "kernel", what: "compiling the Rust kernel (minutes)".into(), version, paths })
}

/// Compiles the kernel or takes it from the bundle, unless it is up to date.
pub fn install(paths: &Paths) -> Result<()> {
    install_from(paths, paths)
}

/// Does the same from the sources and the build folder of another repository, which are the same sources.
pub fn install_from(paths: &Paths, source: &Paths) -> Result<()> {
    let done = paths.root != source.root && self::step(source)?.is_done(&source.kernel());
    let step = step(paths)?;
    step.run(&paths.kernel(), || {
        let built = match offline::kernel(source, &SOURCES) {
            _ if done => source.kernel(),
            Some(file) => file,
            None => {
                let target = target(source);
                let mut command = Command::new(tools::cargo());
                // With the features of all members together, as the tests are built: nothing is compiled twice.
                command
                    .args(["build", "--locked", "--workspace", "--bin", "kdlab-kernel", "--target-dir"])
                    .arg(&target);
                step.command(tools::without_cargo_variables(&mut command).current_dir(&source.root))?;
                target.join("debug/kdlab-kernel")
            }
        };
        let beside = paths.kernel().with_extension("new");
        files::create_dir(beside.parent())?;
        fs::copy(&built, &beside).with_context(|| format!("cannot copy {}", built.display()))?;
        files::replace(&beside, &paths.kernel())?;
        files::remove(&throw_away(source))
    })
}

/// Where cargo compiles the kernel. If the repository's build folder is in use, that one, so that tests and plain cargo
/// find it compiled. Otherwise a folder that is removed afterwards: it holds twenty times what the kernel takes.
fn target(paths: &Paths) -> PathBuf {
    let of_repository = paths.root.join("target");
    if of_repository.join("debug").is_dir() { of_repository } else { throw_away(paths) }
}

fn throw_away(paths: &Paths) -> PathBuf {
    paths.kdlab.join("kernel-target")
}
