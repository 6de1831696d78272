// What the kernel loads before the first cell of every notebook.
use kdlab::data::{DataOptions, Dataset, Split, Transform, shuffled};
use kdlab::train::{Control, Criterion, Evaluation, Examples, FitOptions, History, KdLoss, Run};
use kdlab::study::{Candidate, ReportCard, ResultRow, report_card};
use kdlab::train::{CachedTensor, evaluate, fit, predict, soft_targets};
use kdlab::data::Views;
use kdlab::study::{Augmentation, Measure, Sweep, SweepReport, TeacherLabels, Verdict};
use kdlab::train::{Method, view_logits};
use kdlab::models::{Arch, Backbone, Layers, Model, Summary, head, student};
use kdlab::show::{Figure, ShowDebug, Table};
use kdlab::show::{class_balance, confusion_matrix, curves, disagreements, gallery, knobs, live_progress};
use kdlab::show::{mistakes, plot, print_progress, reliability_diagram, soft_target_bars, temperature_explorer};
use kdlab::show::{class_similarity, likely_confusions, soft_target_gallery, soft_targets_over_temperature};
use kdlab::{Lab, Profile};
use tch::nn::{Module, OptimizerConfig};
use tch::{Device, Kind, Tensor, nn};
