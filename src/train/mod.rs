//! Training by distillation: the loss, the teacher's cached outputs and one training loop.
//!
//! Nothing here draws or prints: the loop tells its listener what happens, as [`Event`]s.

mod adam;
mod background;
mod cached;
mod checkpoint;
mod control;
mod criterion;
mod evaluate;
mod evaluation;
mod examples;
mod fit;
mod loss;
mod method;
mod metrics;
mod progress;
mod record;
mod row_file;

pub use adam::Adam;
pub use background::{Queue, Run, RunState};
pub use cached::{CachedTensor, backbone_features, teacher_logits, view_logits};
pub use control::{Control, Observer};
pub(crate) use control::{check_learning_rate, six_digits};
pub use criterion::Criterion;
pub use evaluate::{evaluate, predict};
pub use evaluation::{Calibration, CalibrationBin, Evaluation};
pub use examples::{Examples, Minibatch};
pub use fit::{FitOptions, Listener, fit};
pub(crate) use fit::{LoopSettings, check_name, fingerprint, fit_as, in_foreground};
pub use loss::{KdLoss, UNLABELLED, cross_entropy, soft_targets};
pub(crate) use loss::{check_alpha, check_temperature};
pub use method::{Method, decoupled, standardised};
pub(crate) use progress::Pass;
pub use record::{Change, EpochRecord, Event, History, Metrics, Progress, Settings};
