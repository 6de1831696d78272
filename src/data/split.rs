//! A split: some of the images of a dataset, by sample index.

use super::augment::Augment;
use super::pool::Pool;
use super::sampling::{Purpose, noisy, stratified};
use super::sources::{Crops, Originals};
use crate::store::digest::sha256;
use crate::{Error, Result};
use std::fmt;
use std::sync::Arc;
use tch::{Device, Tensor};

/// Label of an image without a label: the `ignore_index` of `F.cross_entropy`.
pub(crate) const UNLABELLED: i64 = -100;

/// Some of the images of a dataset. A sample index is a position `0..len()` in this split.
///
/// CIFAR-10 and IDX keep the order of their files, in which the classes are mixed; image folders are mixed on load.
/// The splits of a dataset and their clones share the images, in memory or in a file.
#[derive(Clone)]
pub struct Split {
    /// "train", "validation" or "test".
    pub name: String,
    /// Hex SHA-256 over the pixels and labels of the dataset and the rows of this split: a different key means
    /// different images or a different order.
    pub key: String,
    pub(super) pool: Pool,
    /// Positions in the pool.
    pub(super) rows: Vec<i64>,
    classes: usize,
}

/// Images, their labels and their sample indices.
pub struct Batch {
    /// u8 `[B, 3, H, W]`, RGB, 0 to 255; on the CPU unless a fit has moved the split to its device.
    pub images: Tensor,
    /// i64 `[B]` on the CPU.
    pub labels: Tensor,
    /// Sample indices into the split, `B` of them.
    pub indices: Vec<i64>,
}

impl Split {
    pub(super) fn new(name: &str, pool: &Pool, rows: Vec<i64>, classes: usize) -> Self {
        let bytes: Vec<u8> = rows.iter().flat_map(|r| r.to_le_bytes()).collect();
        let key = sha256([pool.key().as_bytes(), name.as_bytes(), &bytes]);
        Split { name: name.into(), key, pool: pool.clone(), rows, classes }
    }

    /// Returns the number of images, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a split is never empty")]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns the height and width in pixels, which are the same for all images of a split.
    pub fn size(&self) -> (i64, i64) {
        self.pool.size()
    }

