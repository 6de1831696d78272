//! Images with labels: found or downloaded, checked, held in memory once as bytes, and handed out by sample index.
//!
//! ```no_run
//! use kdlab::data::{self, DataOptions};
//! let data = data::open(&DataOptions::default())?;
//! println!("{data}"); // says also which data this is, and why
//! for rows in data::batches(&data::shuffled(data.train.len(), 0, 0), 64)? {
//!     let batch = data.train.batch(&rows)?; // images u8 [64, 3, 32, 32], labels i64 [64]
//! }
//! # Ok::<(), kdlab::Error>(())
//! ```

mod dataset;
mod pool;
mod sources;
mod split;
mod transform;
mod views;

pub use crate::store::cache_folder;
pub use dataset::{DataOptions, Dataset};
pub use pool::{Batch, Split};
pub use sources::{cifar10, fashion_mnist, image_folder, open, read_image};
pub use split::{batches, shuffled};
pub use transform::Transform;
pub(crate) use views::Drawn;
pub use views::Views;
