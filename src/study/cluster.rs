//! A sweep on the workers of a Dask cluster: this process prepares the fits and collects their results, a Python
//! program hands them to the workers, and each fit is a process of its own.

use super::board::Board;
use super::lone_fit::{FitWork, Work};
use super::one_fit::fit_name;
use super::teachers::{Next, Runner};
use super::{Augmentation, Setting, Sweep, SweepRun};
use crate::data::Dataset;
use crate::error::lock;
use crate::store::atomic::write_json;
use crate::store::variable;
use crate::train::{Control, Event, Listener, Progress};
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Hands the fits to Dask's workers.
const DISPATCHER: &str = include_str!("dispatcher.py");

/// Variables of this process that a fit on another machine needs: where libtorch lies, and the device.
const PASSED_ON: [&str; 3] = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "KDLAB_DEVICE"];

/// Longest time that the fits get to stop and the dispatcher to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the fits of a sweep run.
pub(crate) struct Cluster {
    on: String,
    /// Python with Dask.
    python: PathBuf,
    /// The program that makes one fit.
    program: PathBuf,
}

impl Cluster {
    /// Understands `local:N`, `tcp://HOST:PORT`, `tls://HOST:PORT`, `slurm`, `pbs`, `slurm:N`, `pbs:N` and
    /// `slurm-array`.
    ///
    /// # Errors
    /// When it is none of them, the address could be reached by strangers without TLS, or Dask is not installed.
    pub fn new(on: &str) -> Result<Self> {
        check(on)?;
        let root = variable("KDLAB_ROOT").unwrap_or_else(|| PathBuf::from("."));
        let python = variable("KDLAB_DASK").unwrap_or_else(|| root.join(".kdlab/dask/bin/python"));
        if on != SLURM_ARRAY && !python.is_file() {
            return Err(Error::Input(format!(
                "Dask is not installed: there is no {}; run `cargo lab setup --dask`, or let KDLAB_DASK name a Python \
                 that has dask.distributed",
                python.display()
            )));
        }
        let this = std::env::current_exe().ok().filter(|path| path.file_name().is_some_and(|name| name == "sweep"));
        let program = this.unwrap_or_else(|| root.join("target/debug/sweep"));
        if !program.is_file() {
            return Err(Error::Input(format!(
                "the program for sweeps is not compiled: there is no {}; run `cargo lab setup --dask`",
                program.display()
            )));
        }
        Ok(Self { on: on.to_owned(), python, program })
    }
}

/// Fits by `sbatch --array`, without Dask.
const SLURM_ARRAY: &str = "slurm-array";

/// Refuses what names no cluster, and clusters that would run what a stranger sends.
fn check(on: &str) -> Result<()> {
    let wrong = |why: &str| Err(Error::Input(format!("a sweep can't run on {on:?}: {why}")));
    let count = |text: &str| text.parse::<u16>().is_ok_and(|count| (1..=1000).contains(&count));
    let (kind, rest) = on.split_once(':').map_or((on, None), |(kind, rest)| (kind, Some(rest)));
    let address = rest.and_then(|rest| rest.strip_prefix("//")).and_then(|rest| rest.rsplit_once(':'));
    match (kind, rest, address) {
        ("local", Some(workers), _) if count(workers) => Ok(()),
        ("local", ..) => wrong("local:N takes a number of workers from 1 to 1000, such as local:2"),
        (SLURM_ARRAY | "slurm" | "pbs", None, _) => Ok(()),
        ("slurm" | "pbs", Some(jobs), _) if count(jobs) => Ok(()),
        ("slurm" | "pbs", ..) => wrong("the number of jobs is 1 to 1000, such as slurm:8"),
        ("kubernetes", ..) => wrong(
            "start Dask's scheduler and workers there with TLS, as docs/cluster.md does, and give tls://HOST:8786",
        ),
        ("tcp" | "tls", _, Some((host, port))) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-.:".contains(c);
            let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            if name.is_empty() || !name.chars().all(plain) || !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return wrong("an address is HOST:PORT, such as tls://head:8786");
            }
            let here = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
            if kind == "tcp" && !here {
                return wrong(
                    "without TLS, whoever reaches that port runs programs on the workers; start the scheduler with \
                     TLS and give tls://HOST:PORT, or reach it through a tunnel at tcp://127.0.0.1:PORT",
                );
            }
            Ok(())
        }
        ("tcp" | "tls", ..) => wrong("an address is HOST:PORT, such as tls://head:8786"),
        _ => wrong("it may be local:N, tcp://127.0.0.1:PORT, tls://HOST:PORT, slurm, pbs or slurm-array"),
    }
}

/// What the dispatcher says, a line of JSON each.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    /// Something for people.
    Line(String),
    /// A worker began a fit, or went on with it after so many epochs.
    Begun {
        place: usize,
        epochs: usize,
        worker: String,
    },
    Progress {
        place: usize,
        progress: Progress,
    },
    Run {
        place: usize,
        run: Box<SweepRun>,
    },
    Failed {
        place: usize,
        error: String,
    },
    /// The cluster can't be used, and why.
    Broken(String),
}

