//! The crate's own programs, which use tch as this one does not.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::{progress, tools};

/// Compiles the program `name`, which is for `purpose`, and returns its path.
pub fn compiled(paths: &Paths, name: &str, purpose: &str) -> Result<PathBuf> {
    let program = paths.root.join("target/debug").join(name);
    if !program.exists() {
        progress::line(&format!(
            "compiling the program for {purpose}, once: three to six minutes on two cores, 0.7 GB"
        ));
    }
    let built = tools::end_with_this_process(tools::without_cargo_variables(&mut Command::new(tools::cargo())))
        // With the features of all members together, as set-up and the tests do: nothing is compiled twice.
        .args(["build", "--workspace", "--bin", name])
        .current_dir(&paths.root)
        .envs(paths.environment()?)
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("cannot start cargo; install Rust from https://rustup.rs")?;
    if !built.success() {
        bail!("the program for {purpose} does not compile; the reason stands above");
    }
    Ok(program)
}
