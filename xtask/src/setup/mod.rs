//! Set-up: installs what is missing, into `.kdlab/` and the user's cache folder only. It can be repeated at any time,
//! and continues where it was interrupted.
//!
//! Its steps ([`crate::steps`]) are `kernel`, `venv`, `libtorch`, `weights` and `prebuild`, and for the tests `oracle`.

pub mod compile;
mod git;
pub mod jupyter;
pub mod libtorch;
pub mod offline;
pub mod python;
pub mod weights;

use std::fs::File;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::paths::{self, Flavour, Paths};
use crate::progress::{self, Clock};
use crate::{build_directories, files, template, tools};

/// Installs what is missing. With `None` as `flavour` it keeps the installed libtorch, or chooses by the NVIDIA driver.
pub fn set_up(paths: &Paths, flavour: Option<Flavour>) -> Result<()> {
    paths::check(paths)?;
    let clock = Clock::start();
    files::create_dir(Some(&paths.kdlab))?;
    let lock_path = paths.kdlab.join("setup.lock");
    let lock = File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        progress::line("waiting for another set-up of this repository to end");
        lock.lock().context("cannot lock the set-up")?;
    }
    let flavour = flavour.or(paths.flavour()).unwrap_or(match tools::nvidia_driver() {
        Some(_) => Flavour::Cuda,
        None => Flavour::Cpu,
    });
    offline::fill_cache(paths)?;
    let ready = is_set_up(paths, flavour)?;
    if !ready {
        if tools::compiler().is_none() {
            bail!("no C++ compiler found, and tch needs one: {}", tools::how_to_install_compiler());
        }
        // The kernel compiles while the other steps wait for the network.
        thread::scope(|scope| {
            let kernel = scope.spawn(|| compile::install(paths));
            let fetched = python::install(paths)
                .and_then(|()| libtorch::install(paths, flavour))
                .and_then(|()| weights::install(paths));
            let built = kernel.join().unwrap_or_else(|_| bail!("the step that builds the kernel stopped"));
            fetched.and(built)
        })?;
    }
    jupyter::configure(paths)?;
    git::ignore_outputs(&paths.root);
    template::build(paths, flavour)?;
    if tools::variable(paths::INSTALLING).is_none() {
        build_directories::refresh_ready(paths)?;
    }
    if !ready {
        progress::line(&format!("set up in {clock}; .kdlab holds {}", progress::size(files::disk_usage(&paths.kdlab))));
    }
    Ok(())
}

/// Installs what is missing, and what `cargo lab test` needs beyond that. Keeps the files that the kernel is compiled
/// from, because the tests are linked with them.
pub fn set_up_for_tests(paths: &Paths, flavour: Option<Flavour>) -> Result<()> {
    paths::check(paths)?;
    files::create_dir(Some(&paths.root.join("target/debug")))?;
    set_up(paths, flavour)?;
    python::install_for_tests(paths)?;
    python::install_dask(paths)
}

/// Returns whether every step that takes long is done.
pub fn is_set_up(paths: &Paths, flavour: Flavour) -> Result<bool> {
    Ok(python::step(paths).is_done(&paths.python())
        && libtorch::step(paths, flavour).is_done(&paths.libtorch_cpu())
        && compile::step(paths)?.is_done(&paths.kernel())
        && weights::step(paths).is_done(&weights::file(paths)?)
        && template::step(paths, flavour)?.is_done(&paths.template().join(build_directories::BUILT_FROM))
        && build_directories::damaged(&paths.template()).is_empty())
}

/// Fails if a kernel could not start. For `--no-setup` and for tests, which must not install anything.
pub fn require(paths: &Paths) -> Result<()> {
    let built = paths.template().join(build_directories::BUILT_FROM);
    let needed = [paths.python(), paths.libtorch_cpu(), paths.kernel(), paths.lab(), built];
    if let Some(missing) = needed.iter().find(|path| !path.exists()) {
        bail!("{} is missing: run cargo lab setup first", missing.display());
    }
    Ok(())
}
