//! What distillation is made of: the loss, the teacher's cached outputs and one training loop.
//!
//! Nothing here draws or prints: the loop tells its listener what happens, as [`Event`]s.

mod adam;
mod background;
mod cache;
mod checkpoint;
mod control;
mod criterion;
mod evaluate;
mod examples;
mod fit;
mod loss;
mod method;
mod record;
mod report;
mod row_file;
mod sweep;
mod sweep_report;
pub mod teaching;
mod verdict;
mod view_logits;

pub use adam::Adam;
pub use background::{Queue, Run, RunState};
pub use cache::{CachedTensor, backbone_features, teacher_logits};
pub(crate) use control::six_digits;
pub use control::{Control, Observer};
pub use criterion::Criterion;
pub use evaluate::{Calibration, CalibrationBin, Evaluation, evaluate, predict};
pub use examples::{Examples, Minibatch};
pub(crate) use fit::check_name;
pub use fit::{FitOptions, Listener, fit};
pub use loss::{KdLoss, UNLABELLED, cross_entropy, soft_targets};
pub use method::{Method, decoupled, standardised};
pub use record::{Change, EpochRecord, Event, History, Metrics, Progress, Settings};
pub use report::{Graded, ReportCard, ReportRow, report_card};
pub use sweep::{Augmentation, Setting, Sweep, SweepInputs, SweepListener, SweepNow, TeacherLabels, Teaching};
pub use sweep_report::{Comparison, Corrected, Measure, SweepReport, SweepRun};
pub use verdict::{Decision, Verdict};
pub use view_logits::{ViewLogits, view_logits};
