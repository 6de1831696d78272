//! Training by distillation: the loss, the teacher's cached outputs and one training loop.
//!
//! Nothing here draws or prints: the loop reports [`Event`]s to its [`Listener`].

mod background;
mod cached;
mod checkpoint;
mod checks;
mod control;
mod criterion;
mod evaluate;
mod evaluation;
mod event;
mod examples;
mod fit;
mod hyperparameters;
mod loss;
mod method;
mod metrics;
mod optimizer;
mod options;
mod progress;
mod record;
mod row_file;

pub(crate) use background::Queue;
pub use background::Run;
pub use cached::{CachedTensor, backbone_features, teacher_logits, view_logits};
pub(crate) use checks::{Task, fingerprint};
pub use control::Control;
pub(crate) use control::Observer;
pub use criterion::Criterion;
pub use evaluate::{evaluate, predict};
pub use evaluation::{Calibration, CalibrationBin, Evaluation};
pub use event::{Event, Listener, Progress};
pub use examples::{Examples, Minibatch};
pub use fit::fit;
pub(crate) use fit::{LoopSettings, in_foreground};
pub use hyperparameters::Hyperparameters;
pub(crate) use hyperparameters::{check_learning_rate, six_digits};
pub use loss::{KdLoss, UNLABELLED, soft_targets};
pub(crate) use loss::{check_alpha, check_temperature, cross_entropy};
pub use method::Method;
pub use optimizer::{Optimizer, UpdateRule};
pub use options::FitOptions;
pub(crate) use options::check_name;
pub(crate) use progress::Interrupt;
pub use record::{Change, EpochRecord, History, Metrics};