    /// Returns all labels in split order, i64 `[N]` on the CPU; -100 for images without a label.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn labels(&self) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&self.labels_of(&self.rows))?)
    }

    fn labels_of(&self, rows: &[i64]) -> Vec<i64> {
        rows.iter().map(|&r| self.pool.labels[r as usize]).collect()
    }

    /// Number of classes of the dataset.
    pub(crate) fn classes(&self) -> usize {
        self.classes
    }

    /// The number of images of each class, indexed by label; images without a label are not counted.
    pub(crate) fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        let labels = self.labels_of(&self.rows).into_iter().filter(|label| *label != UNLABELLED);
        labels.for_each(|label| counts[label as usize] += 1);
        counts
    }

    /// Returns the images at these sample indices, in this order; an index may occur more than once.
    ///
    /// # Errors
    /// When `indices` is empty or one is outside `0..len()`, or the file of the images cannot be read.
    pub fn batch(&self, indices: &[i64]) -> Result<Batch> {
        let rows = self.rows_at(indices, "an empty batch")?;
        let mut images = self.pool.rows(&rows)?; // [B, C, H, W]
        if images.size()[1] == 1 {
            // Grey becomes three equal channels; much faster than expand and copy.
            images = Tensor::f_cat(&[&images, &images, &images], 1)?;
        }
        Ok(Batch { images, labels: Tensor::f_from_slice(&self.labels_of(&rows))?, indices: indices.to_vec() })
    }

    /// Says which batch will be asked for soon. If the images lie in a file, a thread begins to read it.
    pub(crate) fn read_ahead(&self, indices: &[i64]) {
        if let Ok(rows) = self.rows_at(indices, "nothing to read ahead") {
            self.pool.read_ahead(rows);
        }
    }

    /// Returns the image at a sample index, u8 `[3, H, W]` on the CPU, 0 to 255.
    ///
    /// # Errors
    /// When `index` is outside `0..len()`.
    pub fn image(&self, index: i64) -> Result<Tensor> {
        Ok(self.batch(&[index])?.images.f_squeeze_dim(0)?)
    }

    /// Returns the label at a sample index; -100 for an image without a label.
    ///
    /// # Errors
    /// When `index` is outside `0..len()`.
    pub fn label(&self, index: i64) -> Result<i64> {
        Ok(self.pool.labels[self.row(index)? as usize])
    }

    /// Returns the file of the image at a sample index, as a path in the folder of the dataset: `train/cat/001.png`.
    ///
    /// # Errors
    /// When `index` is outside `0..len()`, or the dataset is not a folder of images.
    pub fn file_name(&self, index: i64) -> Result<&str> {
        Ok(&self.dataset_files()?[self.row(index)? as usize])
    }

    /// The files of all images of the dataset, those of the other splits included.
    pub(crate) fn dataset_files(&self) -> Result<&[String]> {
        Ok(&self.originals()?.files)
    }

    /// The files of the images.
    fn originals(&self) -> Result<&Arc<Originals>> {
        self.pool.originals.as_ref().ok_or_else(|| {
            Error::Input(
                "the images of this dataset have no files of their own; open a folder of images or shards with \
                 image_folder"
                    .into(),
            )
        })
    }

    /// Returns the images at these sample indices as `augment` crops them out of their files, u8 `[B, 3, S, S]` on the
    /// CPU.
    ///
    /// # Errors
    /// As [`Split::batch`], and when a file is not what it was.
    pub(crate) fn crops(&self, indices: &[i64], augment: &Augment, seed: u64, epoch: u64) -> Result<Tensor> {
        self.originals()?.read(&self.wanted(indices, augment, seed, epoch)?)
    }

    /// Says which crops will be asked for soon. Threads begin to decode them.
    pub(crate) fn crops_ahead(&self, indices: &[i64], augment: &Augment, seed: u64, epoch: u64) {
        if let (Ok(originals), Ok(wanted)) = (self.originals(), self.wanted(indices, augment, seed, epoch)) {
            originals.read_ahead(wanted);
        }
    }

    fn wanted(&self, indices: &[i64], augment: &Augment, seed: u64, epoch: u64) -> Result<Crops> {
        let rows = self.rows_at(indices, "an empty batch")?;
        let (images, augment) = (rows.into_iter().zip(indices.iter().copied()).collect(), augment.clone());
        Ok(Crops { images, augment, seed, epoch, size: self.size().0 as u32 })
    }

    /// Refuses a dataset whose images have no files of their own.
    pub(crate) fn check_originals(&self) -> Result<()> {
        self.originals().map(drop)
    }

    /// This split with more rows of the pool behind its own.
    pub(super) fn followed_by(&self, rows: &[i64]) -> Split {
        Split::new(&self.name, &self.pool, [&self.rows, rows].concat(), self.classes)
    }

    /// Returns the first `n` images as a split with its own key.
    ///
    /// # Errors
    /// When `n` is 0 or more than there are.
    pub fn take(&self, n: usize) -> Result<Split> {
        if n == 0 || n > self.len() {
            let (name, len) = (&self.name, self.len());
            return Err(Error::Input(format!("{n} images of the {name} split were asked for: take 1 to {len}")));
        }
        Ok(Split::new(&self.name, &self.pool, self.rows[..n].to_vec(), self.classes))
    }

    /// Returns the images at these sample indices, in this order, as a split with its own key.
    ///
    /// # Errors
    /// When `indices` is empty or one is outside `0..len()`.
    pub fn select(&self, indices: &[i64]) -> Result<Split> {
        let rows = self.rows_at(indices, "a selection of no images")?;
        Ok(Split::new(&self.name, &self.pool, rows, self.classes))
    }

    /// Returns the sample indices, in split order, of a stratified share of the images with a label: the images that
    /// keep their labels in an experiment with few labels. There is at least one image of each class. The same seed
    /// gives the same indices.
    ///
    /// # Errors
    /// When `fraction` is outside (0, 1].
    pub fn labelled_subset(&self, fraction: f64, seed: u64) -> Result<Vec<i64>> {
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(Error::Input(format!("labelled fraction must be in (0, 1], got {fraction}; try 0.05")));
        }
        let labels = self.labels_of(&self.rows);
        let all: Vec<i64> = (0..self.len() as i64).filter(|&i| labels[i as usize] != UNLABELLED).collect();
        let n = (all.len() as f64 * fraction).round() as usize;
        Ok(stratified(&all, &labels, n.max(self.classes), Purpose::LabelledSubset, seed).0)
    }

    /// Returns all labels in split order, i64 `[N]`, with a `fraction` of them wrong: each is replaced by one of the
    /// other classes with equal probability (symmetric label noise). The same seed changes the same images.
    ///
    /// # Errors
    /// When `fraction` is outside [0, 1], or an image has no label.
    pub fn noisy_labels(&self, fraction: f64, seed: u64) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::Input(format!("the share of wrong labels must be in [0, 1], got {fraction}; try 0.3")));
        }
        let labels = self.labels_of(&self.rows);
        if labels.contains(&UNLABELLED) {
            return Err(Error::Input(
                "wrong labels for images that have none: take the train split of the dataset".into(),
            ));
        }
        Ok(Tensor::f_from_slice(&noisy(&labels, self.classes, fraction, seed))?)
    }

    /// The same split with its images on a device, where batches are then assembled.
    pub(crate) fn on(&self, device: Device) -> Result<Split> {
        let mut moved = self.clone();
        moved.pool = self.pool.on(device)?;
        Ok(moved)
    }

    /// Bytes of all images of the dataset, which the splits share.
    pub(crate) fn pool_bytes(&self) -> usize {
        self.pool.bytes()
    }

    /// The rows of the pool at sample indices. `nothing` begins the message about an empty list.
    fn rows_at(&self, indices: &[i64], nothing: &str) -> Result<Vec<i64>> {
        if indices.is_empty() {
            return Err(Error::Input(format!("{nothing} of the {} split: give at least one index", self.name)));
        }
        indices.iter().map(|&i| self.row(i)).collect()
    }

    fn row(&self, index: i64) -> Result<i64> {
        usize::try_from(index).ok().and_then(|i| self.rows.get(i)).copied().ok_or_else(|| {
            Error::Input(format!(
                "sample index {index} is outside the {} split: it has {} images, 0 to {}",
                self.name,
                self.len(),
                self.len() as i64 - 1
            ))
        })
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (h, w) = self.size();
        write!(f, "{}: {} images of {h}x{w} pixels, {} classes", self.name, self.len(), self.classes)
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |t: &Tensor| -> Result<String> {
            Ok(format!("{}..={}", t.f_min()?.f_int64_value(&[])?, t.f_max()?.f_int64_value(&[])?))
        };
        let (images, labels) = (&self.images, &self.labels);
        let (pixels, classes) = range(images).and_then(|i| Ok((i, range(labels)?))).map_err(|_| fmt::Error)?;
        write!(f, "images u8 {:?} ({pixels}), labels i64 {:?} ({classes})", images.size(), labels.size())
    }
}
