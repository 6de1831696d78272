//! One step of set-up. It is skipped when its stamp matches, and done again from its start when it was interrupted. A
//! log keeps its output.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::files;
use crate::paths::Paths;
use crate::progress::{self, Clock};
use crate::tools;

/// Without a terminal for a status line, a long step prints a line this often.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// One step of set-up.
pub struct Step<'a> {
    pub name: &'static str,
    /// What is about to happen, in words for people.
    pub what: String,
    /// The versions that the step installs. It is skipped while the stamp of its last success says the same.
    pub version: String,
    pub paths: &'a Paths,
}

impl Step<'_> {
    /// Returns whether what the step made (`artefact`) is still there and is what this version of set-up would make.
    pub fn is_done(&self, artefact: &Path) -> bool {
        artefact.exists() && fs::read_to_string(self.paths.stamp(self.name)).is_ok_and(|stamp| stamp == self.version)
    }

    /// Runs `action` unless the step is done. Removes the stamp first and writes it last.
    pub fn run(&self, artefact: &Path, action: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.is_done(artefact) {
            return Ok(());
        }
        let stamp = self.paths.stamp(self.name);
        files::remove(&stamp)?;
        progress::line(&format!("[{}] {}", self.name, self.what));
        let clock = Clock::start();
        action().with_context(|| {
            format!("set-up step `{}` failed; run `cargo lab setup` again to go on from here", self.name)
        })?;
        files::write(&stamp, &self.version)?;
        progress::line(&format!("[{}] done in {clock}", self.name));
        Ok(())
    }

    /// Runs a program and appends its output to the step's log. The error of a failure shows the end of that output.
    pub fn command(&self, command: &mut Command) -> Result<()> {
        let path = self.paths.log(self.name);
        files::create_dir(path.parent())?;
        let log = File::options().create(true).append(true).open(&path);
        let log = Arc::new(Mutex::new(log.with_context(|| format!("cannot write {}", path.display()))?));
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = tools::end_with_this_process(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let last = Arc::new(Mutex::new(Vec::<String>::new()));
        let pipes: [Option<Box<dyn Read + Send>>; 2] =
            [child.stdout.take().map(|p| Box::new(p) as _), child.stderr.take().map(|p| Box::new(p) as _)];
        let readers: Vec<_> = (pipes.into_iter().flatten())
            .map(|pipe| {
                let (log, last) = (Arc::clone(&log), Arc::clone(&last));
                thread::spawn(move || follow(pipe, &log, &last))
            })
            .collect();
        let clock = Clock::start();
        let mut said = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {program}"))? {
                break status;
            }
            thread::sleep(Duration::from_millis(100));
            let newest = last.lock().ok().and_then(|lines| lines.last().cloned()).unwrap_or_default();
            progress::status(&format!("[{}] {clock}: {newest}", self.name));
            if !progress::on_terminal() && said.elapsed() >= HEARTBEAT {
                said = Instant::now();
                let short: String = newest.trim().chars().take(80).collect();
                progress::line(&format!("[{}] {clock}: {short}", self.name));
            }
        };
        for reader in readers {
            let _ = reader.join();
        }
        if !status.success() {
            let lines = last.lock().map(|lines| lines.join("\n  ")).unwrap_or_default();
            bail!("{program} ended with {status}; its last lines (all of them: {}):\n  {lines}", path.display());
        }
        Ok(())
    }
}

/// Copies a pipe into the log line by line and keeps the last 12 lines in `last`.
fn follow(pipe: impl Read, log: &Mutex<File>, last: &Mutex<Vec<String>>) {
    for text in BufReader::new(pipe).split(b'\n').map_while(|line| line.ok()) {
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        if let Ok(mut log) = log.lock() {
            let _ = writeln!(log, "{text}");
        }
        if let (Ok(mut last), false) = (last.lock(), text.trim().is_empty()) {
            last.push(text);
            let surplus = last.len().saturating_sub(12);
            last.drain(..surplus);
        }
    }
}
