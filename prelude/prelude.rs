// What the kernel loads before the first cell of every notebook.
use kdlab::Lab;
use kdlab::data::{DataOptions, Transform, Views, shuffled};
use kdlab::models::{Arch, Backbone, Layers, Model, Summary, head, student};
use kdlab::show::{Figure, ShowDebug, Table, class_balance, class_gains, class_similarity, confusion_matrix, curves};
use kdlab::show::{answers_over_steps, distillation_diagram, feature_map, forest, gallery, likely_confusions, mistakes};
use kdlab::show::{plot, print_progress, quick_checks, reliability_diagram, soft_target_gallery, soft_target_strips};
use kdlab::show::{disagreements, soft_targets_over_temperature, temperature_explorer};
use kdlab::study::{Augmentation, Candidate, Measure, Sweep, SweepReport, TeacherLabels, Verdict, report_card};
use kdlab::train::{CachedTensor, Criterion, Evaluation, Examples, FitOptions, History, KdLoss, Method, Recipe};
use kdlab::train::{Schedule, UpdateRule, evaluate, fit, layer_features, predict, soft_targets, view_logits};
use tch::nn::{Module, OptimizerConfig};
use tch::{Device, Kind, Tensor, nn};
