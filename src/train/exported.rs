//! The curve of a fit for other programs: CSV, and TensorBoard's event files.

use super::{EpochRecord, History, Metrics};
use crate::Result;
use crate::store::atomic::write_bytes;
use crate::store::csv_file::{cell, write_csv};
use crate::store::event_file::{Point, event_file};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is known of an epoch: columns of a CSV file, and names of curves in TensorBoard.
const NAMES: [(&str, &str); 13] = [
    ("train_loss", "loss/train"),
    ("train_accuracy", "accuracy/train"),
    ("train_cross_entropy", "cross_entropy/train"),
    ("train_divergence", "divergence/train"),
    ("validation_loss", "loss/validation"),
    ("validation_accuracy", "accuracy/validation"),
    ("validation_cross_entropy", "cross_entropy/validation"),
    ("validation_divergence", "divergence/validation"),
    ("temperature", "temperature"),
    ("alpha", "alpha"),
    ("learning_rate", "learning_rate"),
    ("seconds", "seconds"),
    ("images_per_second", "images_per_second"),
];

impl History {
    /// Writes a CSV file with a row for each finished epoch. Accuracies are fractions, numbers have all their digits,
    /// and a cell without a value is empty. `learning_rate` is that of the epoch's last step, with its schedule. The
    /// file is whole or absent.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save_csv(&self, path: impl AsRef<Path>) -> Result<()> {
        let names: Vec<_> = std::iter::once("epoch").chain(NAMES.map(|(column, _)| column)).collect();
        let row = |r: &EpochRecord| -> Vec<String> {
            std::iter::once(r.epoch.to_string()).chain(self.values(r).map(cell)).collect()
        };
        write_csv(path.as_ref(), &names, &self.records.iter().map(row).collect::<Vec<_>>())
    }

    /// Writes the curve for TensorBoard: the file `events.out.tfevents.kdlab` in `folder`, which should hold no other
    /// run. `tensorboard --logdir` takes this folder, or the one around the folders of several runs.
    ///
    /// A step is an epoch. A fit records how long each epoch took, not when it ended, so the last epoch gets the time
    /// of the call; times relative to the first one are right.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save_tensorboard(&self, folder: impl AsRef<Path>) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let mut wall_time = now - self.seconds();
        let mut points = Vec::new();
        for record in &self.records {
            wall_time += record.seconds;
            let named = NAMES.iter().zip(self.values(record));
            points.extend(named.filter_map(|(&(_, tag), value)| {
                Some(Point { tag, step: record.epoch as i64, wall_time, value: value? })
            }));
        }
        write_bytes(&folder.as_ref().join("events.out.tfevents.kdlab"), &event_file(&points))
    }

    /// The values of an epoch in the order of [`NAMES`].
    fn values(&self, record: &EpochRecord) -> [Option<f64>; 13] {
        let of = |m: &Metrics| [Some(m.loss), Some(m.accuracy), Some(m.cross_entropy), m.divergence];
        let ([a, b, c, d], [e, f, g, h]) = (of(&record.train), of(&record.validation));
        let now = &record.hyperparameters;
        let rate = Some(self.last_learning_rate(record));
        let speed = [Some(record.seconds), Some(record.images_per_second)];
        [a, b, c, d, e, f, g, h, now.temperature, now.alpha, rate, speed[0], speed[1]]
    }
}
