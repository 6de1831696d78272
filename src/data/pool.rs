//! All images of a data set in one tensor of bytes, and the splits as lists of rows of it.

use super::split::{Purpose, noisy, stratified};
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Being filled by a reader: room for every image is taken once, and readers push into it piece by piece.
pub(crate) struct Pool {
    images: Tensor, // u8 [P, C, H, W], C is 1 (grey) or 3
    labels: Vec<i64>,
    hash: Sha256,
}

/// A filled pool.
pub(crate) struct Stock {
    images: Tensor, // u8 [P, C, H, W]
    pub labels: Arc<[i64]>,
    hash: String,
}

impl Stock {
    /// The same tensor and labels, not a copy. (An `Arc` of a tensor could not be sent to another thread.)
    fn share(&self) -> Self {
        Stock { images: self.images.shallow_clone(), labels: self.labels.clone(), hash: self.hash.clone() }
    }
}

impl Pool {
    /// Room for `capacity` images of `shape` `[C, H, W]`.
    pub fn new(capacity: usize, shape: [i64; 3]) -> Result<Self> {
        let [c, h, w] = shape;
        let images = Tensor::f_empty([capacity as i64, c, h, w], (Kind::Uint8, Device::Cpu))?;
        let mut hash = Sha256::new();
        hash.update(format!("{shape:?}"));
        Ok(Pool { images, labels: Vec::with_capacity(capacity), hash })
    }

