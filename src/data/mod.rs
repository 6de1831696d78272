//! Images with labels: found or downloaded, checked, kept once as bytes in memory or in a file, and returned by sample
//! index.
//!
//! ```no_run
//! use kdlab::data::{self, DataOptions};
//! let data = data::open(&DataOptions::default())?;
//! println!("{data}"); // names the dataset and says why it was chosen
//! for rows in data::batches(&data::shuffled(data.train.len(), 0, 0), 64)? {
//!     let batch = data.train.batch(&rows)?; // images u8 [64, 3, 32, 32], labels i64 [64]
//! }
//! # Ok::<(), kdlab::Error>(())
//! ```

mod augment;
mod dataset;
mod framing;
mod pixel_file;
mod pool;
mod preprocessing;
mod sampling;
mod shared;
mod sources;
mod split;
mod transform;
mod views;

pub use augment::Augment;
pub(crate) use augment::Mixing;
pub use dataset::{DataOptions, Dataset};
pub use framing::Framing;
pub use preprocessing::{Channels, Preprocessing};
pub(crate) use sampling::dropout_seed;
pub use sampling::{batches, shuffled};
pub(crate) use shared::DatasetFiles;
pub(crate) use sources::shortened;
pub use sources::{image_folder, open, read_image};
pub(crate) use split::UNLABELLED;
pub use split::{Batch, Split};
pub use transform::Transform;
pub(crate) use views::EpochViews;
pub use views::Views;

#[cfg(test)]
#[path = "../../tests/data/mod.rs"]
mod tests;
