//! Fits that run beside the cells: one after the other, on a thread of their own.

use super::fit::{LoopSettings, fit_as};
use super::{Control, Criterion, Event, Examples, FitOptions, History, Listener, Observer, Settings};
use crate::error::lock;
use crate::models::Model;
use crate::{Error, Result};
use kdlab_client::watch;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Runs fits in the order in which they were handed over, one at a time.
///
/// Its thread ends with the last of them when the queue is dropped; runs that wait by then are not lost.
#[derive(Default)]
pub struct Queue(Mutex<Option<Sender<Arc<Shared>>>>);

/// A fit in the background: how far it is, its curve so far, and a hand on it.
///
/// Dropping it lets the fit go on; its curve is then in its folder only.
pub struct Run(Arc<Shared>);

/// How far a background fit is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    Queued,
    /// In this epoch, counted from 1, of how many.
    Running {
        epoch: usize,
        epochs: usize,
    },
    /// Done or stopped.
    Finished,
    /// With what it ended.
    Failed(String),
}

struct Shared {
    control: Control,
    listener: Listener,
    begun: Settings,
    progress: Mutex<Progress>,
    changed: Condvar,
}

struct Progress {
    state: RunState,
    history: History,
    /// What the fit needs until its turn comes, and who looks out for a stop before that.
    waiting: Option<(Job, Observer)>,
    /// The model, and the error as it was, once it is over.
    result: Option<Result<Model>>,
}

struct Job {
    model: Model,
    train: Examples,
    validation: Examples,
    criterion: Criterion,
    options: FitOptions,
}

impl Queue {
    /// Hands a fit over and returns at once. It runs as [`super::fit`] does, with these differences: its listener hears
    /// `Queued` first, and Interrupt is not meant for it, but for the cell that runs.
    ///
    /// Two fits at a time share the processor, and libtorch's random numbers: a network with dropout draws others then.
    ///
    /// # Errors
    /// When no thread can be started. What is wrong with the fit itself is said by the run.
    pub fn spawn(
        &self,
        model: Model,
        train: &Examples,
        validation: &Examples,
        criterion: Criterion,
        options: FitOptions,
    ) -> Result<Run> {
        let job = Job { train: train.share()?, validation: validation.share()?, model, criterion, options };
        let options = &job.options;
        let (history, settings) = (options.history(&job.criterion, train), options.settings(&job.criterion));
        // From here on, a stop is meant for this run.
        options.control.take_stop();
        let shared = Arc::new(Shared {
            control: options.control.clone(),
            listener: options.listener.clone(),
            begun: settings,
            progress: Mutex::new(Progress {
                state: RunState::Queued,
                history: history.clone(),
                waiting: None,
                result: None,
            }),
            changed: Condvar::new(),
        });
        shared.listener.tell(Event::Queued { history, settings: options.control.over(settings) });
        let run = Arc::downgrade(&shared);
        let stops = shared.control.on_change(move || {
            if let Some(run) = run.upgrade() {
                run.leave_queue();
            }
        });
        shared.progress().waiting = Some((job, stops));
        self.push(Arc::clone(&shared))?;
        Ok(Run(shared))
    }

    fn push(&self, run: Arc<Shared>) -> Result<()> {
        let mut sender = lock(&self.0);
        let run = match &*sender {
            Some(worker) => match worker.send(run) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(run)) => run,
            },
            None => run,
        };
        let (worker, runs) = mpsc::channel::<Arc<Shared>>();
        std::thread::Builder::new()
            .name("kdlab-runs".into())
            .spawn(move || runs.iter().for_each(|run| run.work()))
            .map_err(|e| Error::Io(format!("starting a thread for background runs: {e}")))?;
        let _ = worker.send(run);
        *sender = Some(worker);
        Ok(())
    }
}

impl Run {
    pub fn state(&self) -> RunState {
        self.0.progress().state.clone()
    }

    /// The curve so far.
    pub fn history(&self) -> History {
        self.0.progress().history.clone()
    }

    /// Temperature, alpha and learning rate as they are now.
    pub fn settings(&self) -> Settings {
        self.0.control.over(self.0.begun)
    }

