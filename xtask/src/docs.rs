//! `cargo lab docs`: the pages, the notebooks and the reference as one site that needs no network.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::paths::{Flavour, Paths};
use crate::progress::{self, Clock};
use crate::setup::{libtorch, python};
use crate::tools;

#[derive(Args)]
pub struct DocsArgs {
    /// Leave out the reference of the crates, which needs libtorch and minutes to compile
    #[arg(long)]
    no_reference: bool,
    /// Instead of building the site, copy the outputs of executed notebooks into notebooks/, with smaller figures:
    /// after `cargo lab run --profile laptop`, give runs/laptop/executed
    #[arg(long, value_name = "FOLDER", conflicts_with = "no_reference")]
    outputs_from: Option<PathBuf>,
}

/// Runs `cargo lab docs`. Installs Sphinx first.
pub fn run(paths: &Paths, args: &DocsArgs) -> Result<()> {
    python::install_docs(paths)?;
    if let Some(executed) = &args.outputs_from {
        let keep = paths.root.join("xtask/keep_outputs.py");
        let executed = std::path::absolute(executed).context("cannot make the folder's path absolute")?;
        if !executed.is_dir() {
            bail!("there is no folder {}", executed.display());
        }
        return succeed(Command::new(paths.docs()).arg(keep).arg(&paths.root).arg(executed), "see above");
    }
    let clock = Clock::start();
    let reference = paths.root.join("target/doc");
    if !args.no_reference {
        python::install(paths)?;
        libtorch::install(paths, paths.flavour().unwrap_or(Flavour::Cpu))?;
        let mut doc = Command::new(tools::cargo());
        doc.args(["doc", "--no-deps", "--locked", "-p", "kdlab", "-p", "kdlab-client", "--lib"]);
        doc.current_dir(&paths.root).envs(paths.environment()?);
        succeed(tools::without_cargo_variables(&mut doc), "cargo doc failed")?;
    }
    let site = paths.root.join("target/site");
    let mut sphinx = Command::new(paths.docs());
    // Every warning is an error: a link that leads nowhere, a page that no list names.
    sphinx.args(["-m", "sphinx", "-q", "-b", "html", "-W", "--keep-going", "-c"]).arg(paths.root.join("docs/site"));
    sphinx.arg("-d").arg(paths.root.join("target/site-doctrees")).args([&paths.root, &site]);
    sphinx.env("KDLAB_REFERENCE", if args.no_reference { Path::new("") } else { &reference });
    progress::line("building the pages");
    succeed(&mut sphinx, "the site was not built; each line above names a page and what is wrong there")?;
    progress::line(&format!("built in {clock}: open file://{}", site.join("index.html").display()));
    Ok(())
}

/// Runs a program and fails with `otherwise` if it does.
fn succeed(command: &mut Command, otherwise: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = tools::end_with_this_process(command).status();
    if !status.with_context(|| format!("cannot start {program}"))?.success() {
        bail!("{otherwise}");
    }
    Ok(())
}
