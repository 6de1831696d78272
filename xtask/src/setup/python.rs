//! The private Python in `.kdlab/venv`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::offline;
use crate::files;
use crate::paths::{Flavour, Paths};
use crate::steps::Step;
use crate::tools;

/// JupyterLab for people, nbclient and nbconvert for runs, latex2mathml for formulas in
/// the report.
const VENV: [&str; 6] = [
    "jupyterlab==4.6.6",
    "jupyterlab_widgets==3.0.17",
    "nbclient==0.11.0",
    "nbconvert==7.17.2",
    "nbformat==5.11.1",
    "latex2mathml==3.81.1",
];
/// What the tests compare with: PyTorch, in the version of libtorch, the original of EfficientNet-Lite0, metrics by
/// others, Jupyter's protocol; and playwright, which drives JupyterLab in Chromium.
const TESTS: [&str; 7] = [
    "torch==2.13.0",
    "torchvision==0.28.0",
    "efficientnet_lite_pytorch==0.1.0",
    "torchmetrics==1.9.0",
    "safetensors==0.8.0",
    "jupyter_kernel_test==0.7.0",
    "playwright==1.65.2",
];

/// Returns the step that makes the venv.
pub fn step(paths: &Paths) -> Step<'_> {
    let what = "installing JupyterLab and nbclient into a private Python environment".into();
    Step { name: "venv", what, version: VENV.join(" "), paths }
}

/// Makes the venv anew, unless it is up to date.
pub fn install(paths: &Paths) -> Result<()> {
    let step = step(paths);
    step.run(&paths.python(), || {
        let python = tools::python().with_context(|| {
            format!("no Python from 3.10 to 3.14 that can make a venv was found: {}", tools::install_python())
        })?;
        files::remove(&paths.venv())?;
        step.command(Command::new(python).args(["-m", "venv"]).arg(paths.venv()))?;
        let mut install = pip_install(paths, &VENV);
        if let Some(wheels) = offline::part(&step, "wheels") {
            install.args(["--no-index", "--find-links"]).arg(wheels);
        }
        step.command(&mut install)?;
        // These were in the folder that was just replaced.
        files::remove(&paths.stamp("oracle"))?;
        if paths.flavour() == Some(Flavour::Cuda) {
            files::remove(&paths.stamp("libtorch"))?;
        }
        Ok(())
    })
}

/// Adds Python's torch and the other packages that the tests compare with.
pub fn install_for_tests(paths: &Paths) -> Result<()> {
    let what = "installing Python's torch, which the tests compare with (3 GB to fetch)".into();
    let step = Step { name: "oracle", what, version: TESTS.join(" "), paths };
    step.run(&paths.python(), || step.command(pip_install(paths, &TESTS).arg("--no-cache-dir")))
}

/// Returns the command that installs packages into the venv.
pub fn pip_install(paths: &Paths, packages: &[&str]) -> Command {
    let mut command = pip(paths, &["install", "--progress-bar", "off"]);
    command.args(packages);
    command
}

/// Returns the command that fetches wheels into the folder `target`.
pub fn pip_download(paths: &Paths, packages: &[&str], target: &Path) -> Command {
    let mut command = pip(paths, &["download", "--progress-bar", "off", "--dest"]);
    command.arg(target).args(packages);
    command
}

/// Returns the command that removes a package from the venv.
pub fn pip_uninstall(paths: &Paths, package: &str) -> Command {
    pip(paths, &["uninstall", "--yes", package])
}

fn pip(paths: &Paths, args: &[&str]) -> Command {
    let mut command = Command::new(paths.python());
    command.args(["-m", "pip", "--disable-pip-version-check", "--no-input"]).args(args);
    command
}

/// Fetches the venv's wheels for a machine with another Python. The last three packages are needed by older Pythons
/// only, and pip would judge that by the Python that runs here.
pub fn fetch_wheels(step: &Step, python: &str, target: &Path) -> Result<()> {
    let packages = [&VENV[..], &["exceptiongroup", "tomli", "typing_extensions"]].concat();
    let mut command = pip_download(step.paths, &packages, target);
    step.command(command.args(["--only-binary=:all:", "--python-version", python]))
}

/// Returns the command that runs a Python script, given as text, in the venv.
pub fn script(paths: &Paths, text: &str) -> Command {
    let mut command = Command::new(paths.python());
    command.args(["-c", text]);
    command
}
