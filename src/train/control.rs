//! A handle on a running fit: temperature, alpha, learning rate, pause and stop.

use super::Hyperparameters;
use super::hyperparameters::Overrides;
use crate::Result;
use crate::error::lock;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A shared handle on a running fit. Before every batch, the loop reads temperature, alpha and learning rate from it,
/// waits while it is paused, and ends when it was stopped.
///
/// Clones share one state. The fit keeps its own value where none was set.
#[derive(Clone, Default)]
pub struct Control(Arc<ControlCell>);

#[derive(Default)]
struct ControlCell {
    state: Mutex<ControlState>,
    changed: Condvar,
    observers: Mutex<Vec<Weak<dyn Fn() + Send + Sync>>>,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct ControlState {
    overrides: Overrides,
    paused: bool,
    stop: Option<String>,
}

/// Keeps a callback of [`Control::on_change`] registered; dropping it ends the calls.
#[must_use = "dropping it at once ends the calls"]
pub(crate) struct Observer {
    _callback: Arc<dyn Fn() + Send + Sync>,
}

impl Control {
    /// Sets the temperature from the next batch on.
    ///
    /// # Errors
    /// When it is not above 0 or not finite.
    pub fn set_temperature(&self, temperature: f64) -> Result<()> {
        self.set(Overrides { temperature: Some(temperature), ..Default::default() })
    }

    /// Sets the weight of the teacher from the next batch on.
    ///
    /// # Errors
    /// When it is outside [0, 1].
    pub fn set_alpha(&self, alpha: f64) -> Result<()> {
        self.set(Overrides { alpha: Some(alpha), ..Default::default() })
    }

    /// Sets the learning rate from the next batch on.
    ///
    /// # Errors
    /// When it is not above 0 or not finite.
    pub fn set_learning_rate(&self, learning_rate: f64) -> Result<()> {
        self.set(Overrides { learning_rate: Some(learning_rate), ..Default::default() })
    }

    /// Sets the values that are not `None` in `overrides`.
    pub(super) fn set(&self, overrides: Overrides) -> Result<()> {
        let overrides = overrides.check()?;
        self.change(|state| state.overrides.update(overrides));
        Ok(())
    }

    /// Returns the values that the user set.
    pub(super) fn overrides(&self) -> Overrides {
        lock(&self.0.state).overrides
    }

    /// Returns the values in force for a fit that began with `own`: the user's where one was set, else its own.
    pub(crate) fn over(&self, own: Hyperparameters) -> Hyperparameters {
        self.overrides().over(own)
    }

    /// Pauses the running fit before its next batch, until [`Control::resume`] or [`Control::stop`]. The history does
    /// not count the time of the pause.
    pub fn pause(&self) {
        self.change(|state| state.paused = true);
    }

    /// Lets a paused fit go on.
    pub fn resume(&self) {
        self.change(|state| state.paused = false);
    }

    pub(crate) fn is_paused(&self) -> bool {
        lock(&self.0.state).paused
    }

    /// Ends the running fit after its current batch of training or validation, also while it is paused. `reason`
    /// becomes `stopped` in its history.
    pub fn stop(&self, reason: &str) {
        self.change(|state| {
            state.stop = Some(reason.to_owned());
            state.paused = false;
        });
    }

    /// Returns the reason of a stop that the fit has not obeyed yet.
    pub(crate) fn stopping(&self) -> Option<String> {
        lock(&self.0.state).stop.clone()
    }

    /// Withdraws such a stop and returns its reason.
    pub(super) fn take_stop(&self) -> Option<String> {
        let mut reason = None;
        self.change(|state| reason = state.stop.take());
        reason
    }

    /// Waits while the fit is paused, and returns how long that took.
    pub(super) fn wait_while_paused(&self) -> Duration {
        let state = lock(&self.0.state);
        if !state.paused {
            return Duration::ZERO;
        }
        let start = Instant::now();
        let waits = |state: &mut ControlState| state.paused && state.stop.is_none();
        drop(self.0.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner));
        start.elapsed()
    }

    /// Calls `callback` after every change, on the thread that made it, until the observer is dropped. The callback
    /// may read and change the control.
    pub(crate) fn on_change(&self, callback: impl Fn() + Send + Sync + 'static) -> Observer {
        let callback: Arc<dyn Fn() + Send + Sync> = Arc::new(callback);
        lock(&self.0.observers).push(Arc::downgrade(&callback));
        Observer { _callback: callback }
    }

    /// Changes the state. If that made a difference, wakes a paused fit and calls the observers.
    fn change(&self, change: impl FnOnce(&mut ControlState)) {
        {
            let mut state = lock(&self.0.state);
            let before = state.clone();
            change(&mut state);
            if *state == before {
                return;
            }
        }
        self.0.changed.notify_all();
        // Callbacks run without a lock: they may use the control.
        let callbacks: Vec<_> = {
            let mut observers = lock(&self.0.observers);
            observers.retain(|callback| callback.strong_count() > 0);
            observers.iter().filter_map(Weak::upgrade).collect()
        };
        callbacks.iter().for_each(|callback| callback());
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lock(&self.0.state).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn an_observer_sees_every_change_until_it_is_dropped() {
        let control = Control::default();
        let count = Arc::new(AtomicUsize::new(0));
        let (counts, reads) = (Arc::clone(&count), control.clone());
        let observer = control.on_change(move || {
            let _ = (reads.overrides(), counts.fetch_add(1, Ordering::SeqCst));
        });
        control.set_temperature(3.0).unwrap();
        control.set_temperature(3.0).unwrap(); // no change
        control.set_learning_rate(1e-4).unwrap();
        assert!(control.set_learning_rate(0.0).unwrap_err().to_string().contains("learning rate must be > 0, got 0"));
        assert!(control.set_learning_rate(f64::INFINITY).is_err());
        control.pause();
        assert_eq!(count.load(Ordering::SeqCst), 3);
        drop(observer);
        control.resume();
        assert_eq!(count.load(Ordering::SeqCst), 3);
    }
}
