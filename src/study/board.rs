//! What a sweep has come to while its fits run side by side, for its listener and for the disk.

use super::report::mean;
use super::{SweepReport, SweepRun};
use crate::error::lock;
use crate::train::{Event, Listener, Progress};
use crate::{Error, Result};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Progress of a sweep.
#[derive(Clone, Debug)]
pub(crate) struct SweepProgress {
    /// The runs that are being made, and the progress of each: of its fit, or of a pass of the teacher before it. Empty
    /// when the sweep is over.
    pub running: Vec<(String, Option<Progress>)>,
    /// Number of all runs.
    pub total: usize,
    /// Estimate for all runs that are left; `None` before the end of the first fit.
    pub seconds_left: Option<f64>,
}

/// Callback for the progress of a sweep, called a few times a second.
pub(crate) type SweepListener = Arc<dyn Fn(&SweepReport, &SweepProgress) + Send + Sync>;

/// What a sweep has come to, in the hands of all its fits.
#[derive(Clone)]
pub(super) struct Board {
    state: Arc<Mutex<State>>,
    listener: SweepListener,
}

struct State {
    report: SweepReport,
    /// Places in the grid of the report's runs.
    places: Vec<usize>,
    /// Place, name and progress of the runs that are being made.
    running: Vec<(usize, String, Option<Progress>)>,
    /// Seconds of each fit that was made now.
    spent: Vec<f64>,
    total: usize,
}

impl State {
    fn progress(&self) -> SweepProgress {
        let running = self.running.iter().map(|(_, name, progress)| (name.clone(), progress.clone())).collect();
        let now: f64 = self.running.iter().filter_map(|(.., progress)| Some(progress.as_ref()?.seconds_left)).sum();
        let waiting = self.total - self.places.len() - self.running.len();
        // The estimate for each run that waits is the mean of those so far.
        let left = |each: f64| (now + each * waiting as f64) / self.running.len().max(1) as f64;
        SweepProgress { running, total: self.total, seconds_left: mean(&self.spent).map(left) }
    }

    fn finish(&mut self, place: usize, run: SweepRun) {
        self.running.retain(|(running, ..)| *running != place);
        let at = self.places.partition_point(|done| *done < place);
        self.places.insert(at, place);
        self.report.runs.insert(at, run);
    }
}

impl Board {
    /// Of a sweep of `total` runs, whose report has none yet.
    pub(super) fn new(report: SweepReport, total: usize, listener: &SweepListener) -> Self {
        let state = State { report, places: Vec::new(), running: Vec::new(), spent: Vec::new(), total };
        Self { state: Arc::new(Mutex::new(state)), listener: Arc::clone(listener) }
    }

    /// Adds a run that is being made; one that begins again counts once.
    pub(super) fn begin(&self, place: usize, name: &str) {
        let mut state = lock(&self.state);
        state.running.retain(|(running, ..)| *running != place);
        state.running.push((place, name.to_owned(), None));
    }

    /// Forgets what was being made, once it is made.
    pub(super) fn clear(&self) {
        lock(&self.state).running.clear();
    }

    /// A listener for the run at `place` that passes its progress on.
    pub(super) fn listener(&self, place: usize) -> Listener {
        let board = self.clone();
        Listener::new(move |event| {
            if let Event::Progress(progress) = event {
                let mut state = lock(&board.state);
                let run = state.running.iter_mut().find(|(running, ..)| *running == place);
                if let Some((.., shown)) = run {
                    *shown = Some(progress.clone());
                }
                (board.listener)(&state.report, &state.progress());
            }
        })
    }

    /// Adds a run that was found, or that is on disk now.
    pub(super) fn finish(&self, place: usize, run: SweepRun) {
        lock(&self.state).finish(place, run);
    }

    /// Adds a run that was made, and writes it to disk.
    pub(super) fn keep(&self, place: usize, run: SweepRun, folder: &Path, before: &[SweepRun]) -> Result<()> {
        let own = folder.join(format!("{}-seed{}", run.setting, run.seed));
        run.save(&own)?;
        let mut state = lock(&self.state);
        state.spent.push(run.seconds);
        state.finish(place, run);
        state.report.save(&folder.join("sweep.json"), before)?;
        // Only an unfinished run needs its checkpoint.
        let _ = std::fs::remove_file(own.join("checkpoint.safetensors"));
        Ok(())
    }

    /// Ends the sweep, and returns its report, unless a run failed.
    pub(super) fn end(&self, failure: Option<Error>, path: &Path, before: &[SweepRun]) -> Result<SweepReport> {
        let mut state = lock(&self.state);
        match failure {
            Some(Error::Interrupted(reason)) => state.report.stopped = Some(reason),
            Some(error) => return Err(error),
            None => (),
        }
        state.running.clear();
        state.report.save(path, before)?;
        (self.listener)(&state.report, &SweepProgress { seconds_left: None, ..state.progress() });
        Ok(state.report.clone())
    }
}
