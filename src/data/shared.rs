//! A dataset in files that another process reads: the images as bytes, once for all its splits.

use super::dataset::Dataset;
use super::framing::Framing;
use super::pool::Pool;
use super::split::Split;
use crate::Result;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where a dataset is on disk.
#[derive(Serialize, Deserialize)]
pub(crate) struct DatasetFiles {
    name: String,
    classes: Vec<String>,
    key: String,
    /// Training, validation and test split.
    splits: [SplitFile; 3],
}

/// A split, with the file of the images of which it is a part.
#[derive(Serialize, Deserialize)]
struct SplitFile {
    name: String,
    rows: Vec<i64>,
    images: PathBuf,
    /// `[C, H, W]` of an image.
    shape: [i64; 3],
    labels: Vec<i64>,
    pool_key: String,
}

impl SplitFile {
    fn write(split: &Split, folder: &Path) -> Result<Self> {
        let Split { name, pool, rows, .. } = split;
        let (name, rows, labels) = (name.clone(), rows.clone(), pool.labels.as_ref().clone());
        Ok(Self { name, rows, images: pool.share(folder)?, shape: pool.shape, labels, pool_key: pool.key() })
    }

    fn read(&self, classes: usize) -> Result<Split> {
        let pool = Pool::open_shared(&self.images, self.shape, &self.labels, &self.pool_key)?;
        Ok(Split::new(&self.name, &pool, self.rows.clone(), classes))
    }
}

impl Dataset {
    /// Writes the images to `folder`, unless they are there, and returns where they are.
    pub(crate) fn share(&self, folder: &Path) -> Result<DatasetFiles> {
        let Dataset { name, classes, key, train, validation, test, .. } = self;
        let [train, validation, test] = [train, validation, test].map(|split| SplitFile::write(split, folder));
        let splits = [train?, validation?, test?];
        Ok(DatasetFiles { name: name.clone(), classes: classes.clone(), key: key.clone(), splits })
    }

    /// Opens what [`Dataset::share`] wrote. The splits have the keys that they had.
    pub(crate) fn open_shared(files: &DatasetFiles) -> Result<Self> {
        let [train, validation, test] = files.splits.each_ref().map(|split| split.read(files.classes.len()));
        let (name, classes, key) = (files.name.clone(), files.classes.clone(), files.key.clone());
        let (train, validation, test) = (train?, validation?, test?);
        let (notices, framing, unlabelled) = (vec![], Framing::Squeeze, vec![]);
        Ok(Dataset { name, classes, train, validation, test, notices, key, framing, unlabelled })
    }
}
