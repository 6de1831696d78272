//! Training by distillation: the loss, the teacher's cached outputs and one training loop, [`fit`].
//!
//! Nothing here draws or prints: the loop reports [`Event`]s to its [`Listener`]. For a loop of your own, take batches
//! by sample index and one of tch's optimizers:
//!
//! ```no_run
//! use kdlab::data::{batches, shuffled};
//! use kdlab::models::Model;
//! use kdlab::train::{Examples, KdLoss};
//! use tch::nn::{Adam, OptimizerConfig};
//!
//! fn distil(student: &Model, train: &Examples) -> kdlab::Result<()> {
//!     let kd = KdLoss::new(4.0, 0.9)?;
//!     let mut adam = Adam::default().build(student.var_store(), 1e-3)?;
//!     for epoch in 1..=20 {
//!         for indices in batches(&shuffled(train.len(), 0, epoch), 64)? {
//!             let batch = train.batch(&indices, student.device())?;
//!             let logits = student.forward(&batch.inputs, true)?; // [B, C]
//!             adam.backward_step(&kd.forward(&logits, &batch.labels, batch.teacher()?)?);
//!         }
//!     }
//!     Ok(())
//! }
//! ```

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
mod exported;
mod features;
mod fit;
mod group;
mod hyperparameters;
mod loss;
mod method;
mod metrics;
mod minibatch;
mod online;
mod optimizer;
mod options;
mod progress;
mod recipe;
mod record;
mod row_file;
mod schedule;
mod table;

pub use background::Run;
pub(crate) use background::{Queue, caught};
pub(crate) use cached::{CachedFile, features_in, teacher_logits};
pub use cached::{CachedTensor, backbone_features, layer_features, script_logits, view_logits};
pub(crate) use checks::{Task, fingerprint};
pub use control::Control;
pub(crate) use control::Observer;
pub use criterion::Criterion;
pub use evaluate::{evaluate, predict};
pub use evaluation::{Calibration, Evaluation};
pub use event::{Event, Listener, Progress};
pub use examples::Examples;
pub use features::FeatureMethod;
pub use fit::fit;
pub(crate) use fit::{LoopSettings, fit_and_show, fit_with};
pub use group::Group;
#[cfg(test)]
pub(crate) use group::Rendezvous;
pub(crate) use group::device_of;
pub use hyperparameters::Hyperparameters;
pub(crate) use hyperparameters::{check_learning_rate, six_digits};
pub use loss::{KdLoss, soft_targets};
pub(crate) use loss::{UNLABELLED, check_alpha, check_temperature, cross_entropy};
pub use method::Method;
pub use minibatch::Minibatch;
pub use online::OnlineTeacher;
pub(crate) use optimizer::Optimizer;
pub use options::FitOptions;
pub(crate) use options::check_name;
pub use recipe::{Recipe, UpdateRule};
pub use record::{Change, EpochRecord, History, Metrics};
pub use schedule::Schedule;
pub use table::LogitsTable;
