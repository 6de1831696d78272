//! Everything a cell displays: figures (plotters), image galleries, tables, progress and widgets.
//!
//! | files | what is in them |
//! | --- | --- |
//! | `output`, `words`, `table` | the forms of a result; numbers and values in words; tables |
//! | `canvas`, then a file for each figure | [`Figure`], its colours, fonts and axes; `bars` to `similarity` |
//! | `tables` | how values of the other rooms show themselves |
//! | `card_text`, `web` | files for people: a model card, and the pictures of a student's page |
//! | `progress`, `live_fit`, `shared_chart`, `live_sweep`, `knobs`, `explorer` | what changes while a cell runs |

mod bars;
mod canvas;
mod card_text;
mod curves;
mod diagram;
mod explorer;
mod feature_map;
mod forest;
mod gallery;
mod heatmap;
mod knobs;
mod line;
mod live_fit;
mod live_sweep;
mod output;
mod progress;
mod quick_checks;
mod reliability;
mod shared_chart;
mod similarity;
mod softening;
mod strips;
mod table;
mod tables;
#[cfg(test)]
#[path = "../../tests/show/mod.rs"]
mod tests;
mod web;
mod words;

pub(crate) use live_fit::live_progress;
pub(crate) use live_sweep::live_sweep;
pub(crate) use output::{debug_as_display, emit_text, show_as_text};
pub(crate) use shared_chart::SharedChart;
pub(crate) use words::{counted, short_or_empty};

pub use bars::class_balance;
pub use canvas::Figure;
pub use card_text::CardText;
pub use curves::curves;
pub use diagram::distillation_diagram;
pub use explorer::{TemperatureExplorer, temperature_explorer};
pub use feature_map::feature_map;
pub use forest::{class_gains, forest};
pub use gallery::{augmented, disagreements, gallery, mistakes, soft_target_gallery};
pub use heatmap::confusion_matrix;
pub use line::plot;
pub use output::ShowDebug;
pub use progress::print_progress;
pub use quick_checks::{QuickChecks, quick_checks};
pub use reliability::reliability_diagram;
pub use similarity::{class_similarity, likely_confusions};
pub use softening::soft_targets_over_temperature;
pub use strips::{answers_over_steps, soft_target_strips};
pub use table::Table;
pub use tables::student_sizes;
pub use web::save_examples;