/// What a sweep has made and is making, and how it is stopped.
pub(super) struct Ongoing<'a> {
    pub folder: &'a Path,
    pub before: &'a [SweepRun],
    pub board: &'a Board,
    /// Stopping it stops the fits.
    pub control: Control,
}

impl Cluster {
    /// Makes all runs that are not on disk yet.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the sweep was stopped; else why it can't be finished.
    pub(super) fn run(
        &self,
        runner: &mut Runner,
        data: &Dataset,
        cache: &Path,
        all: &[(Setting, u64)],
        now: &Ongoing,
    ) -> Result<()> {
        let work = self.prepare(runner, data, cache, all, now)?;
        if work.fits.is_empty() {
            return Ok(());
        }
        let file = now.folder.join("work.json");
        write_json(&file, &work)?;
        if self.on == SLURM_ARRAY {
            println!("{}", self.array(&file, &work.fits));
            return Err(Error::Interrupted(format!("{} fits are left to the array", work.fits.len())));
        }
        self.dispatch(&file, &work.fits, now)
    }

    /// Finds what is done, and lists what a fit in another process needs.
    fn prepare(
        &self,
        runner: &mut Runner,
        data: &Dataset,
        cache: &Path,
        all: &[(Setting, u64)],
        now: &Ongoing,
    ) -> Result<Work> {
        let sweep = runner.sweep.clone();
        let stop = || now.control.stopping().map_or(Ok(()), |reason| Err(Error::Interrupted(reason)));
        let (mut cpus, mut fits) = (BTreeMap::new(), Vec::new());
        for (place, (setting, seed)) in all.iter().enumerate() {
            stop()?;
            let (name, listener) = (fit_name(setting, *seed), now.board.listener(place));
            now.board.begin(place, &name);
            match runner.next(setting, *seed, now.folder, listener.clone(), now.before)? {
                Next::Done(run) => {
                    cpus.extend(run.cpu.clone().map(|cpu| (*seed, cpu)));
                    now.board.finish(place, *run);
                }
                Next::Fit(fit) => {
                    let teacher = runner.outputs(setting, *seed, &listener)?;
                    let train = teacher.train.map(|values| values.share(cache)).transpose()?;
                    let (validation, key) = (teacher.validation.share(cache)?, fit.key.clone());
                    fits.push(FitWork { place, name, setting: setting.clone(), seed: *seed, key, train, validation });
                }
            }
            now.board.clear();
        }
        let variables = PASSED_ON.iter().filter_map(|name| Some((name.to_string(), std::env::var(name).ok()?)));
        Ok(Work { sweep, data: data.share(cache)?, environment: variables.collect(), cpus, fits })
    }

    /// Runs the dispatcher until all fits are made, one fails, or the sweep is stopped.
    fn dispatch(&self, file: &Path, fits: &[FitWork], now: &Ongoing) -> Result<()> {
        let log = now.folder.join("dask.log");
        let io = |e| Error::io("writing", &log, e);
        let stderr = std::fs::File::create(&log).map_err(io)?;
        let child = Command::new(&self.python)
            .args(["-c", DISPATCHER])
            .args([file.as_os_str(), self.on.as_ref(), self.program.as_os_str()])
            // Ctrl-C ends this process alone; the dispatcher then stops its fits in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|e| Error::Io(format!("starting {}: {e}", self.python.display())))?;
        let mut dispatcher = Dispatcher::new(child);
        let pipe = Arc::clone(&dispatcher.pipe);
        let _observer = now.control.on_change(move || drop(lock(&pipe).take()));
        if now.control.stopping().is_some() {
            drop(lock(&dispatcher.pipe).take());
        }
        let (mut left, mut failure) = (fits.len(), None);
        let mut listeners: BTreeMap<usize, (&str, Listener)> =
            fits.iter().map(|fit| (fit.place, (fit.name.as_str(), now.board.listener(fit.place)))).collect();
        let stdout = dispatcher.child.stdout.take();
        for text in stdout.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(|line| line.ok()) {
            let Ok(said) = serde_json::from_str::<Said>(&text) else { continue };
            let failed = match said {
                Said::Line(line) => {
                    println!("{line}");
                    None
                }
                Said::Begun { place, epochs, worker } => {
                    if let Some((name, _)) = listeners.get(&place) {
                        now.board.begin(place, name);
                        if epochs > 0 {
                            println!("{name} goes on after epoch {epochs}, on {worker}");
                        }
                    }
                    None
                }
                Said::Progress { place, progress } => {
                    if let Some((_, listener)) = listeners.get(&place) {
                        listener.notify(&Event::Progress(progress));
                    }
                    None
                }
                Said::Run { place, run } => {
                    left -= 1;
                    // What it said before may come later.
                    listeners.remove(&place);
                    now.board.keep(place, *run, now.folder, now.before).err()
                }
                Said::Failed { place, error } => {
                    let name = listeners.get(&place).map_or("a fit", |(name, _)| name);
                    // A loss that is not finite names its fit itself.
                    Some(Error::Io(if error.starts_with(name) { error } else { format!("{name}: {error}") }))
                }
                Said::Broken(why) => Some(Error::Io(why)),
            };
            if let Some(error) = failed {
                now.control.stop("another run failed");
                failure.get_or_insert(error);
            }
        }
        let ended = dispatcher.end();
        match (failure, left, now.control.stopping()) {
            (Some(error), ..) => Err(error),
            (None, 0, _) => Ok(()),
            (None, _, Some(reason)) => Err(Error::Interrupted(reason)),
            (None, ..) => Err(Error::Io(format!(
                "the program that hands out the fits ended ({ended}); {} says more. Run the sweep again: what is done \
                 is kept",
                log.display()
            ))),
        }
    }

