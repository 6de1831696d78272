//! Everything a cell displays: figures (plotters), image galleries, tables and progress lines.

mod bars;
mod curves;
mod display;
mod figure;
mod gallery;
mod heatmap;
mod progress;
mod table;

pub use bars::{class_balance, soft_target_bars};
pub use curves::curves;
pub use figure::Figure;
pub use gallery::{Caption, gallery, mistakes};
pub use heatmap::confusion_matrix;
pub use progress::print_progress;
pub use table::Table;
