//! What a fit leaves behind: metrics of each epoch, and the changes that the user made.

use super::schedule::Plan;
use super::{Hyperparameters, Recipe};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Means over all samples of a split, each sample counted once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The criterion that the fit minimises.
    pub loss: f64,
    /// Fraction of samples whose largest logit is the label's, in [0, 1].
    pub accuracy: f64,
    /// Cross-entropy against the hard labels in nats, unweighted.
    pub cross_entropy: f64,
    /// `KL(teacher_T || student_T)` in nats, neither scaled by T^2 nor weighted by alpha; `None` without a teacher.
    pub divergence: Option<f64>,
}

/// One epoch of a fit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: usize,
    /// Measured while training: the weights change during the epoch, so it lags behind `validation`.
    pub train: Metrics,
    /// Measured after the epoch, in evaluation mode.
    pub validation: Metrics,
    /// Values in force at the end of the epoch. The recipe's schedule multiplies the learning rate.
    #[serde(flatten)]
    pub hyperparameters: Hyperparameters,
    /// Wall-clock time of training and validation, without pauses.
    pub seconds: f64,
    /// Training throughput.
    pub images_per_second: f64,
}

impl EpochRecord {
    /// Whether the weights of this epoch are kept rather than those of `other`.
    pub(super) fn better_than(&self, other: &Self) -> bool {
        let (a, b) = (&self.validation, &other.validation);
        a.accuracy > b.accuracy || (a.accuracy == b.accuracy && a.loss < b.loss)
    }
}

/// An epoch that has been trained and not validated yet.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct TrainedEpoch {
    pub metrics: Metrics,
    pub images_per_second: f64,
    /// Without pauses.
    pub seconds: f64,
}

/// An epoch that was stopped between two batches.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StoppedEpoch {
    /// Number of batches that were trained.
    pub batches: usize,
    /// Of [`Sums`](super::metrics::Sums).
    pub sums: Vec<f64>,
    /// Without pauses.
    pub seconds: f64,
}

/// The epoch behind those of a history.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum UnfinishedEpoch {
    Trained(TrainedEpoch),
    Stopped(StoppedEpoch),
}

/// A change of temperature, alpha or learning rate that reached the running fit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Epochs done by then: 2.35 is 35 % into the third epoch.
    pub epoch: f64,
    /// In force until then.
    pub before: Hyperparameters,
    /// In force from here on.
    pub after: Hyperparameters,
}

/// The curve of one fit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Name of the fit.
    pub name: String,
    /// Name of the loss.
    pub criterion: String,
    /// Digest of the training data, its transform, the backbone and the teacher.
    pub data_key: String,
    /// Planned epochs; `records` holds those that were finished.
    pub epochs: usize,
    /// Finished epochs, the first one first.
    pub records: Vec<EpochRecord>,
    /// Why the fit ended before its last epoch, if it did.
    pub stopped: Option<String>,
    /// Name of the mistake that the fit made on purpose; `None` outside [`crate::study::mistakes`].
    // Older files call it `defect`.
    #[serde(default, alias = "defect", skip_serializing_if = "Option::is_none")]
    pub mistake: Option<String>,
    /// What the user changed during training, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Optimizer, schedule and regularisation.
    #[serde(default, skip_serializing_if = "Recipe::is_default")]
    pub recipe: Recipe,
    /// How the training images were augmented, such as `flip, crop 0.5`; empty where they were not, and in older files.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub augmentation: String,
    /// Updates in each epoch; 0 in older files.
    #[serde(default)]
    pub steps_per_epoch: usize,
    /// Threads of the CPU: from so many epochs on (2.35 is 35 % into the third), so many. The last digits of the
    /// results depend on them. Empty on a GPU, and in older files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<(f64, usize)>,
}

impl History {
    /// Returns the epoch whose weights are kept: best validation accuracy, and on a tie the lower validation loss.
    pub fn best(&self) -> Option<&EpochRecord> {
        self.records.iter().reduce(|best, r| if r.better_than(best) { r } else { best })
    }

    /// Whether the fit ended as planned. A fit that was stopped or killed before that is half-trained.
    pub(crate) fn is_complete(&self) -> bool {
        self.stopped.is_none() && self.is_over()
    }

    /// Whether there is no epoch left to run.
    pub(super) fn is_over(&self) -> bool {
        self.records.len() >= self.epochs || self.out_of_patience().is_some()
    }

    /// The patience of a fit that ended early for lack of a better epoch.
    pub(crate) fn out_of_patience(&self) -> Option<usize> {
        let (patience, best) = self.recipe.patience.zip(self.best())?;
        let done = self.records.len();
        (done < self.epochs && done >= best.epoch + patience).then_some(patience)
    }

    /// The learning rate's schedule.
    pub(super) fn plan(&self) -> Plan {
        self.recipe.plan(self.epochs, self.steps_per_epoch)
    }

    /// The learning rate of the first step after so many epochs, such as 2.35: the one in force, times the schedule's
    /// factor. `otherwise` is in force where neither an epoch nor a change says so.
    pub(crate) fn learning_rate(&self, epochs: f64, otherwise: f64) -> f64 {
        let last = self.changes.iter().rev().find(|change| change.epoch <= epochs).map(|change| change.after);
        let first = || self.changes.first().map(|change| change.before);
        let begun = || self.records.first().map(|record| record.hyperparameters);
        let base = last.or_else(first).or_else(begun).map_or(otherwise, |values| values.learning_rate);
        // A multiple of 1 / steps_per_epoch may lie a rounding below its step.
        base * self.plan().factor((epochs * self.steps_per_epoch as f64 + 1e-6) as usize)
    }

    /// The learning rate of the last step of an epoch.
    pub(crate) fn last_learning_rate(&self, record: &EpochRecord) -> f64 {
        let last = (record.epoch * self.steps_per_epoch).saturating_sub(1);
        record.hyperparameters.learning_rate * self.plan().factor(last)
    }

    /// Returns the seconds spent in all epochs.
    pub fn seconds(&self) -> f64 {
        self.records.iter().map(|r| r.seconds).sum()
    }

    /// Reads the `history.json` that a fit wrote.
    ///
    /// # Errors
    /// When the file can't be read, or is not a history.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(|e| Error::io("reading", path, e))?;
        serde_json::from_slice(&text).map_err(|e| {
            Error::Data(format!("{} is not a fit's history: {e}; delete it and fit again", path.display()))
        })
    }
}