    /// The command that makes the fits as an array of Slurm.
    fn array(&self, file: &Path, fits: &[FitWork]) -> String {
        let (first, last) = (fits[0].place, fits[fits.len() - 1].place);
        let places = match last - first + 1 == fits.len() {
            true => format!("{first}-{last}"),
            false => fits.iter().map(|fit| fit.place.to_string()).collect::<Vec<_>>().join(","),
        };
        let (program, file) = (self.program.display(), file.display());
        format!(
            "The fits are prepared. This command runs them on nodes that see the same folders:\n\n    sbatch \
             --array={places} --requeue --cpus-per-task=1 --wrap='\"{program}\" --fit \"{file}\" \
             \"$SLURM_ARRAY_TASK_ID\"'\n\nTo keep each pair on one kind of CPU, add --constraint. When the array is \
             done, run the same sweep without --on: it collects the results and says which setting is better."
        )
    }
}

/// The dispatcher's process, which stops when its pipe closes.
struct Dispatcher {
    child: Child,
    pipe: Arc<Mutex<Option<ChildStdin>>>,
}

impl Dispatcher {
    fn new(mut child: Child) -> Self {
        let pipe = Arc::new(Mutex::new(child.stdin.take()));
        Self { child, pipe }
    }

    /// Waits for its end, and kills it if that takes too long. Says how it ended.
    fn end(&mut self) -> String {
        drop(lock(&self.pipe).take());
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(50)),
                _ => break,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        "it was killed, because it did not stop".into()
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.end();
    }
}

impl Sweep {
    /// Refuses what only this process can do.
    pub(super) fn check_for_cluster(&self) -> Result<()> {
        if self.augmentations.contains(&Augmentation::Online) {
            return Err(Error::Input(format!(
                "sweep {}: with the augmentation online each fit needs the teacher itself, which is not sent to a \
                 cluster; leave it out, or sweep without --on",
                self.name
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clusters_that_no_stranger_can_use_are_taken() {
        let good = [
            "local:1",
            "local:1000",
            "tcp://127.0.0.1:8786",
            "tcp://localhost:8786",
            "tcp://[::1]:8786",
            "tls://head:8786",
            "tls://10.0.0.7:8786",
            "tls://[fe80::1]:8786",
            "slurm",
            "slurm:8",
            "pbs",
            "slurm-array",
        ];
        for on in good {
            check(on).unwrap_or_else(|e| panic!("{on}: {e}"));
        }
        for (on, says) in [
            ("", "it may be local:N"),
            ("local", "such as local:2"),
            ("local:0", "such as local:2"),
            ("local:-1", "such as local:2"),
            ("local:2;reboot", "such as local:2"),
            ("local:99999999999999999999", "such as local:2"),
            ("tcp://0.0.0.0:8786", "whoever reaches that port"),
            ("tcp://10.0.0.7:8786", "whoever reaches that port"),
            ("tcp://127.0.0.1.evil.example:8786", "whoever reaches that port"),
            ("tcp://[::]:8786", "whoever reaches that port"),
            ("tcp://127.0.0.1", "HOST:PORT"),
            ("tcp://127.0.0.1:0", "HOST:PORT"),
            ("tcp://127.0.0.1:99999", "HOST:PORT"),
            ("tcp://user@127.0.0.1:8786", "HOST:PORT"),
            ("tls://he ad:8786", "HOST:PORT"),
            ("tls://:8786", "HOST:PORT"),
            ("slurm:0", "such as slurm:8"),
            ("slurm --wrap", "it may be local:N"),
            ("kubernetes", "docs/cluster.md"),
            ("ucx://head:8786", "it may be local:N"),
            ("inproc://x", "it may be local:N"),
            ("--help", "it may be local:N"),
        ] {
            let text = check(on).err().unwrap_or_else(|| panic!("{on:?} is taken")).to_string();
            assert!(text.contains(says), "{text}");
        }
    }
}
