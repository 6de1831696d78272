//! `cargo lab run`: notebooks through the real kernel, then one report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::execute::execute;
use crate::paths::Paths;
use crate::progress::{self, Clock};
use crate::{files, setup, table};

/// The notebooks of a run without arguments: the article, step by step. The experiments after them train a hundred
/// students.
const WALK: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];
const REPORT: &str = include_str!("report.py");

#[derive(Args)]
pub struct RunArgs {
    /// Notebooks to run: paths, numbers such as `2`, or the start of a name in notebooks/ [default: 0 to 7]
    notebooks: Vec<PathBuf>,
    /// Run notebooks 8 to 14, too
    #[arg(long, conflicts_with = "notebooks")]
    all: bool,
    /// article, laptop or smoke [default: KDLAB_PROFILE, else article with a CUDA GPU, laptop without]
    #[arg(long)]
    profile: Option<String>,
    /// Folder for the executed notebooks and report.html [default: <runs>/<profile>]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Fail if something is not set up, instead of setting it up
    #[arg(long)]
    no_setup: bool,
}

/// Runs `cargo lab run`.
pub fn run(paths: &Paths, args: &RunArgs) -> Result<()> {
    let profile = ready(paths, args.no_setup, args.profile.as_deref())?;
    let clock = Clock::start();
    let runs = paths.runs()?.join(&profile);
    let out = match &args.out {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("cannot make {} absolute", dir.display()))?,
        None => runs.clone(),
    };
    let walk = args.notebooks.is_empty() && !args.all;
    let wanted = if walk { &WALK.map(PathBuf::from)[..] } else { &args.notebooks };
    let notebooks = find(&paths.notebooks(), wanted)?;
    let title = format!("Knowledge distillation, profile {profile}");
    execute_all(paths, &notebooks, &out.join("executed"), &out.join("report.html"), &profile, &title)?;
    if notebooks.iter().any(|n| n.parent() == Some(&*paths.notebooks())) {
        table::print(&runs.join("results.json"))?;
    }
    progress::line(&format!("{} ran without an error in {clock}", counted(notebooks.len())));
    if walk {
        progress::line("notebooks 8 to 14 are next: `cargo lab run --all`");
    }
    Ok(())
}

/// Sets up what is missing, or fails if `no_setup`. Returns the profile to run in.
pub fn ready(paths: &Paths, no_setup: bool, profile: Option<&str>) -> Result<String> {
    if no_setup || paths.installed {
        setup::require(paths)?;
    } else {
        setup::set_up(paths, None)?;
    }
    paths.profile(profile)
}

/// Executes the notebooks in order into the folder `executed`, up to the first that fails. Then writes one report of
/// all notebooks in that folder.
pub fn execute_all(
    paths: &Paths,
    notebooks: &[PathBuf],
    executed: &Path,
    report: &Path,
    profile: &str,
    title: &str,
) -> Result<()> {
    let clock = Clock::start();
    files::create_dir(Some(executed))?;
    progress::line(&format!("running {}, profile {profile}", counted(notebooks.len())));
    let mut any = false;
    let mut failure = None;
    for notebook in notebooks {
        let target = executed.join(notebook.file_name().unwrap_or_default());
        let outcome = execute(paths, notebook, &target, profile);
        any |= target.exists();
        if let Err(error) = outcome {
            failure = Some(error);
            break;
        }
    }
    if any {
        let made = make_report(paths, title, report, &all_in(executed)?);
        match made {
            Ok(()) => progress::line(&format!("report: {}", report.display())),
            Err(error) if failure.is_some() => progress::line(&format!("no report: {error:#}")),
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = failure {
        progress::line(&format!("stopped after {clock}; what was executed is in {}", executed.display()));
        return Err(error);
    }
    Ok(())
}

/// Returns a count such as `1 notebook` or `7 notebooks`.
pub fn counted(notebooks: usize) -> String {
    format!("{notebooks} notebook{}", if notebooks == 1 { "" } else { "s" })
}

/// Returns the notebooks of a folder, in the order of their names.
fn all_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut all: Vec<PathBuf> = (entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "ipynb"))
        .collect();
    all.sort();
    Ok(all)
}

/// Returns the notebooks of `dir` that `wanted` names, or all of them in the order of their names. Folders below
/// `dir` do not count.
pub fn find(dir: &Path, wanted: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let all = all_in(dir)?;
    if wanted.is_empty() {
        if all.is_empty() {
            bail!("no notebooks in {}", dir.display());
        }
        return Ok(all);
    }
    let mut found = Vec::new();
    for name in wanted {
        if name.is_file() {
            found.push(std::path::absolute(name).with_context(|| format!("cannot make {} absolute", name.display()))?);
            continue;
        }
        let start = name.to_string_lossy();
        let matching =
            all.iter().filter(|path| path.file_name().is_some_and(|file| is_meant(&file.to_string_lossy(), &start)));
        let before = found.len();
        found.extend(matching.cloned());
        if found.len() == before {
            let names: Vec<_> =
                all.iter().filter_map(|path| path.file_stem()).map(|stem| stem.to_string_lossy()).collect();
            if name.components().count() > 1 || name.extension().is_some() {
                bail!("there is no file {start}; those in {} can be named by number", dir.display());
            }
            bail!("no notebook `{start}`: give a path, a number or the start of one of {}", names.join(", "));
        }
    }
    Ok(found)
}

/// Returns whether `name` means this file. A number means the notebook with that number, anything else the start of its
/// name.
fn is_meant(file: &str, name: &str) -> bool {
    let digits = file.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    match name.parse::<u32>() {
        Ok(number) => digits.parse() == Ok(number),
        Err(_) => file.starts_with(name) || file.trim_start_matches('0').starts_with(name),
    }
}

/// Writes one page that needs nothing from the network.
fn make_report(paths: &Paths, title: &str, report: &Path, notebooks: &[PathBuf]) -> Result<()> {
    progress::status("writing the report");
    let mut command = Command::new(paths.python());
    let templates = paths.root.join("kernel/programs/nbconvert");
    command.args(["-c", REPORT]).arg(report).arg(title).arg(templates).args(notebooks);
    let output =
        command.envs(paths.environment()?).output().context("cannot start the venv's Python; run `cargo lab setup`")?;
    if !output.status.success() {
        // The last line of a traceback is the reason.
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cannot write {}: {}", report.display(), said.trim().lines().last().unwrap_or("unknown reason"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_means_one_notebook_and_folders_none() {
        let folder = tempfile::TempDir::new().expect("a temporary folder");
        let names = ["01_data", "02_teacher", "10_omitted", "12_patience", "exercises/e1_soft_targets"];
        fs::create_dir(folder.path().join("exercises")).expect("a folder");
        for name in names {
            fs::write(folder.path().join(name).with_extension("ipynb"), "{}").expect("a file");
        }
        let found = |wanted: &[&str]| -> Vec<String> {
            let wanted: Vec<PathBuf> = wanted.iter().map(PathBuf::from).collect();
            let found = find(folder.path(), &wanted).unwrap_or_default();
            found.iter().filter_map(|path| path.file_stem()).map(|name| name.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(found(&[]), names[..4]);
        assert_eq!(found(&["1"]), ["01_data"]);
        assert_eq!(found(&["02", "12"]), ["02_teacher", "12_patience"]);
        assert_eq!(found(&["1_", "10_o"]), ["01_data", "10_omitted"]);
        assert!(found(&["3"]).is_empty() && found(&["e1"]).is_empty());
    }
}
