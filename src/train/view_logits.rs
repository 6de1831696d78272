//! What a frozen teacher says of every image in every view: too much for memory, so it is written to disk as it is
//! computed, and read from there row by row.

use super::Listener;
use super::rows::Rows;
use crate::data::{Split, Transform, Views};
use crate::models::Model;
use crate::store::digest::digest;
use crate::store::tensors::digest_tensors;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor, no_grad};

/// The teacher's logits for (image, view), f16 on disk: a safetensors file with `logits` `[N, V, C]`.
pub struct ViewLogits {
    logits: Tensor, // f16 [N, V, C], a memory map
    views: Views,
    /// Of the file's images, those of this value.
    rows: Option<Vec<i64>>,
    pub(super) split_key: String,
    /// Changes with all that the logits depend on.
    pub key: String,
    pub path: PathBuf,
    /// True when it was found rather than computed.
    pub from_disk: bool,
}

impl Clone for ViewLogits {
    /// Shares the file.
    fn clone(&self) -> Self {
        Self {
            logits: self.logits.shallow_clone(),
            views: self.views.clone(),
            rows: self.rows.clone(),
            split_key: self.split_key.clone(),
            key: self.key.clone(),
            path: self.path.clone(),
            from_disk: self.from_disk,
        }
    }
}

/// The logits of `teacher`, a whole network from images to logits, for every image of `split` in every view, in
/// evaluation mode: images are viewed first and then resized and normalised by `transform`, as the student's are.
///
/// They are kept in `folder` and found again as long as nothing they depend on changes. A pass that was cut short goes
/// on where it was. Memory does not grow with the number of images or views.
///
/// # Errors
/// As libtorch's and the disk's; and when the user interrupts it, after which the rows so far stay on disk.
pub fn view_logits(
    teacher: &Model,
    split: &Split,
    transform: &Transform,
    views: &Views,
    batch_size: usize,
    folder: &Path,
    listener: &Listener,
) -> Result<ViewLogits> {
    let weights = digest_tensors(&teacher.state())?;
    let precision = teacher.precision.to_string();
    let parts = ["view logits", &weights, &split.key, &transform.key(), &views.key(), &precision];
    let key = digest(&parts.map(str::as_bytes));
    let path = folder.join(format!("view-logits-{}-{}.safetensors", split.name, &key[..16]));
    let from_disk = path.exists();
    let device = teacher.device();
    let batch = |pairs: &[(i64, i64)]| -> Result<Tensor> {
        let (images, seen): (Vec<i64>, Vec<i64>) = pairs.iter().copied().unzip();
        transform.apply(&views.apply(&split.batch(&images)?.images, &seen)?, device)
    };
    // A pass is made for batches of one shape.
    let classes = no_grad(|| teacher.forward(&batch(&[(0, 0)])?, false))?.size()[1];
    let (per_image, shape) = (views.len() as i64, [split.len() as i64, views.len() as i64, classes]);
    let rows = Rows { name: "logits", key: &key, kind: Kind::Half, shape: &shape, timed: false };
    if !from_disk {
        let name = format!("{} on {} views of {}", teacher.name, views.len(), split.name);
        let pass = teacher.pass()?;
        rows.write(&path, batch_size, (&name, listener), &mut |from, to| {
            let pairs: Vec<_> = (from..to).map(|row| (row / per_image, row % per_image)).collect();
            let logits = pass(&batch(&pairs)?)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Half)?;
            if i64::try_from(logits.f_isfinite()?.f_logical_not()?.f_sum(Kind::Int64)?)? > 0 {
                return Err(Error::Data(format!(
                    "{name}: a logit is not finite in f16 (beyond 65504); check the teacher's weights"
                )));
            }
            Ok(logits)
        })?;
    }
    let (logits, _) = rows
        .map(&path)
        .map_err(|why| Error::Data(format!("{}: {why}; delete it, and it is computed again", path.display())))?;
    let (views, split_key) = (views.clone(), split.key.clone());
    Ok(ViewLogits { logits, views, rows: None, split_key, key, path, from_disk })
}

impl ViewLogits {
    pub fn views(&self) -> &Views {
        &self.views
    }

    pub(super) fn classes(&self) -> i64 {
        self.logits.size()[2]
    }

    /// Row i: the logits f32 of image `images[i]` in view `views[i]`; `[B, C]` on the CPU, read from disk.
    ///
    /// # Errors
    /// When an image or view is out of range, or there are not as many of both.
    pub fn rows(&self, images: &[i64], views: &[i64]) -> Result<Tensor> {
        if images.len() != views.len() {
            return Err(Error::Input(format!("{} images and {} views: give one for each", images.len(), views.len())));
        }
        let size = self.logits.size();
        let (all, per_image, classes) = (size[0], size[1], size[2]);
        let place = |(&image, &view): (&i64, &i64)| {
            let stored = match &self.rows {
                Some(rows) => usize::try_from(image).ok().and_then(|i| rows.get(i)).copied(),
                None => Some(image).filter(|i| (0..all).contains(i)),
            };
            stored.filter(|_| (0..per_image).contains(&view)).map(|image| image * per_image + view).ok_or_else(|| {
                Error::Input(format!("no logits of image {image} in view {view}: there are {per_image} views"))
            })
        };
        let places = images.iter().zip(views).map(place).collect::<Result<Vec<i64>>>()?;
        let rows = self.logits.f_view([-1, classes])?.f_index_select(0, &Tensor::f_from_slice(&places)?)?;
        Ok(rows.f_to_kind(Kind::Float)?)
    }

    /// The logits of the samples at `indices` of `split`, for `split.select(indices)`. The file is shared.
    ///
    /// # Errors
    /// When these are the logits of another split, or an index is outside it.
    pub fn select(&self, split: &Split, indices: &[i64]) -> Result<Self> {
        self.check(&split.key)?;
        let part = split.select(indices)?;
        let rows = match &self.rows {
            Some(rows) => indices.iter().map(|&i| rows[i as usize]).collect(),
            None => indices.to_vec(),
        };
        let key = digest(&[self.key.as_bytes(), part.key.as_bytes()]);
        Ok(Self { rows: Some(rows), split_key: part.key, key, ..self.clone() })
    }

    pub(super) fn check(&self, split_key: &str) -> Result<()> {
        if self.split_key == split_key {
            return Ok(());
        }
        Err(Error::Input(
            "these logits of views were computed for other data (another split, seed or subset); compute them again for this split".into(),
        ))
    }
}
