//! Temperature, alpha and learning rate: the values that may change while a fit runs.

use super::KdLoss;
use super::loss::{check_alpha, check_temperature};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Temperature, alpha and learning rate in force at one moment of a fit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyperparameters {
    /// Above 0; `None` for a fit on hard labels.
    pub temperature: Option<f64>,
    /// Weight of the teacher, in [0, 1]; `None` for a fit on hard labels.
    pub alpha: Option<f64>,
    /// Above 0.
    pub learning_rate: f64,
}

impl Hyperparameters {
    /// The distillation loss at these values; `None` for a fit on hard labels.
    pub(super) fn kd_loss(&self) -> Result<Option<KdLoss>> {
        self.temperature.zip(self.alpha).map(|(t, a)| KdLoss::new(t, a)).transpose()
    }
}

/// Values that the user set while a fit ran; `None` leaves the fit's own value. A checkpoint keeps them as an array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, into = "[Option<f64>; 3]")]
pub(super) struct Overrides {
    pub temperature: Option<f64>,
    pub alpha: Option<f64>,
    pub learning_rate: Option<f64>,
}

impl From<Overrides> for [Option<f64>; 3] {
    fn from(set: Overrides) -> Self {
        [set.temperature, set.alpha, set.learning_rate]
    }
}

impl Overrides {
    /// Refuses values out of range.
    pub(super) fn check(self) -> Result<Self> {
        self.temperature.map(check_temperature).transpose()?;
        self.alpha.map(check_alpha).transpose()?;
        self.learning_rate.map(check_learning_rate).transpose()?;
        Ok(self)
    }

    /// Takes the other's values where it has any.
    pub(super) fn update(&mut self, other: Self) {
        self.temperature = other.temperature.or(self.temperature);
        self.alpha = other.alpha.or(self.alpha);
        self.learning_rate = other.learning_rate.or(self.learning_rate);
    }

    /// The values in force for a fit that began with `own`.
    pub(super) fn over(&self, own: Hyperparameters) -> Hyperparameters {
        Hyperparameters {
            temperature: own.temperature.map(|t| self.temperature.unwrap_or(t)),
            alpha: own.alpha.map(|a| self.alpha.unwrap_or(a)),
            learning_rate: self.learning_rate.unwrap_or(own.learning_rate),
        }
    }
}

/// Rounds to six digits: 9.799999999999999, as sums of steps give it, becomes 9.8.
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
