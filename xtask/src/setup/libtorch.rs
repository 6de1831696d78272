//! The step that installs libtorch: for the CPU from single files of PyPI's wheel, for CUDA as the whole wheel.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{offline, python};
use crate::files;
use crate::paths::{Flavour, Paths};
use crate::steps::Step;
use crate::tools;

/// The version that tch 0.26 is made for.
pub const TORCH: &str = "2.13.0";

/// Takes single files out of wheels, and checks a SHA-256.
pub const UNPACK: &str = include_str!("unpack.py");

/// Returns the version that the step installs, without a libtorch of the user's own.
pub fn version(flavour: Flavour) -> String {
    format!("{TORCH} {flavour}")
}

/// Returns the step.
pub fn step(paths: &Paths, flavour: Flavour) -> Step<'_> {
    let own = own(paths).map(|dir| format!(" at {}", dir.display())).unwrap_or_default();
    let what = format!("fetching libtorch {TORCH} for {flavour} from {}", offline::source(paths));
    Step { name: "libtorch", what, version: version(flavour) + &own, paths }
}

/// Returns the libtorch that the user named by `LIBTORCH`, if any.
fn own(paths: &Paths) -> Option<PathBuf> {
    let dir = PathBuf::from(tools::variable("LIBTORCH")?);
    (dir != paths.libtorch() && !dir.ends_with(".kdlab/libtorch")).then_some(dir)
}

/// Puts libtorch into place, unless it is there.
pub fn install(paths: &Paths, flavour: Flavour) -> Result<()> {
    let step = step(paths, flavour);
    let before = paths.flavour();
    step.run(&paths.libtorch_cpu(), || {
        if let Some(there) = own(paths).or_else(|| offline::part(&step, "libtorch")) {
            link(paths, &there)?;
        } else if flavour == Flavour::Cuda {
            step.command(python::pip_install(paths, python::CUDA).arg("--no-cache-dir"))?;
            let script = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
            let found = python::script(paths, script).output().context("cannot start the venv's Python")?;
            link(paths, Path::new(String::from_utf8_lossy(&found.stdout).trim()))?;
        } else {
            let downloads = paths.kdlab.join("downloads");
            files::remove(&downloads)?;
            step.command(python::pip_download(paths, python::LIBTORCH, &downloads).arg("--no-cache-dir"))?;
            let beside = paths.kdlab.join("libtorch.new");
            files::remove(&beside)?;
            step.command(python::script(paths, UNPACK).arg("libtorch").arg(&downloads).arg(&beside).arg(TORCH))?;
            files::replace(&beside, &paths.libtorch())?;
            files::remove(&downloads)?;
            if before == Some(Flavour::Cuda) {
                files::remove(&paths.stamp("oracle"))?;
                step.command(&mut python::pip_uninstall(paths, "torch"))?;
            }
        }
        if !paths.libtorch_cpu().exists() {
            bail!("{} is missing: the folder is no libtorch {TORCH}", paths.libtorch_cpu().display());
        }
        // cargo would keep what was linked against another libtorch at the same place.
        files::remove(&paths.template())?;
        let _ = Command::new(tools::cargo())
            .args(["clean", "--quiet", "-p", "torch-sys"])
            .current_dir(&paths.root)
            .status();
        Ok(())
    })
}

fn link(paths: &Paths, target: &Path) -> Result<()> {
    files::remove(&paths.libtorch())?;
    symlink(target, paths.libtorch()).with_context(|| format!("cannot link to {}", target.display()))
}
