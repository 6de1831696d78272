//! Runs a sweep: every fit of its grid that is not on disk yet, as many side by side as there are cores, or on a
//! cluster.

use super::board::{Board, SweepListener};
use super::cluster::{Cluster, Ongoing};
use super::grid::{Setting, Sweep};
use super::one_fit::{fit_name, threads_of_fit};
use super::teachers::{Next, Runner, SweepData, SweepInputs};
use super::{SweepReport, SweepRun};
use crate::error::lock;
use crate::store::atomic::{holder, try_lock};
use crate::store::digest::digest;
use crate::store::threads::Share;
use crate::train::{Control, caught};
use crate::{Error, Result};
use kdlab_client::Watch;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use tch::Device;

impl Sweep {
    /// Runs everything that `folder` does not hold yet, and returns all runs of the grid. After a kill, call it again:
    /// a run that was cut short continues after its last epoch. Runs of equal settings are taken from the folder,
    /// whatever grid they were made for.
    ///
    /// On the CPU each fit takes one thread, and as many run side by side as libtorch would take threads, or fewer
    /// while others compute on the machine: small fits scale badly over threads. So results do not depend on the number
    /// of cores.
    ///
    /// With a `cluster`, its workers run the fits, each as a process with one thread: the results are the same.
    ///
    /// On the live kernel, Interrupt ends the sweep: it returns the runs that are done, with `stopped` set.
    ///
    /// # Errors
    /// When a value is out of its range, another process runs this sweep, and as [`fit`](crate::train::fit).
    pub(crate) fn run(
        &self,
        inputs: &SweepInputs,
        folder: &Path,
        listener: &SweepListener,
        cluster: Option<&Cluster>,
    ) -> Result<SweepReport> {
        self.check(inputs.data)?;
        self.check_others(inputs.others, inputs.data)?;
        self.check_networks(inputs.student, inputs.backbone.arch)?;
        cluster.map_or(Ok(()), |_| self.check_for_cluster())?;
        let data = SweepData::new(self, inputs)?;
        let _lock = lock_folder(&self.name, folder)?;
        let before = SweepReport::runs_before(folder)?;
        let controls = Arc::new(Mutex::new(Vec::<Control>::new()));
        let stop_all = {
            let controls = Arc::clone(&controls);
            move |reason: &str| lock(&controls).iter().for_each(|control| control.stop(reason))
        };
        let interrupt = kdlab_client::watch(&self.name, stop_all.clone());
        interrupt.afterwards(inputs.afterwards);
        let report = SweepReport {
            sweep: self.clone(),
            profile: inputs.profile.to_owned(),
            data: inputs.data.name.clone(),
            images: data.maker.split.len(),
            conditions: conditions(inputs),
            runs: Vec::new(),
            stopped: None,
        };
        let all = self.all_runs();
        let board = Board::new(report, all.len(), listener);
        let mut runner = Runner::new(self, &data);
        let mut failure = runner.prepare(&all, &board).err();
        let mut threads = ThreadsOfFits::on(inputs.device);
        match cluster {
            _ if failure.is_some() => (),
            Some(cluster) => {
                let control = Control::default();
                lock(&controls).push(control.clone());
                // It may have come before the control was known.
                if let Some(reason) = interrupt.reason() {
                    control.stop(&reason);
                }
                let now = Ongoing { folder, before: &before, board: &board, control };
                failure = cluster.run(&mut runner, inputs.data, inputs.cache, &all, &now).err();
            }
            None => {
                let board = &board;
                let stopping = Stopping { interrupt: &interrupt, controls: &controls, all: &stop_all };
                failure = side_by_side_here(&mut threads, &mut runner, &all, folder, &before, board, &stopping)?;
            }
        }
        board.end(failure, &folder.join("sweep.json"), &before)
    }
}

