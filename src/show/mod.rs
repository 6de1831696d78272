//! Everything a cell displays: figures (plotters), image galleries, tables and progress lines.

mod bars;
mod curves;
mod display;
mod figure;
mod gallery;
mod heatmap;
mod progress;
mod reliability;
mod table;

pub use bars::{class_balance, soft_target_bars};
pub use curves::curves;
pub use figure::Figure;
pub use gallery::{Caption, disagreements, gallery, mistakes};
pub use heatmap::confusion_matrix;
pub use progress::print_progress;
pub use reliability::reliability_diagram;
pub use table::Table;
