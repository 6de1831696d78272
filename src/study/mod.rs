//! Experiments around the training loop: sweeps over many fits, their report and verdict, and the article's mistakes.

mod bench;
mod board;
mod grid;
pub mod mistakes;
mod report;
mod report_card;
mod runner;
mod verdict;

pub use bench::{Bench, SeedRuns, WatchedBatch};
pub(crate) use board::{SweepListener, SweepProgress};
pub use grid::{Augmentation, Distillation, Setting, Sweep, SweepMethod, TeacherLabels};
pub use report::{Comparison, Measure, SweepReport, SweepRun};
pub(crate) use report_card::ResultRow;
pub use report_card::{Candidate, ReportCard, ReportRow, report_card};
pub use runner::OtherTeacher;
pub(crate) use runner::SweepInputs;
pub use verdict::{Decision, Verdict, t_quantile};