/// Digest of the images, and of how the teacher is made.
fn conditions(inputs: &SweepInputs) -> String {
    let SweepInputs { data, backbone, teacher_transform, head_options: head, .. } = inputs;
    let head = (head.epochs, head.batch_size, head.learning_rate, head.seed);
    let teacher = format!("{} {teacher_transform:?} {head:?}", backbone.arch);
    digest(&[data.key.as_bytes(), teacher.as_bytes()])
}

/// How the fits of this process are stopped.
struct Stopping<'a> {
    interrupt: &'a Watch,
    /// The controls of all fits that were begun.
    controls: &'a Mutex<Vec<Control>>,
    all: &'a dyn Fn(&str),
}

/// Makes all runs in this process, as many at once as its share of the cores. Returns why it ended before the last one.
fn side_by_side_here(
    threads: &mut ThreadsOfFits,
    runner: &mut Runner,
    all: &[(Setting, u64)],
    folder: &Path,
    before: &[SweepRun],
    board: &Board,
    stopping: &Stopping,
) -> Result<Option<Error>> {
    let mut failure = None;
    std::thread::scope(|scope| -> Result<()> {
        let (sender, ended) = channel();
        let (mut waiting, mut running) = (all.iter().enumerate(), 0);
        loop {
            while running < threads.side_by_side() && failure.is_none() {
                if let Some(reason) = stopping.interrupt.reason() {
                    failure = Some(Error::Interrupted(reason));
                    break;
                }
                let Some((place, (setting, seed))) = waiting.next() else { break };
                board.begin(place, &fit_name(setting, *seed));
                match runner.next(setting, *seed, folder, board.listener(place), before) {
                    Ok(Next::Done(run)) => board.finish(place, *run),
                    Ok(Next::Fit(fit)) => {
                        lock(stopping.controls).push(fit.options.control.clone());
                        let sender = sender.clone();
                        let work = move || {
                            let result = caught(|| fit.run());
                            let _ = sender.send((place, result));
                        };
                        let thread = std::thread::Builder::new().name("kdlab-sweep".into());
                        thread
                            .spawn_scoped(scope, work)
                            .map_err(|e| Error::Io(format!("starting a thread for a fit: {e}")))?;
                        running += 1;
                        // It may have come before the control was known.
                        if let Some(reason) = stopping.interrupt.reason() {
                            (stopping.all)(&reason);
                        }
                    }
                    Err(error) => failure = Some(error),
                }
            }
            if running == 0 {
                return Ok(());
            }
            let Ok((place, result)) = ended.recv() else { return Ok(()) };
            running -= 1;
            match result.and_then(|run| board.keep(place, run, folder, before)) {
                Ok(()) => (),
                Err(error) => {
                    (stopping.all)("another run failed");
                    failure.get_or_insert(error);
                }
            }
        }
    })?;
    Ok(failure)
}

/// Threads of the CPU while a sweep runs: one for each fit. Dropping it gives libtorch back what it had.
struct ThreadsOfFits {
    /// The cores for all fits. `None` on a GPU.
    share: Option<Share>,
    before: i32,
}

impl ThreadsOfFits {
    fn on(device: Device) -> Self {
        let before = tch::get_num_threads();
        let share = threads_of_fit(device).map(|of_fit| {
            let share = Share::take();
            tch::set_num_threads(of_fit);
            share
        });
        Self { share, before }
    }

    /// Number of fits at once.
    fn side_by_side(&mut self) -> usize {
        self.share.as_mut().map_or(1, Share::look)
    }
}

impl Drop for ThreadsOfFits {
    fn drop(&mut self) {
        if self.share.is_some() {
            tch::set_num_threads(self.before);
        }
    }
}

/// Locks the folder of a sweep: two sweeps that write one folder would each drop the runs of the other.
fn lock_folder(name: &str, folder: &Path) -> Result<std::fs::File> {
    let path = folder.join("sweep.lock");
    try_lock(&path)?.ok_or_else(|| {
        let holder = holder(&path);
        Error::Input(format!(
            "sweep {name} is already running: {holder}; wait for it, stop it, or give this one another name"
        ))
    })
}
