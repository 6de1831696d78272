//! Everything a cell displays: figures (plotters), image galleries, tables, progress lines and widgets.

mod bars;
mod curves;
mod display;
mod explorer;
mod figure;
mod gallery;
mod heatmap;
mod knobs;
mod line;
mod live;
mod progress;
mod reliability;
mod similarity;
mod softening;
mod sweep;
mod table;

pub(crate) use display::short;

pub use bars::{class_balance, soft_target_bars};
pub use curves::curves;
pub use display::ShowDebug;
pub use explorer::{TemperatureExplorer, temperature_explorer};
pub use figure::Figure;
pub use gallery::{Caption, disagreements, gallery, mistakes, soft_target_gallery};
pub use heatmap::{confusion_matrix, parameter_map};
pub use knobs::{Knobs, knobs};
pub use line::{Number, plot};
pub use live::live_progress;
pub use progress::print_progress;
pub use reliability::reliability_diagram;
pub use similarity::{class_similarity, likely_confusions};
pub use softening::soft_targets_over_temperature;
pub use sweep::live_sweep;
pub use table::Table;