    /// Appends as many images as there are labels; `pixels` holds them one after the other, each `[C, H, W]`.
    pub fn push(&mut self, pixels: &[u8], labels: &[i64]) -> Result<()> {
        let shape = self.images.size();
        let (start, n) = (self.labels.len() as i64, labels.len() as i64);
        let piece = Tensor::f_from_slice(pixels)?.f_view([n, shape[1], shape[2], shape[3]])?;
        self.images.f_narrow(0, start, n)?.f_copy_(&piece)?;
        self.labels.extend_from_slice(labels);
        self.hash.update(pixels);
        labels.iter().for_each(|l| self.hash.update(l.to_le_bytes()));
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn finish(self) -> Result<Stock> {
        let images = self.images.f_narrow(0, 0, self.labels.len() as i64)?;
        Ok(Stock { images, labels: self.labels.into(), hash: crate::store::digest::hex(&self.hash.finalize()) })
    }
}

/// Some of the images of a data set, addressed by sample index: position `0..len()` in this split.
///
/// CIFAR-10 and IDX keep the order of their files, in which the classes are mixed; image folders are mixed on load.
/// Splits share one tensor of bytes; on top of it each holds a list of rows.
pub struct Split {
    pub name: String,
    /// Hex SHA-256 over the pixels and labels of the data set and the rows of this split: another key, other images
    /// or another order.
    pub key: String,
    stock: Stock, // shared by the splits of a data set
    rows: Vec<i64>,
    classes: usize,
}

impl Clone for Split {
    /// Shares the images.
    fn clone(&self) -> Self {
        Split {
            name: self.name.clone(),
            key: self.key.clone(),
            stock: self.stock.share(),
            rows: self.rows.clone(),
            classes: self.classes,
        }
    }
}

/// Images with their labels and where they came from, so that anything computed from them can be kept by index.
pub struct Batch {
    /// u8 `[B, 3, H, W]` on the CPU, red, green, blue, 0..255.
    pub images: Tensor,
    /// i64 `[B]` on the CPU.
    pub labels: Tensor,
    /// Sample indices into the split, `B` of them.
    pub indices: Vec<i64>,
}

impl Split {
    pub(crate) fn new(name: &str, stock: &Stock, rows: Vec<i64>, classes: usize) -> Self {
        let bytes: Vec<u8> = rows.iter().flat_map(|r| r.to_le_bytes()).collect();
        let key = crate::store::digest::sha256([stock.hash.as_bytes(), name.as_bytes(), &bytes]);
        Split { name: name.into(), key, stock: stock.share(), rows, classes }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Height and width in pixels; every image of a split has the same.
    pub fn size(&self) -> (i64, i64) {
        let shape = self.stock.images.size();
        (shape[2], shape[3])
    }

    /// All labels in split order, i64 `[N]`.
    pub fn labels(&self) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&self.label_list())?)
    }

    fn label_list(&self) -> Vec<i64> {
        self.rows.iter().map(|&r| self.stock.labels[r as usize]).collect()
    }

    /// Images of each class, indexed by label.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        self.rows.iter().for_each(|&r| counts[self.stock.labels[r as usize] as usize] += 1);
        counts
    }

    /// The images at these sample indices, in this order; an index may occur more than once.
    ///
    /// # Errors
    /// When `indices` is empty or one is outside `0..len()`.
    pub fn batch(&self, indices: &[i64]) -> Result<Batch> {
        if indices.is_empty() {
            return Err(Error::Input(format!("an empty batch of the {} split: give at least one index", self.name)));
        }
        let rows = indices.iter().map(|&i| self.row(i)).collect::<Result<Vec<i64>>>()?;
        let labels: Vec<i64> = rows.iter().map(|&r| self.stock.labels[r as usize]).collect();
        let pick = crate::store::tensors::upload(&rows, self.stock.images.device())?; // [B]
        let mut images = self.stock.images.f_index_select(0, &pick)?; // [B, C, H, W]
        if images.size()[1] == 1 {
            // Grey becomes three equal channels; much quicker than expand and copy.
            images = Tensor::f_cat(&[&images, &images, &images], 1)?;
        }
        Ok(Batch { images, labels: Tensor::f_from_slice(&labels)?, indices: indices.to_vec() })
    }

    /// The image at a sample index, u8 `[3, H, W]`.
    ///
    /// # Errors
    /// When `index` is outside `0..len()`.
    pub fn image(&self, index: i64) -> Result<Tensor> {
        Ok(self.batch(&[index])?.images.f_squeeze_dim(0)?)
    }

    /// The label at a sample index.
    ///
    /// # Errors
    /// When `index` is outside `0..len()`.
    pub fn label(&self, index: i64) -> Result<i64> {
        Ok(self.stock.labels[self.row(index)? as usize])
    }

    /// The first `n` images as a split of their own, with their own key.
    ///
    /// # Errors
    /// When `n` is 0 or more than there are.
    pub fn take(&self, n: usize) -> Result<Split> {
        if n == 0 || n > self.len() {
            return Err(Error::Input(format!(
                "{n} images of the {} split were asked for: take 1 to {}",
                self.name,
                self.len()
            )));
        }
        Ok(Split::new(&self.name, &self.stock, self.rows[..n].to_vec(), self.classes))
    }

    /// The images at these sample indices, in this order, as a split of their own, with their own key.
    ///
    /// # Errors
    /// When `indices` is empty or one is outside `0..len()`.
    pub fn select(&self, indices: &[i64]) -> Result<Split> {
        if indices.is_empty() {
            return Err(Error::Input(format!(
                "a selection of no images of the {} split: give at least one",
                self.name
            )));
        }
        let rows = indices.iter().map(|&i| self.row(i)).collect::<Result<Vec<i64>>>()?;
        Ok(Split::new(&self.name, &self.stock, rows, self.classes))
    }

    /// The sample indices of a stratified share of the images, in split order: those that are given labels where labels are
    /// few. At least one image of each class; the same for the same seed.
    ///
    /// # Errors
    /// When `fraction` is outside (0, 1].
    pub fn few(&self, fraction: f64, seed: u64) -> Result<Vec<i64>> {
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(Error::Input(format!("labelled fraction must be in (0, 1], got {fraction}; try 0.05")));
        }
        let n = (self.len() as f64 * fraction).round() as usize;
        let all: Vec<i64> = (0..self.len() as i64).collect();
        Ok(stratified(&all, &self.label_list(), n.max(self.classes), Purpose::Labelled, seed).0)
    }

    /// All labels in split order, i64 `[N]`, of which a share is wrong: replaced by another class, each equally likely. The
    /// same images for the same seed.
    ///
    /// # Errors
    /// When `fraction` is outside [0, 1].
    pub fn noisy_labels(&self, fraction: f64, seed: u64) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::Input(format!("the share of wrong labels must be in [0, 1], got {fraction}; try 0.3")));
        }
        Ok(Tensor::f_from_slice(&noisy(&self.label_list(), self.classes, fraction, seed))?)
    }

    /// The same split with its bytes on a device, where batches are then put together.
    pub(crate) fn on(&self, device: Device) -> Result<Split> {
        let stock = Stock { images: self.stock.images.f_to_device(device)?, ..self.stock.share() };
        Ok(Split { stock, ..self.clone() })
    }

    /// Bytes of the whole pool that this split is a part of.
    pub(crate) fn pool_bytes(&self) -> usize {
        self.stock.images.numel()
    }

    /// The row of the pool at a sample index.
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
        for (name, kind, tensor) in [("images", "u8", &self.images), ("labels", "i64", &self.labels)] {
            let range = range(tensor).map_err(|_| fmt::Error)?;
            let comma = if name == "images" { ", " } else { "" };
            write!(f, "{name} {kind} {:?} ({range}){comma}", tensor.size())?;
        }
        Ok(())
    }
}
