//! Training events, and the callback that receives them.

use super::{Change, EpochRecord, History, Hyperparameters, Metrics};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Progress of a long pass over images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Name of the fit or pass.
    pub name: String,
    /// Current epoch, counted from 1; 1 for a pass that is not a fit.
    pub epoch: usize,
    /// Planned epochs; 1 for a pass that is not a fit.
    pub epochs: usize,
    /// Images done in this epoch.
    pub done: usize,
    /// Images in an epoch.
    pub total: usize,
    /// Means so far in this epoch; `None` for a pass without a loss.
    pub metrics: Option<Metrics>,
    /// Throughput since this epoch or pass began.
    pub images_per_second: f64,
    /// Estimated seconds to the end of the fit or pass, without validation.
    pub seconds_left: f64,
    /// Threads of the CPU in use; `None` on a GPU.
    pub threads: Option<usize>,
}

/// What a fit, or a pass of a backbone, reports to its [`Listener`].
#[derive(Clone, Debug)]
pub enum Event {
    /// A fit was queued in the background and waits for its turn; `Started` follows.
    Queued {
        /// Without an epoch yet.
        history: History,
        /// Values with which the fit will begin.
        hyperparameters: Hyperparameters,
    },
    /// The cell now waits for this fit of the background.
    Awaited {
        /// Name of the fit.
        name: String,
    },
    /// A fit begins.
    Started {
        /// The epochs that an earlier run had finished.
        history: History,
        /// Values in force.
        hyperparameters: Hyperparameters,
    },
    /// The fit renamed the folder of an earlier run of this name, which had other settings, data or first weights.
    SetAside {
        /// Name of the fit.
        name: String,
        /// New place of the earlier run.
        folder: PathBuf,
    },
    /// Progress within an epoch or pass, at most a few times a second.
    Progress(Progress),
    /// The user changed temperature, alpha or learning rate; the next batch is the first to see it.
    Changed {
        /// Name of the fit.
        name: String,
        /// Values before and after.
        change: Change,
    },
    /// An epoch ended.
    Epoch {
        /// Name of the fit.
        name: String,
        /// What was measured.
        record: EpochRecord,
        /// Number of planned epochs.
        epochs: usize,
    },
    /// The fit ended; the model holds the weights of the best epoch.
    Finished(History),
    /// The fit ended with an error, which its caller gets too.
    Failed {
        /// Name of the fit.
        name: String,
        /// Text of the error.
        error: String,
    },
}

impl Event {
    /// Name of the fit or pass.
    pub(crate) fn name(&self) -> &str {
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

type Callback = dyn Fn(&Event) + Send + Sync;

/// Callback for training events. The default ignores them.
#[derive(Clone, Default)]
pub struct Listener(Option<Arc<Callback>>);

impl Listener {
    /// Calls `callback` with every event, on the thread of the fit.
    pub fn new(callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(callback)))
    }

    /// Calls the callback.
    pub(crate) fn notify(&self, event: &Event) {
        if let Some(callback) = &self.0 {
            callback(event);
        }
    }
}
