//! All images of a dataset in one tensor of bytes.

use crate::Result;
use crate::store::digest::hex;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Images and labels that the splits of a dataset share. Readers append to it until the first split is made.
pub(super) struct Pool {
    /// u8 `[capacity, C, H, W]`, of which the first `len()` are filled; C is 1 (grey) or 3.
    pub images: Tensor,
    pub labels: Arc<Vec<i64>>,
    /// The file of each image, as a path in the folder of the dataset; empty for datasets that are not folders of
    /// images.
    pub files: Arc<Vec<String>>,
    hash: Sha256,
}

impl Clone for Pool {
    /// Shares the tensor and the labels. (An `Arc` of a tensor could not be sent to another thread.)
    fn clone(&self) -> Self {
        let Pool { images, labels, files, hash } = self;
        Pool { images: images.shallow_clone(), labels: labels.clone(), files: files.clone(), hash: hash.clone() }
    }
}

impl Pool {
    /// Takes memory for at most `capacity` images of `shape` `[C, H, W]`.
    pub fn new(capacity: usize, shape: [i64; 3]) -> Result<Self> {
        let [c, h, w] = shape;
        let images = Tensor::f_empty([capacity as i64, c, h, w], (Kind::Uint8, Device::Cpu))?;
        let hash = Sha256::new_with_prefix(format!("{shape:?}"));
        Ok(Pool { images, labels: Arc::new(Vec::with_capacity(capacity)), files: Arc::default(), hash })
    }

    /// Appends as many images as there are labels; `pixels` holds them one after the other, each `[C, H, W]`.
    pub fn push(&mut self, pixels: &[u8], labels: &[i64]) -> Result<()> {
        let shape = self.images.size();
        let n = labels.len() as i64;
        let piece = Tensor::f_from_slice(pixels)?.f_view([n, shape[1], shape[2], shape[3]])?;
        self.images.f_narrow(0, self.len() as i64, n)?.f_copy_(&piece)?;
        Arc::make_mut(&mut self.labels).extend_from_slice(labels);
        self.hash.update(pixels);
        labels.iter().for_each(|l| self.hash.update(l.to_le_bytes()));
        Ok(())
    }

    /// Number of images so far.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Hex SHA-256 over shape, pixels and labels.
    pub fn key(&self) -> String {
        hex(&self.hash.clone().finalize())
    }
}
