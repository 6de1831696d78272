// What the kernel loads before the first cell of every notebook.
use kdlab::data::{DataOptions, Dataset, Split, Transform, shuffled};
use kdlab::distill::{Control, Criterion, Evaluation, Examples, FitOptions, History, KdLoss};
use kdlab::distill::{evaluate, fit, predict, soft_targets};
use kdlab::models::{Arch, Backbone, Layers, Model, Summary, head, student};
use kdlab::show::{Figure, Table};
use kdlab::show::{class_balance, confusion_matrix, curves, gallery, mistakes, print_progress, soft_target_bars};
use kdlab::{Lab, Profile, ResultRow};
use tch::{Device, Kind, Tensor, nn};
