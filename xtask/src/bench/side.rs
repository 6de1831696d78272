//! One side of a measurement: a process that runs a round whenever it reads a line, and answers with a line.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::work::Options;
use crate::paths::Paths;
use crate::{progress, tools};

/// A running side, and the answers of its rounds so far.
pub struct Side {
    pub name: &'static str,
    pub rounds: Vec<Value>,
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Side {
    /// Starts a side and waits until it is ready.
    pub fn start(name: &'static str, command: &mut Command, task: &Value) -> Result<Self> {
        let mut child = tools::end_with_this_process(command)
            .arg(task.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let answers = BufReader::new(child.stdout.take().context("a side without output")?);
        let mut side = Self { name, child, answers, rounds: vec![] };
        side.answer()?;
        Ok(side)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        while self.answers.read_line(&mut line)? > 0 {
            // The reader of the data set prints lines, too.
            match serde_json::from_str(&line) {
                Ok(answer) => return Ok(answer),
                Err(_) => eprint!("{}", std::mem::take(&mut line)),
            }
        }
        bail!("{} gave up; its reason stands above", self.name)
    }

    /// Runs one round and returns its answer.
    pub fn round(&mut self) -> Result<Value> {
        writeln!(self.child.stdin.as_mut().context("a side without input")?)?;
        self.answer()
    }

    /// Returns the median of a field of the answers.
    pub fn median(&self, field: &str) -> Option<f64> {
        let mut values: Vec<f64> = self.rounds.iter().filter_map(|round| round[field].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// Returns the seconds of `epochs` epochs: the article's side measures one, and each takes as long.
    pub fn seconds(&self, epochs: f64) -> Option<f64> {
        let share = self.rounds.first()?["epochs"].as_f64().map_or(1.0, |measured| epochs / measured);
        Some(self.median("seconds")? * share)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Above so many MB, memory that one side frees slows the next one down: a virtual machine returns it to its host,
/// which took up to 15 % of both cores (`steal` in /proc/stat) one to eight seconds after the article's features.
const LARGE: f64 = 2000.0;
const PAUSE: Duration = Duration::from_secs(10);

/// Runs the rounds of all sides, which alternate. The first round compiles and warms up, and does not count.
pub fn take_turns(what: &str, sides: &mut [Side], rounds: u64) -> Result<()> {
    for round in 0..=rounds {
        for i in 0..sides.len() {
            // Forwards and backwards, so that no side always follows the same one.
            let index = if round % 2 == 0 { i } else { sides.len() - 1 - i };
            let side = &mut sides[index];
            let answer = side.round()?;
            progress::line(&format!("{what} {}: {answer}", side.name));
            if answer["peak_mb"].as_f64().is_some_and(|peak| peak > LARGE) {
                std::thread::sleep(PAUSE);
            }
            if round > 0 {
                side.rounds.push(answer);
            }
        }
    }
    Ok(())
}

/// Our side: the compiled program of `benches/kdlab.rs`.
pub struct Ours<'a> {
    pub paths: &'a Paths,
    pub program: String,
}

impl<'a> Ours<'a> {
    /// Compiles the program, with the features and the profile of the tests, so that little is compiled twice.
    pub fn compile(paths: &'a Paths) -> Result<Self> {
        let output = tools::without_cargo_variables(&mut Command::new(tools::cargo()))
            .args(["bench", "--workspace", "--profile", "dev", "--bench", "kdlab", "--no-run"])
            .args(["--message-format", "json"])
            .current_dir(&paths.root)
            .envs(paths.environment()?)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo; install Rust from https://rustup.rs")?;
        let messages = String::from_utf8_lossy(&output.stdout);
        let program =
            messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
                let ours = message["target"]["kind"][0] == "bench" && message["target"]["name"] == "kdlab";
                message["executable"].as_str().filter(|_| ours).map(str::to_owned)
            });
        let program = program.context("our side of the bench does not compile; the reason stands above")?;
        Ok(Self { paths, program })
    }

    /// Returns the program with its first argument: `prepare` or `measure`.
    pub fn command(&self, verb: &str) -> Result<Command> {
        let mut command = Command::new(&self.program);
        // With a number that was set, a fit gives no threads up to other programs. The task has its own number.
        command.arg(verb).env("OMP_NUM_THREADS", "1").envs(self.paths.environment()?);
        Ok(command)
    }

    /// Starts our side.
    pub fn start(&self, task: &Value) -> Result<Side> {
        Side::start("kdlab", &mut self.command("measure")?, task)
    }

    /// Fills `folder` with the images and weights that all sides read, and returns the task with what it found there.
    pub fn prepare(&self, mut task: Value, folder: &Path, options: &Options) -> Result<Value> {
        for (name, value) in [
            ("folder", json!(folder)),
            ("device", json!(if options.cuda { "cuda" } else { "cpu" })),
            ("threads", json!(options.threads)),
            ("workers", json!(options.threads)),
            ("rounds", json!(options.rounds + 1)),
            ("compile", json!(options.compile)),
            ("f32", json!(options.f32)),
        ] {
            task[name] = value;
        }
        let prepared = self.command("prepare")?.arg(task.to_string()).output()?;
        if !prepared.status.success() {
            let reason = String::from_utf8_lossy(&prepared.stderr);
            bail!("nothing to measure {} with: {}", task["workload"], reason.trim().trim_start_matches("error: "));
        }
        let line = String::from_utf8_lossy(&prepared.stdout);
        serde_json::from_str(line.lines().last().unwrap_or_default()).context("the prepared task")
    }
}
