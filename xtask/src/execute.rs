//! Executes one notebook through the real kernel.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::paths::Paths;
use crate::progress::{self, seconds};

const EXECUTOR: &str = include_str!("notebooks.py");

/// Returns the program that executes one notebook. The caller adds the notebook and the path of the executed one.
pub fn executor(paths: &Paths) -> Result<Command> {
    let mut command = Command::new(paths.python());
    command.args(["-c", EXECUTOR]).current_dir(&paths.root).envs(paths.environment()?);
    Ok(command)
}

/// Executes one notebook and prints a line for each cell.
///
/// # Errors
/// If a cell fails: the error names notebook, cell, source and reason.
pub fn execute(paths: &Paths, notebook: &Path, target: &Path, profile: &str) -> Result<()> {
    let name = notebook.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut child = executor(paths)?
        .arg(notebook)
        .arg(target)
        .arg("--watch")
        .args(paths.installed.then_some("--shared"))
        .env("KDLAB_PROFILE", profile)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the venv's Python; run `cargo lab setup`")?;
    // The executor ends when its stdin closes, so it does not outlive this program.
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
