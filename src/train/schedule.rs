//! Learning-rate schedules, step by step as `torch.optim.lr_scheduler` computes them.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the learning rate changes from step to step, as a multiple of the fit's learning rate. The schedule begins after
/// the warm-up and spans the rest of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Schedule {
    /// The learning rate itself.
    #[default]
    Constant,
    /// Half a cosine, from the learning rate to 0 at the end of the run: `CosineAnnealingLR`.
    Cosine,
    /// Multiplies the learning rate by `factor` after every `epochs` epochs: `StepLR`.
    Step {
        /// At least 1.
        epochs: usize,
        /// Between 0 and 1; 0.1 is usual.
        factor: f64,
    },
    /// Rises from 1/25 of the learning rate to all of it in the first 30 % of the steps and falls to a 250,000th:
    /// `OneCycleLR` with `cycle_momentum=False`.
    OneCycle,
}

/// The schedule of a run after a warm-up, counted in steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    pub schedule: Schedule,
    /// Steps of the warm-up.
    pub warmup: usize,
    /// Steps of the run, the warm-up included.
    pub total: usize,
    pub steps_per_epoch: usize,
}

/// The warm-up begins at this share of the learning rate.
const WARMUP_START: f64 = 0.01;

impl Schedule {
    /// Refuses values out of range, and a schedule that the `epochs` after the warm-up are too few for.
    pub(super) fn check(self, epochs: f64) -> Result<()> {
        let Schedule::Step { epochs: every, factor } = self else { return Ok(()) };
        if every == 0 || every as f64 >= epochs {
            return Err(Error::Input(format!(
                "the schedule lowers the learning rate after every {every} epochs, and the run has {epochs} after its \
                 warm-up: take fewer epochs, at least 1, or a longer run"
            )));
        }
        if !(factor > 0.0 && factor < 1.0) {
            return Err(Error::Input(format!(
                "a step of the schedule must multiply the learning rate by a factor between 0 and 1, got {factor}; \
                 try 0.1"
            )));
        }
        Ok(())
    }
}

impl Plan {
    /// What the learning rate is multiplied by in a step, counted from 0.
    pub(super) fn factor(&self, step: usize) -> f64 {
        match step.checked_sub(self.warmup) {
            Some(step) => self.after_warmup(step),
            // `SequentialLR` of a `LinearLR` and the schedule.
            None => {
                let done = step as f64 / self.warmup as f64;
                self.after_warmup(0) * (WARMUP_START + (1.0 - WARMUP_START) * done)
            }
        }
    }

    fn after_warmup(&self, step: usize) -> f64 {
        let (at, total) = (step as f64, self.total.saturating_sub(self.warmup).max(1) as f64);
        let cosine = |from: f64, to: f64, done: f64| to + (from - to) / 2.0 * (1.0 + (PI * done).cos());
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Cosine => cosine(1.0, 0.0, at / total),
            Schedule::Step { epochs, factor } => {
                let every = (epochs * self.steps_per_epoch).max(1);
                factor.powi((step / every) as i32)
            }
            Schedule::OneCycle => {
                let (first, last) = (1.0 / 25.0, 1.0 / 25.0 / 1e4);
                let (peak, end) = (0.3 * total - 1.0, total - 1.0);
                match at <= peak {
                    true => cosine(first, 1.0, at / peak),
                    false => cosine(1.0, last, (at - peak) / (end - peak)),
                }
            }
        }
    }
}
