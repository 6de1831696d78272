//! Fits in the background: a thread runs them one after the other while the user runs other cells.

use super::checks::Task;
use super::fit::{LoopSettings, fit_with};
use super::{Control, Criterion, Event, Examples, FitOptions, History, Listener, Observer};
use crate::error::lock;
use crate::models::Model;
use crate::{Error, Result};
use kdlab_client::watch;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Runs fits in the order in which they were queued, one at a time.
///
/// After the queue is dropped, its thread runs the fits that still wait, and then ends.
#[derive(Default)]
pub(crate) struct Queue(Mutex<Option<Sender<Arc<BackgroundFit>>>>);

/// A fit in the background. As the value of a cell it shows its state and the curve so far.
///
/// If you drop it, the fit goes on, and only the fit's folder has its curve.
pub struct Run(Arc<BackgroundFit>);

struct BackgroundFit {
    control: Control,
    listener: Listener,
    state: Mutex<FitState>,
    changed: Condvar,
}

struct FitState {
    history: History,
    /// Inputs of a fit that waits for its turn, and the observer that notices a stop before that.
    waiting: Option<(QueuedFit, Observer)>,
    /// The trained model, or the error, of a fit that has ended.
    result: Option<Result<Model>>,
}

struct QueuedFit {
    model: Model,
    train: Examples,
    validation: Examples,
    criterion: Criterion,
    options: FitOptions,
}

impl Queue {
    /// Queues a fit and returns at once. Unlike [`super::fit`], it sends [`Event::Queued`] to its listener first, and
    /// Interrupt does not stop it, because Interrupt is meant for the cell that runs.
    ///
    /// # Errors
    /// When no thread can be started. [`Run::wait`] returns the errors of the fit itself.
    pub(crate) fn spawn(
        &self,
        model: Model,
        train: &Examples,
        validation: &Examples,
        criterion: Criterion,
        options: FitOptions,
    ) -> Result<Run> {
        let inputs = QueuedFit { train: train.share()?, validation: validation.share()?, model, criterion, options };
        let options = &inputs.options;
        let (history, own) = (options.history(&inputs.criterion, train), options.hyperparameters(&inputs.criterion));
        // From here on, a stop is meant for this run.
        options.control.take_stop();
        let fit = Arc::new(BackgroundFit {
            control: options.control.clone(),
            listener: options.listener.clone(),
            state: Mutex::new(FitState { history: history.clone(), waiting: None, result: None }),
            changed: Condvar::new(),
        });
        fit.listener.notify(&Event::Queued { history, hyperparameters: options.control.over(own) });
        let weak = Arc::downgrade(&fit);
        let observer = fit.control.on_change(move || {
            if let Some(fit) = weak.upgrade() {
                fit.leave_queue();
            }
        });
        fit.state().waiting = Some((inputs, observer));
        self.push(Arc::clone(&fit))?;
        Ok(Run(fit))
    }

    /// Hands a fit to the thread, which is started if there is none.
    fn push(&self, fit: Arc<BackgroundFit>) -> Result<()> {
        let mut sender = lock(&self.0);
        let fit = match &*sender {
            Some(worker) => match worker.send(fit) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(fit)) => fit,
            },
            None => fit,
        };
        let (worker, fits) = mpsc::channel::<Arc<BackgroundFit>>();
        std::thread::Builder::new()
            .name("kdlab-runs".into())
            .spawn(move || fits.iter().for_each(|fit| fit.run()))
            .map_err(|e| Error::Io(format!("starting a thread for background runs: {e}")))?;
        let _ = worker.send(fit);
        *sender = Some(worker);
        Ok(())
    }
}

impl Run {
    /// Returns the curve so far.
    pub fn history(&self) -> History {
        self.0.state().history.clone()
    }

    /// Returns the handle by which you change, pause and stop this run.
    pub fn control(&self) -> Control {
        self.0.control.clone()
    }

    /// Waits for the end, and returns the model with the weights of the best epoch and the whole history. Interrupt
    /// stops the run; `wait` then returns the best weights so far.
    ///
    /// # Errors
    /// As [`super::fit`], and when the network or the loss panicked.
    pub fn wait(self) -> Result<(Model, History)> {
        let name = self.0.state().history.name.clone();
        let control = self.control();
        let _watch = watch(&name, move |reason| control.stop(reason));
        if self.0.state().result.is_none() {
            self.0.listener.notify(&Event::Awaited { name });
        }
        let mut state = self.0.state();
        loop {
            if let Some(result) = state.result.take() {
                return Ok((result?, state.history.clone()));
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl BackgroundFit {
    fn state(&self) -> MutexGuard<'_, FitState> {
        lock(&self.state)
    }

    /// Ends a fit that was stopped before its turn came.
    fn leave_queue(self: &Arc<Self>) {
        let mut state = self.state();
        if self.control.stopping().is_none() {
            return;
        }
        let Some((inputs, observer)) = state.waiting.take() else { return };
        state.history.stopped = self.control.stopping();
        let history = state.history.clone();
        drop((state, observer));
        self.end(Ok(inputs.model));
        // On another thread, because this one may be the thread that receives the answers of the listener's display.
        let this = Arc::clone(self);
        std::thread::spawn(move || this.listener.notify(&Event::Finished(history)));
    }

    /// Runs the fit, unless it was stopped before.
    fn run(self: Arc<Self>) {
        let mut state = self.state();
        let Some((inputs, observer)) = state.waiting.take() else { return };
        drop((state, observer));
        let QueuedFit { model, train, validation, criterion, options } = inputs;
        let this = Arc::clone(&self);
        let listener = Listener::new(move |event| {
            this.record(event);
            this.listener.notify(event);
        });
        let options = FitOptions { listener, ..options };
        let task =
            Task { model: &model, train: &train, validation: &validation, criterion: &criterion, options: &options };
        let result = caught(|| fit_with(&LoopSettings::default(), task));
        self.end(result.map(|history| {
            self.state().history = history;
            model
        }));
    }

    fn record(&self, event: &Event) {
        let mut state = self.state();
        match event {
            Event::Started { history, .. } => state.history = history.clone(),
            Event::Changed { change, .. } => state.history.changes.push(*change),
            Event::Epoch { record, .. } => state.history.records.push(*record),
            _ => {}
        }
    }

    fn end(&self, result: Result<Model>) {
        self.state().result = Some(result);
        self.changed.notify_all();
    }
}

/// Runs a fit and returns a panic as an error: a network or a loss from a cell may panic.
pub(crate) fn caught<T>(fit: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(fit)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Error::Torch(format!("the fit panicked: {}", text.lines().next().unwrap_or_default())))
    })
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state();
        let history = &state.history;
        write!(f, "{}: ", history.name)?;
        match &state.result {
            Some(Ok(_)) => f.write_str("finished")?,
            Some(Err(e)) => write!(f, "failed: {e}")?,
            None if state.waiting.is_some() => f.write_str("queued")?,
            None => {
                let (done, epochs) = (history.records.len(), history.epochs);
                write!(f, "running, epoch {} of {epochs}", (done + 1).min(epochs))?;
            }
        }
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
