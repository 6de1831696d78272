//! All images of a dataset: in one tensor of bytes, or in a file.

use super::pixel_file::PixelFile;
use super::sources::Originals;
use crate::store::atomic::write_bytes;
use crate::store::digest::hex;
use crate::store::tensors::{tensor_bytes, upload};
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Bytes of images that are copied from a file to a device at a time.
const PIECE: usize = 64 << 20;

/// Images and labels that the splits of a dataset share. Readers append to it until the first split is made.
pub(super) struct Pool {
    images: Images,
    /// `[C, H, W]` of an image; C is 1 (grey) or 3.
    pub shape: [i64; 3],
    pub labels: Arc<Vec<i64>>,
    /// The files of the images; `None` for datasets that are not folders of images.
    pub originals: Option<Arc<Originals>>,
    key: PoolKey,
}

enum Images {
    /// u8 `[capacity, C, H, W]`, of which the first `len()` are filled.
    Memory(Tensor),
    File(Arc<PixelFile>),
}

/// Digest over shape, pixels and labels, image by image.
#[derive(Clone)]
pub(super) enum PoolKey {
    Growing(Sha256),
    /// Of a pool that was finished earlier.
    Known(String),
}

impl PoolKey {
    pub fn new(shape: [i64; 3]) -> Self {
        Self::Growing(Sha256::new_with_prefix(format!("{shape:?}")))
    }

    pub fn add(&mut self, pixels: &[u8], labels: &[i64]) {
        if let Self::Growing(hash) = self {
            hash.update(pixels);
            labels.iter().for_each(|l| hash.update(l.to_le_bytes()));
        }
    }

    /// Hex SHA-256.
    pub fn text(&self) -> String {
        match self {
            Self::Growing(hash) => hex(&hash.clone().finalize()),
            Self::Known(key) => key.clone(),
        }
    }
}

impl Clone for Pool {
    /// Shares the images and the labels. (An `Arc` of a tensor could not be sent to another thread.)
    fn clone(&self) -> Self {
        let images = match &self.images {
            Images::Memory(all) => Images::Memory(all.shallow_clone()),
            Images::File(file) => Images::File(Arc::clone(file)),
        };
        let (labels, originals, key) = (self.labels.clone(), self.originals.clone(), self.key.clone());
        Pool { images, shape: self.shape, labels, originals, key }
    }
}

impl Pool {
    /// Takes memory for at most `capacity` images of `shape` `[C, H, W]`.
    pub fn new(capacity: usize, shape: [i64; 3]) -> Result<Self> {
        let [c, h, w] = shape;
        let all = Tensor::f_empty([capacity as i64, c, h, w], (Kind::Uint8, Device::Cpu))?;
        let (labels, key) = (Arc::new(Vec::with_capacity(capacity)), PoolKey::new(shape));
        Ok(Pool { images: Images::Memory(all), shape, labels, originals: None, key })
    }

    /// The images of a file, with their labels.
    pub fn of_file(file: PixelFile, shape: [i64; 3], labels: Vec<i64>) -> Self {
        let (labels, key) = (Arc::new(labels), PoolKey::Known(file.key.clone()));
        Pool { images: Images::File(Arc::new(file)), shape, labels, originals: None, key }
    }

    /// Returns a file whose first bytes are the images, for other processes. Images in memory are written to `folder`,
    /// unless they are there.
    pub fn share(&self, folder: &Path) -> Result<PathBuf> {
        match &self.images {
            Images::File(file) => Ok(file.path().to_owned()),
            Images::Memory(all) => {
                let path = folder.join(format!("images-{}.bin", &self.key()[..16]));
                if !path.exists() {
                    write_bytes(&path, &tensor_bytes(&all.f_narrow(0, 0, self.len() as i64)?)?)?;
                }
                Ok(path)
            }
        }
    }

    /// Opens what [`Pool::share`] returned. The images are mapped into memory, which all processes of a machine share.
    pub fn open_shared(path: &Path, shape: [i64; 3], labels: &[i64], key: &str) -> Result<Self> {
        let [c, h, w] = shape;
        let n = labels.len() as i64;
        let bytes = n * c * h * w;
        let found = std::fs::metadata(path).map_err(|e| Error::io("reading", path, e))?.len();
        let name = path.to_str().filter(|_| found >= bytes as u64).ok_or_else(|| {
            let path = path.display();
            Error::Data(format!("{path} holds {found} bytes, and its images take {bytes}; delete it and sweep again"))
        })?;
        let all = Tensor::f_from_file(name, false, Some(bytes), (Kind::Uint8, Device::Cpu))?.f_view([n, c, h, w])?;
        let (labels, key) = (Arc::new(labels.to_vec()), PoolKey::Known(key.to_owned()));
        Ok(Pool { images: Images::Memory(all), shape, labels, originals: None, key })
    }

    /// Appends as many images as there are labels; `pixels` holds them one after the other, each `[C, H, W]`.
    pub fn push(&mut self, pixels: &[u8], labels: &[i64]) -> Result<()> {
        let (at, n, [c, h, w]) = (self.len() as i64, labels.len() as i64, self.shape);
        let Images::Memory(all) = &self.images else {
            return Err(Error::Data("images cannot be added to a finished file".into()));
        };
        let piece = Tensor::f_from_slice(pixels)?.f_view([n, c, h, w])?;
        all.f_narrow(0, at, n)?.f_copy_(&piece)?;
        self.key.add(pixels, labels);
        Arc::make_mut(&mut self.labels).extend_from_slice(labels);
        Ok(())
    }

    /// Number of images so far.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Height and width in pixels.
    pub fn size(&self) -> (i64, i64) {
        (self.shape[1], self.shape[2])
    }

    /// Bytes of all images.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<i64>() as usize * self.len()
    }

    /// Hex SHA-256 over shape, pixels and labels.
    pub fn key(&self) -> String {
        self.key.text()
    }

    /// The images u8 `[B, C, H, W]` at these rows, where the pool is.
    pub fn rows(&self, rows: &[i64]) -> Result<Tensor> {
        let [c, h, w] = self.shape;
        match &self.images {
            Images::Memory(all) => Ok(all.f_index_select(0, &upload(rows, all.device())?)?),
            Images::File(file) => Ok(file.read(rows)?.f_view([-1, c, h, w])?),
        }
    }

    /// Says which rows are needed next. A file begins to read them.
    pub fn read_ahead(&self, rows: Vec<i64>) {
        if let Images::File(file) = &self.images {
            file.read_ahead(rows);
        }
    }

    /// The same pool with its images on a device.
    pub fn on(&self, device: Device) -> Result<Self> {
        let (n, [c, h, w]) = (self.len() as i64, self.shape);
        let mut moved = self.clone();
        let all = match &self.images {
            Images::Memory(all) => all.f_narrow(0, 0, n)?.f_to_device(device)?,
            Images::File(_) => {
                let all = Tensor::f_empty([n, c, h, w], (Kind::Uint8, device))?;
                let step = (PIECE / (c * h * w) as usize).max(1);
                for from in (0..n).step_by(step) {
                    let piece: Vec<i64> = (from..n.min(from + step as i64)).collect();
                    all.f_narrow(0, from, piece.len() as i64)?.f_copy_(&self.rows(&piece)?)?;
                }
                all
            }
        };
        moved.images = Images::Memory(all);
        Ok(moved)
    }
}
