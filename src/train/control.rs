//! What may be changed while a fit runs: a handle shared by the loop and whoever holds a clone of it.

use super::loss::{check_alpha, check_temperature};
use super::{KdLoss, Settings};
use crate::error::lock;
use crate::{Error, Result};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A shared handle: the loop reads temperature, alpha and learning rate from it before every batch, waits while it is
/// paused and stops when asked to.
///
/// Clones share one state. A value that was never set leaves the fit's own.
#[derive(Clone, Default)]
pub struct Control(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    observers: Mutex<Observers>,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct State {
    temperature: Option<f64>,
    alpha: Option<f64>,
    learning_rate: Option<f64>,
    paused: bool,
    stop: Option<String>,
}

#[derive(Default)]
struct Observers {
    next: u64,
    hear: Vec<(u64, Arc<dyn Fn() + Send + Sync>)>,
}

/// Ends what [`Control::on_change`] began when it is dropped.
#[must_use = "dropped at once, it hears nothing"]
pub struct Observer {
    of: Weak<Shared>,
    number: u64,
}

impl Drop for Observer {
    fn drop(&mut self) {
        if let Some(shared) = self.of.upgrade() {
            lock(&shared.observers).hear.retain(|(number, _)| *number != self.number);
        }
    }
}

impl Control {
    pub fn new() -> Self {
        Self::default()
    }

    /// From the next batch on, distil at this temperature (> 0).
    pub fn set_temperature(&self, temperature: f64) -> Result<()> {
        let temperature = check_temperature(temperature)?;
        self.change(|state| state.temperature = Some(temperature));
        Ok(())
    }

    /// From the next batch on, weigh the teacher by alpha (in [0, 1]).
    pub fn set_alpha(&self, alpha: f64) -> Result<()> {
        let alpha = check_alpha(alpha)?;
        self.change(|state| state.alpha = Some(alpha));
        Ok(())
    }

    /// From the next batch on, Adam's learning rate (> 0).
    pub fn set_learning_rate(&self, learning_rate: f64) -> Result<()> {
        let learning_rate = check_learning_rate(learning_rate)?;
        self.change(|state| state.learning_rate = Some(learning_rate));
        Ok(())
    }

    /// The temperature that was set here; none leaves the criterion's.
    pub fn temperature(&self) -> Option<f64> {
        lock(&self.0.state).temperature
    }

    /// The alpha that was set here; none leaves the criterion's.
    pub fn alpha(&self) -> Option<f64> {
        lock(&self.0.state).alpha
    }

    /// The learning rate that was set here; none leaves the options'.
    pub fn learning_rate(&self) -> Option<f64> {
        lock(&self.0.state).learning_rate
    }

    /// Holds the running fit before its next batch, until [`Control::resume`] or a stop. The time does not count.
    pub fn pause(&self) {
        self.change(|state| state.paused = true);
    }

    /// Lets a paused fit go on.
    pub fn resume(&self) {
        self.change(|state| state.paused = false);
    }

    pub fn is_paused(&self) -> bool {
        lock(&self.0.state).paused
    }

    /// Ends the running fit after its current batch, of training or of validation, a paused one too; `reason` stands in
    /// the history.
    pub fn stop(&self, reason: &str) {
        self.change(|state| {
            state.stop = Some(reason.to_owned());
            state.paused = false;
        });
    }

    /// The reason of a pending stop.
    pub fn stopping(&self) -> Option<String> {
        lock(&self.0.state).stop.clone()
    }

    /// Calls `hear` after every change, on the thread that made it, until the observer is dropped. What changed is read
    /// from the control.
    pub fn on_change(&self, hear: impl Fn() + Send + Sync + 'static) -> Observer {
        let mut observers = lock(&self.0.observers);
        let number = observers.next;
        observers.next += 1;
        observers.hear.push((number, Arc::new(hear)));
        Observer { of: Arc::downgrade(&self.0), number }
    }

    /// The values in force now for a fit that began with these.
    pub(crate) fn over(&self, begun: Settings) -> Settings {
        let state = lock(&self.0.state);
        Settings {
            temperature: begun.temperature.map(|t| state.temperature.unwrap_or(t)),
            alpha: begun.alpha.map(|a| state.alpha.unwrap_or(a)),
            learning_rate: state.learning_rate.unwrap_or(begun.learning_rate),
        }
    }

    pub(super) fn take_stop(&self) -> Option<String> {
        let mut reason = None;
        self.change(|state| reason = state.stop.take());
        reason
    }

    /// What was set by hand, to be kept with a checkpoint: temperature, alpha, learning rate.
    pub(super) fn by_hand(&self) -> [Option<f64>; 3] {
        let state = lock(&self.0.state);
        [state.temperature, state.alpha, state.learning_rate]
    }

    /// Returns at once unless paused; gives the time it took.
    pub(super) fn wait_while_paused(&self) -> Duration {
        let state = lock(&self.0.state);
        if !state.paused {
            return Duration::ZERO;
        }
        let start = Instant::now();
        drop(
            self.0.changed.wait_while(state, |s| s.paused && s.stop.is_none()).unwrap_or_else(PoisonError::into_inner),
        );
        start.elapsed()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = lock(&self.0.state);
            let before = state.clone();
            change(&mut state);
            if *state == before {
                return;
            }
        }
        self.0.changed.notify_all();
        // Without any lock: who hears of it may read, and even set, the control.
        let hear: Vec<_> = lock(&self.0.observers).hear.iter().map(|(_, hear)| Arc::clone(hear)).collect();
        hear.iter().for_each(|hear| hear());
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lock(&self.0.state).fmt(f)
    }
}

impl Settings {
    /// The distillation loss at these values; none for a fit on hard labels.
    pub(super) fn kd_loss(&self) -> Result<Option<KdLoss>> {
        self.temperature.zip(self.alpha).map(|(t, a)| KdLoss::new(t, a)).transpose()
    }
}

/// A slider counts its steps in floats: 9.799999999999999 is 9.8.
pub(crate) fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

pub(crate) fn check_learning_rate(learning_rate: f64) -> Result<f64> {
    if learning_rate.is_finite() && learning_rate > 0.0 {
        Ok(learning_rate)
    } else {
        Err(Error::Input(format!("learning rate must be > 0, got {learning_rate}; try 1e-3")))
    }
}
