//! `cargo lab page`: a folder with a student that runs in a browser.

use std::path::PathBuf;
use std::process::{Command, exit};

use anyhow::{Context, Result};
use clap::Args;

use crate::paths::Paths;
use crate::tools;

#[derive(Args)]
pub struct PageArgs {
    /// The student, as `Model::save_onnx` wrote it
    model: PathBuf,
    /// The folder to write [default: page, beside the student]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Pictures with the teacher's answers, as `kdlab::show::save_examples` wrote them
    #[arg(long, value_name = "FILE")]
    examples: Option<PathBuf>,
}

/// Writes the folder. Needs Python and, once, npm; no set-up.
pub fn run(paths: &Paths, args: &PageArgs) -> Result<()> {
    let python = tools::python().with_context(|| format!("Python is missing: {}", tools::how_to_install_python()))?;
    let status = tools::end_with_this_process(&mut Command::new(python))
        .args(["-c", include_str!("page.py")])
        .arg(&args.model)
        .arg(args.out.clone().unwrap_or_else(|| args.model.with_file_name("page")))
        .arg(paths.root.join("xtask/page"))
        .arg(paths.kdlab.join("npm"))
        .args(&args.examples)
        .status()
        .context("cannot start Python")?;
    // The reason was told.
    if status.success() { Ok(()) } else { exit(1) }
}
