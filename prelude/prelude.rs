// What the kernel loads before the first cell of every notebook.
use kdlab::Lab;
use kdlab::data::{DataOptions, Transform, Views, shuffled};
use kdlab::models::{Arch, Backbone, Layers, Model, Summary, head, student};
use kdlab::show::{Figure, ShowDebug, Table, class_balance, class_similarity, confusion_matrix, curves, disagreements};
use kdlab::show::{distillation_diagram, forest, gallery, likely_confusions, mistakes, print_progress};
use kdlab::show::{reliability_diagram, soft_target_bars, soft_target_gallery, soft_targets_over_temperature};
use kdlab::show::{plot, quick_checks, temperature_explorer};
use kdlab::study::{Augmentation, Candidate, Measure, Sweep, SweepReport, TeacherLabels, Verdict, report_card};
use kdlab::train::{CachedTensor, Criterion, Evaluation, Examples, FitOptions, History, KdLoss, Method, Recipe};
use kdlab::train::{Schedule, UpdateRule, evaluate, fit, predict, soft_targets};
use tch::nn::{Module, OptimizerConfig};
use tch::{Device, Kind, Tensor, nn};