    /// Temperature, alpha, learning rate, pause and stop of this run.
    pub fn control(&self) -> Control {
        self.0.control.clone()
    }

    /// Whether it is over, well or not.
    pub fn is_finished(&self) -> bool {
        matches!(self.state(), RunState::Finished | RunState::Failed(_))
    }

    /// Ends it after its current batch, or before its first if its turn has not come.
    pub fn stop(&self, reason: &str) {
        self.0.control.stop(reason);
    }

    /// Waits for the end: the model with the weights of the best epoch, and the whole history. Interrupt stops the run, and
    /// gives what it has come to.
    ///
    /// # Errors
    /// With what the fit ended.
    pub fn wait(self) -> Result<(Model, History)> {
        let name = self.0.progress().history.name.clone();
        let control = self.control();
        let _watch = watch(&name, move |reason| control.stop(reason));
        if !self.is_finished() {
            self.0.listener.tell(Event::Awaited { name });
        }
        let mut progress = self.0.progress();
        loop {
            if let Some(result) = progress.result.take() {
                return Ok((result?, progress.history.clone()));
            }
            progress = self.0.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    /// Where it was stopped before its turn came.
    fn leave_queue(self: &Arc<Self>) {
        let mut progress = self.progress();
        if self.control.stopping().is_none() {
            return;
        }
        let Some((job, stops)) = progress.waiting.take() else { return };
        progress.history.stopped = self.control.stopping();
        let history = progress.history.clone();
        drop((progress, stops));
        self.end(Ok(job.model));
        // Not here: this may be the thread on which the listener's own display gets its answers.
        let this = Arc::clone(self);
        std::thread::spawn(move || this.listener.tell(Event::Finished(history)));
    }

    /// Its turn has come.
    fn work(self: Arc<Self>) {
        let mut progress = self.progress();
        let Some((job, stops)) = progress.waiting.take() else { return };
        progress.state = RunState::Running { epoch: 1, epochs: job.options.epochs };
        drop((progress, stops));
        let Job { model, train, validation, criterion, options } = job;
        let this = Arc::clone(&self);
        let listener = Listener::new(move |event| {
            this.note(event);
            this.listener.hear(event);
        });
        let options = FitOptions { listener, ..options };
        // A network or a loss from a cell may panic.
        let correct = LoopSettings::default();
        let fit = || fit_as(&correct, &model, &train, &validation, &criterion, &options);
        let fitted = catch_unwind(AssertUnwindSafe(fit));
        let result = fitted.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Error::Torch(format!("the fit panicked: {}", text.lines().next().unwrap_or_default())))
        });
        self.end(result.map(|history| {
            self.progress().history = history;
            model
        }));
    }

    fn note(&self, event: &Event) {
        let mut progress = self.progress();
        match event {
            Event::Started { history, .. } => progress.history = history.clone(),
            Event::Changed { change, .. } => progress.history.changes.push(*change),
            Event::Epoch { record, .. } => progress.history.records.push(*record),
            _ => return,
        }
        let (done, epochs) = (progress.history.records.len(), progress.history.epochs);
        progress.state = RunState::Running { epoch: (done + 1).min(epochs), epochs };
    }

    fn end(&self, result: Result<Model>) {
        let mut progress = self.progress();
        progress.state = match &result {
            Ok(_) => RunState::Finished,
            Err(e) => RunState::Failed(e.to_string()),
        };
        progress.result = Some(result);
        self.changed.notify_all();
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunState::Queued => f.write_str("queued"),
            RunState::Running { epoch, epochs } => write!(f, "running, epoch {epoch} of {epochs}"),
            RunState::Finished => f.write_str("finished"),
            RunState::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.0.progress();
        let history = &progress.history;
        write!(f, "{}: {}", history.name, progress.state)?;
        if let Some(why) = &history.stopped {
            write!(f, ", stopped: {why}")?;
        }
        match history.best() {
            Some(best) => {
                let accuracy = 100.0 * best.validation.accuracy;
                write!(f, "; best validation accuracy {accuracy:.1} % in epoch {}", best.epoch)
            }
            None => Ok(()),
        }
    }
}
