//! Experiments around the training loop: sweeps over many fits, their report and verdict, and the article's mistakes.

mod bench;
mod board;
mod cluster;
mod grid;
mod lone_fit;
pub mod mistakes;
mod one_fit;
mod report;
mod report_card;
mod runner;
mod teachers;
mod verdict;

pub use bench::{Bench, SeedRuns, WatchedBatch};
pub(crate) use board::{SweepListener, SweepProgress};
pub(crate) use cluster::Cluster;
pub use grid::{Augmentation, Distillation, Setting, Sweep, SweepMethod, TeacherLabels};
pub(crate) use lone_fit::make_fit;
pub use report::{Comparison, Measure, SweepReport, SweepRun};
pub(crate) use report_card::ResultRow;
pub use report_card::{Candidate, ReportCard, ReportRow, report_card};
pub use teachers::OtherTeacher;
pub(crate) use teachers::SweepInputs;
pub use verdict::{Decision, Verdict, t_quantile};
