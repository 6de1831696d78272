//! What a fit leaves behind: metrics of each epoch, and the changes that the user made.

use super::Hyperparameters;
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
    /// Values in force at the end of the epoch.
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
}

impl History {
    /// Returns the epoch whose weights are kept: best validation accuracy, and on a tie the lower validation loss.
    pub fn best(&self) -> Option<&EpochRecord> {
        self.records.iter().reduce(|best, r| if r.better_than(best) { r } else { best })
    }

    /// Whether all planned epochs were run. A fit that was stopped or killed before that is half-trained.
    pub(crate) fn is_complete(&self) -> bool {
        self.stopped.is_none() && self.records.len() >= self.epochs
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
