//! What a fit reports: numbers only, for a figure, a table, a test or a file.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Means over all samples of a split, each sample counted once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The criterion that was trained.
    pub loss: f64,
    /// Fraction of samples whose largest logit is the label's, in [0, 1].
    pub accuracy: f64,
    /// Cross-entropy against the hard labels, unweighted.
    pub cross_entropy: f64,
    /// `KL(teacher_T || student_T)`, neither scaled by T^2 nor weighed by alpha; none without a teacher.
    pub divergence: Option<f64>,
}

/// One epoch of a fit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: usize,
    /// Measured while training: the weights move during the epoch, so this lags behind `validation`.
    pub train: Metrics,
    /// Measured after the epoch, in evaluation mode.
    pub validation: Metrics,
    /// Learning rate, temperature and alpha in force at the end of the epoch; the latter none for a fit on hard labels.
    pub learning_rate: f64,
    pub temperature: Option<f64>,
    pub alpha: Option<f64>,
    /// Wall clock of the epoch, training and validation.
    pub seconds: f64,
    /// Training throughput.
    pub images_per_second: f64,
}

/// The values that may be changed while a fit runs, as they are in force at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// None for a fit on hard labels, as alpha.
    pub temperature: Option<f64>,
    pub alpha: Option<f64>,
    pub learning_rate: f64,
}

/// A change of temperature, alpha or learning rate that reached the running fit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Epochs done by then: 2.35 is 35 % into the third epoch.
    pub epoch: f64,
    pub before: Settings,
    /// In force from here on.
    pub after: Settings,
}

/// The curve of one fit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    pub name: String,
    pub criterion: String,
    /// Changes with the training data, its transform, the backbone and the teacher.
    pub data_key: String,
    /// Planned epochs; `records` holds those that were finished.
    pub epochs: usize,
    pub records: Vec<EpochRecord>,
    /// Why the fit ended before its last epoch, if it did.
    pub stopped: Option<String>,
    /// Name of the mistake that the fit made on purpose; `None` outside [`crate::study::mistakes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defect: Option<String>,
    /// What was changed while it ran, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

impl History {
    /// The epoch with the best validation accuracy (on a tie, the lower validation loss): the weights that are kept.
    pub fn best(&self) -> Option<&EpochRecord> {
        self.records.iter().reduce(|best, r| if r.better_than(best) { r } else { best })
    }

    /// Whether all planned epochs were run. A fit that was stopped or killed before that is half-trained.
    pub fn is_complete(&self) -> bool {
        self.stopped.is_none() && self.records.len() >= self.epochs
    }

    /// Seconds spent in all epochs.
    pub fn seconds(&self) -> f64 {
        self.records.iter().map(|r| r.seconds).sum()
    }

    /// Reads what a fit wrote as `history.json`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(|e| Error::io("reading", path, e))?;
        serde_json::from_slice(&text).map_err(|e| {
            Error::Data(format!("{} is not a fit's history: {e}; delete it and fit again", path.display()))
        })
    }
}

impl EpochRecord {
    pub(super) fn settings(&self) -> Settings {
        Settings { temperature: self.temperature, alpha: self.alpha, learning_rate: self.learning_rate }
    }

    pub(super) fn better_than(&self, other: &Self) -> bool {
        let (a, b) = (&self.validation, &other.validation);
        a.accuracy > b.accuracy || (a.accuracy == b.accuracy && a.loss < b.loss)
    }
}

/// Where a long pass stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub name: String,
    /// Epoch from 1, and how many there will be; both 1 for a pass that is no fit.
    pub epoch: usize,
    pub epochs: usize,
    /// Images done in this epoch, of how many.
    pub done: usize,
    pub total: usize,
    /// Means so far in this epoch; none for a pass without a loss.
    pub metrics: Option<Metrics>,
    pub images_per_second: f64,
    /// Estimate for everything that is left.
    pub seconds_left: f64,
}

/// What a fit, or a pass of a backbone, tells its listener.
#[derive(Clone, Debug)]
pub enum Event {
    /// A fit was handed to the background and waits for its turn; `history` has no epoch yet. `Started` follows.
    Queued { history: History, settings: Settings },
    /// The cell now waits for this fit of the background.
    Awaited { name: String },
    /// A fit begins with these values in force; `history` holds the epochs that an earlier run had finished.
    Started { history: History, settings: Settings },
    /// An earlier run of this name, with other settings, data or first weights, was renamed to make room.
    SetAside { name: String, folder: std::path::PathBuf },
    /// At most a few times a second.
    Progress(Progress),
    /// Temperature, alpha or learning rate were changed and act from the next batch on.
    Changed { name: String, change: Change },
    /// An epoch ended; `epochs` is how many there will be.
    Epoch { name: String, record: EpochRecord, epochs: usize },
    /// The fit ended; the model holds the weights of the best epoch.
    Finished(History),
    /// The fit ended with an error, which its caller gets too.
    Failed { name: String, error: String },
}

impl Event {
    /// The fit or pass that it is about.
    pub fn name(&self) -> &str {
        match self {
            Event::Queued { history, .. } | Event::Started { history, .. } | Event::Finished(history) => &history.name,
            Event::Progress(progress) => &progress.name,
            Event::Awaited { name }
            | Event::SetAside { name, .. }
            | Event::Changed { name, .. }
            | Event::Epoch { name, .. }
            | Event::Failed { name, .. } => name,
        }
    }
}
