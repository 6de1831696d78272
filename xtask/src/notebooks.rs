//! `cargo lab run`: every notebook through the real kernel, then one report.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::RunArgs;
use crate::paths::Paths;
use crate::progress::{self, Clock, seconds};
use crate::{setup, steps, table};

const EXECUTOR: &str = include_str!("notebooks.py");
const REPORT: &str = include_str!("report.py");

pub fn run(paths: &Paths, args: &RunArgs) -> Result<()> {
    let clock = Clock::start();
    if args.no_setup {
        setup::require(paths)?;
    } else {
        setup::set_up(paths, None)?;
    }
    let profile = paths.profile(args.profile.as_deref())?;
    let runs = paths.runs()?.join(&profile);
    let out = match &args.out {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("cannot make {} absolute", dir.display()))?,
        None => runs.clone(),
    };
    let notebooks = find(paths, &args.notebooks)?;
    let executed = out.join("executed");
    steps::create_dir(Some(&executed))?;
    progress::line(&format!("running {} notebooks, profile {profile}", notebooks.len()));
    let mut done = Vec::new();
    let mut failure = None;
    for notebook in &notebooks {
        let target = executed.join(notebook.file_name().unwrap_or_default());
        let outcome = execute(paths, notebook, &target, &profile);
        if target.exists() {
            done.push(target);
        }
        if let Err(error) = outcome {
            failure = Some(error);
            break;
        }
    }
    if !done.is_empty() {
        let report = out.join("report.html");
        let made = make_report(paths, &profile, &report, &all_in(&executed)?);
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
    if notebooks.iter().any(|n| n.starts_with(paths.notebooks())) {
        table::print(&runs.join("results.json"))?;
    }
    let plural = if notebooks.len() == 1 { "" } else { "s" };
    progress::line(&format!("{} notebook{plural} ran without an error in {clock}", notebooks.len()));
    Ok(())
}

/// The notebooks of a folder, in the order of their names.
fn all_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut all: Vec<PathBuf> = (entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "ipynb"))
        .collect();
    all.sort();
    Ok(all)
}

/// The notebooks meant by `wanted`, or all, in the order of their names.
fn find(paths: &Paths, wanted: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let dir = paths.notebooks();
    let all = all_in(&dir)?;
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
        let matching = all.iter().filter(|path| {
            path.file_name().is_some_and(|file| {
                let file = file.to_string_lossy();
                // `2` means 02_teacher too.
                file.starts_with(&*start) || file.trim_start_matches('0').starts_with(&*start)
            })
        });
        let before = found.len();
        found.extend(matching.cloned());
        if found.len() == before {
            let names: Vec<_> =
                all.iter().filter_map(|path| path.file_stem()).map(|stem| stem.to_string_lossy()).collect();
            bail!("no notebook `{start}`: give a path or the start of one of {}", names.join(", "));
        }
    }
    Ok(found)
}

/// The program that executes one notebook; the caller adds the notebook and where the executed one goes.
pub fn executor(paths: &Paths) -> Result<Command> {
    let mut command = Command::new(paths.python());
    command.args(["-c", EXECUTOR]).current_dir(&paths.root).envs(paths.environment()?);
    Ok(command)
}

/// Executes one notebook, with a line per cell. The error names notebook, cell, source and what went wrong.
fn execute(paths: &Paths, notebook: &Path, target: &Path, profile: &str) -> Result<()> {
    let name = notebook.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut child = executor(paths)?
        .arg(notebook)
        .arg(target)
        .arg("--watch")
        .env("KDLAB_PROFILE", profile)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the venv's Python; run `cargo lab setup`")?;
    // Held open for as long as this program lives; the executor ends when it closes.
    let _alive = child.stdin.take();
    let stdout = child.stdout.take().context("the executor has no output")?;
    let (mut cells, mut current, mut failed) = (0, 0, None);
    progress::status(&format!("{name}: starting the kernel"));
    for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
        let Ok(event) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let took = || seconds(event["seconds"].as_f64().unwrap_or_default());
        match event["event"].as_str().unwrap_or_default() {
            "start" => cells = event["cells"].as_u64().unwrap_or_default(),
            "kernel" => progress::line(&format!("{name} kernel ready in {}", took())),
            "cell" => {
                current = event["number"].as_u64().unwrap_or_default();
                progress::status(&format!("{name} [{current}/{cells}] {}", text("source")));
            }
            "stream" => {
                if let Some(last) = text("text").lines().rfind(|line| !line.trim().is_empty()) {
                    progress::status(&format!("{name} [{current}/{cells}] {last}"));
                }
            }
            "done" => progress::line(&format!("{name} [{current}/{cells}] {}", took())),
            "failed" => failed = Some((event["number"].as_u64().unwrap_or_default(), text("source"), text("error"))),
            "end" => progress::line(&format!("{name} done in {}", took())),
            _ => {}
        }
    }
    let status = child.wait().context("cannot wait for the executor")?;
    match failed {
        Some((0, _, error)) => bail!("{name}: {error}"),
        Some((number, source, error)) => {
            progress::line(&format!("{name} [{number}/{cells}] FAILED"));
            bail!("{name}, cell {number} of {cells} (`{source}`): {error}")
        }
        None if !status.success() => {
            bail!("{name}: the executor ended with {status} in cell {current} of {cells}")
        }
        None => Ok(()),
    }
}

/// One page that needs nothing from the network.
fn make_report(paths: &Paths, profile: &str, report: &Path, notebooks: &[PathBuf]) -> Result<()> {
    progress::status("writing the report");
    let mut command = Command::new(paths.python());
    command.args(["-c", REPORT]).arg(report).arg(format!("Knowledge distillation, profile {profile}")).args(notebooks);
    let output =
        command.envs(paths.environment()?).output().context("cannot start the venv's Python; run `cargo lab setup`")?;
    if !output.status.success() {
        // The last line of a traceback is the reason.
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cannot write {}: {}", report.display(), said.trim().lines().last().unwrap_or("unknown reason"));
    }
    Ok(())
}
