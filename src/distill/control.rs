//! What may be changed while a fit runs: a handle shared by the loop and whoever holds a clone of it.

use super::KdLoss;
use super::loss::{check_alpha, check_temperature};
use crate::Result;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A shared handle: the loop reads temperature and alpha from it before every batch and stops when asked to.
///
/// Clones share one state. A value that was never set leaves the criterion's own.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<Mutex<State>>);

#[derive(Debug, Default, Clone)]
struct State {
    temperature: Option<f64>,
    alpha: Option<f64>,
    stop: Option<String>,
}

impl Control {
    pub fn new() -> Self {
        Self::default()
    }

    /// From the next batch on, distil at this temperature (> 0).
    pub fn set_temperature(&self, temperature: f64) -> Result<()> {
        self.state().temperature = Some(check_temperature(temperature)?);
        Ok(())
    }

    /// From the next batch on, weigh the teacher by alpha (in [0, 1]).
    pub fn set_alpha(&self, alpha: f64) -> Result<()> {
        self.state().alpha = Some(check_alpha(alpha)?);
        Ok(())
    }

    /// Ends the running fit after its current batch; `reason` stands in the history.
    pub fn stop(&self, reason: &str) {
        self.state().stop = Some(reason.to_owned());
    }

    /// The reason of a pending stop.
    pub fn stopping(&self) -> Option<String> {
        self.state().stop.clone()
    }

    pub(super) fn take_stop(&self) -> Option<String> {
        self.state().stop.take()
    }

    /// Temperature and alpha that were set by hand.
    pub(super) fn live(&self) -> (Option<f64>, Option<f64>) {
        let state = self.state();
        (state.temperature, state.alpha)
    }

    /// The loss at the values in force now.
    pub(super) fn apply(&self, kd: KdLoss) -> Result<KdLoss> {
        let state = self.state().clone();
        KdLoss::new(state.temperature.unwrap_or(kd.temperature()), state.alpha.unwrap_or(kd.alpha()))
    }

    // A thread that panicked while holding the lock leaves plain values behind: they stay usable.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
