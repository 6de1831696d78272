//! `cargo lab classify`: the program in `examples/onnx`, which classifies pictures without libtorch.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::paths::Paths;
use crate::tools;

#[derive(Args)]
pub struct ClassifyArgs {
    /// The folder of pictures; those in its subfolders count too. Where subfolders have the names of classes, the
    /// accuracy is printed
    folder: PathBuf,
    /// The student, as `Model::save_onnx` wrote it; a second one is compared with the first
    #[arg(long, value_name = "FILE", required = true)]
    model: Vec<PathBuf>,
    /// The probability below which the student abstains, 0 to 1 [default: the one in the file]
    #[arg(long)]
    threshold: Option<f64>,
    /// The file for the answers [default: the output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Compiles the program and goes on as it. Neither needs set-up.
pub fn run(paths: &Paths, args: &ClassifyArgs) -> Result<()> {
    ensure!(args.folder.is_dir(), "{} is no folder; give the one with your pictures", args.folder.display());
    for model in &args.model {
        ensure!(model.is_file(), "there is no file {}; notebook 14 writes a student with save_onnx", model.display());
    }
    let target = paths.root.join("target/onnx");
    let program = target.join("release/classify");
    if !program.exists() {
        // The output is the table.
        eprintln!("compiling the program that classifies, once: minutes on two cores, 0.5 GB");
    }
    let built = tools::end_with_this_process(tools::without_cargo_variables(&mut Command::new(tools::cargo())))
        .args(["build", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(paths.root.join("examples/onnx/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .context("cannot start cargo; install Rust from https://rustup.rs")?;
    ensure!(built.success(), "the program that classifies does not compile; the reason stands above");
    let mut command = Command::new(program);
    command.arg(&args.folder);
    for (name, values) in [("--model", &args.model[..]), ("--out", args.out.as_slice())] {
        for value in values {
            command.arg(name).arg(value);
        }
    }
    command.args(args.threshold.iter().flat_map(|threshold| ["--threshold".to_owned(), threshold.to_string()]));
    // In place of this process, so that its exit status is the program's.
    Err(command.exec()).context("cannot start the program that classifies")
}
