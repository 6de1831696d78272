//! What a frozen teacher says of every image, computed once and kept on disk under a key of all it depends on.

use super::Listener;
use super::rows::{Rows, in_pieces};
use crate::data::{Split, Transform};
use crate::models::{Backbone, Model};
use crate::store::digest::digest;
use crate::store::tensors::digest_tensors;
use crate::{Error, Result};
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor, no_grad};

/// One row per sample of a split, f32 on the CPU, with the key it was made under. What lies on disk is read from there
/// as it is needed: it may be larger than memory.
pub struct CachedTensor {
    /// f32 `[N, D]` for features, `[N, C]` for logits.
    pub tensor: Tensor,
    /// Changes with everything the values depend on.
    pub key: String,
    split_key: String,
    /// True when it was read from disk rather than computed.
    pub from_disk: bool,
    /// Seconds it took to compute, whenever that was.
    pub seconds: f64,
}

impl CachedTensor {
    /// Wraps values that you computed yourself, row i for sample i of `split`; `key` names how.
    pub fn new(split: &Split, tensor: Tensor, key: &str) -> Result<Self> {
        let key = digest(&[split.key.as_bytes(), key.as_bytes()]);
        let made = Self { tensor, key, split_key: split.key.clone(), from_disk: false, seconds: 0.0 };
        made.check(&split.key, split.len(), "values")?;
        Ok(made)
    }

    /// The values of the samples at `indices` of `split`, for `split.select(indices)`.
    ///
    /// # Errors
    /// When these are the values of another split, or an index is outside it.
    pub fn select(&self, split: &Split, indices: &[i64]) -> Result<Self> {
        self.check(&split.key, split.len(), "values")?;
        let part = split.select(indices)?;
        Self::new(&part, self.tensor.f_index_select(0, &Tensor::f_from_slice(indices)?)?, &self.key)
    }

    pub(crate) fn check(&self, split_key: &str, rows: usize, what: &str) -> Result<()> {
        let size = self.tensor.size();
        if size.len() != 2 || size[0] != rows as i64 {
            return Err(Error::Input(format!(
                "{what} are {size:?}, but the split has {rows} samples: one row each is needed"
            )));
        }
        if self.split_key != split_key {
            return Err(Error::Input(format!(
                "these {what} were computed for other data (another split, seed, subset or image set); compute them again for this split"
            )));
        }
        Ok(())
    }
}

/// By the weights themselves: they may have been changed since they were loaded.
pub(super) fn features_key(backbone: &Backbone, split: &Split, transform: &Transform) -> Result<String> {
    let arch = format!("{:?}", backbone.arch);
    let weights = digest_tensors(&backbone.model.state())?;
    let (split, transform, precision) = (&split.key, transform.key(), backbone.model.precision.to_string());
    Ok(digest(&["features", &arch, &weights, split, &transform, &precision].map(str::as_bytes)))
}

/// The frozen backbone's features f32 `[N, D]` of every image of `split`, in evaluation mode and without gradients.
///
/// With a `folder` they are kept there and found again as long as data, transform and backbone stay the same.
///
/// # Errors
/// As libtorch's and the disk's; and when the user interrupts it, after which the rows so far stay in the folder and
/// the next call goes on from there.
pub fn backbone_features(
    backbone: &Backbone,
    split: &Split,
    transform: &Transform,
    batch_size: usize,
    folder: Option<&Path>,
    listener: &Listener,
) -> Result<CachedTensor> {
    let device = backbone.model.device();
    let name = format!("{} on {}", backbone.arch, split.name);
    let shape = [split.len() as i64, backbone.arch.features()];
    let key = features_key(backbone, split, transform)?;
    let rows = Rows { name: "features", key: &key, kind: Kind::Float, shape: &shape, timed: true };
    let pass = backbone.model.pass()?;
    // Copies wait for a GPU, which then waits for its next batch: there is one for several.
    let batches = if device == Device::Cpu { 1 } else { 8 };
    cached(folder, split, &rows, batches * batch_size, (&name, listener), &mut |from, to| {
        let images = split.batch(&(from..to).collect::<Vec<_>>())?.images.f_to_device(device)?;
        let of = |images: &Tensor| pass(&transform.apply(images, device)?);
        let found = images.f_split(batch_size.max(1) as i64, 0)?.iter().map(of).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&found, 0)?.f_to_device(Device::Cpu)?)
    })
}

/// The teacher's logits f32 `[N, C]`: its head on the features of `split`.
pub fn teacher_logits(
    head: &Model,
    split: &Split,
    features: &CachedTensor,
    folder: Option<&Path>,
) -> Result<CachedTensor> {
    features.check(&split.key, split.len(), "features")?;
    let key = digest(&[b"logits", features.key.as_bytes(), digest_tensors(&head.state())?.as_bytes()]);
    let mut some = |from: i64, to: i64| -> Result<Tensor> {
        let rows = features.tensor.f_narrow(0, from, to - from)?.f_to_device(head.device())?;
        Ok(no_grad(|| head.forward(&rows, false))?.f_to_device(Device::Cpu)?)
    };
    let shape = [split.len() as i64, some(0, 1)?.size().last().copied().unwrap_or(1)];
    let name = format!("{} on {}", head.name, split.name);
    let rows = Rows { name: "logits", key: &key, kind: Kind::Float, shape: &shape, timed: true };
    cached(folder, split, &rows, HEAD_ROWS, (&name, &Listener::default()), &mut some)
}

/// Enough at a time that a linear layer is quick, few enough that the largest backbone's take 64 MB.
const HEAD_ROWS: usize = 8192;

fn cached(
    folder: Option<&Path>,
    split: &Split,
    rows: &Rows,
    piece: usize,
    shown: (&str, &Listener),
    some: &mut dyn FnMut(i64, i64) -> Result<Tensor>,
) -> Result<CachedTensor> {
    let made = |tensor, seconds, from_disk| {
        let made = CachedTensor { tensor, key: rows.key.to_owned(), split_key: split.key.clone(), from_disk, seconds };
        made.check(&split.key, split.len(), rows.name).map(|()| made)
    };
    let Some(folder) = folder else {
        let start = Instant::now();
        let tensor = Tensor::f_empty(rows.shape, (rows.kind, Device::Cpu))?;
        in_pieces(0, rows.len(), piece, shown, &mut |from, to| {
            Ok(tensor.f_narrow(0, from, to - from)?.f_copy_(&some(from, to)?)?)
        })?;
        return made(tensor, start.elapsed().as_secs_f64(), false);
    };
    let path = folder.join(format!("{}-{}-{}.safetensors", rows.name, split.name, &rows.key[..16]));
    // A file that can't be read, or was made under another key, is computed again and written over.
    if let Ok((tensor, seconds)) = rows.map(&path) {
        return made(tensor, seconds, true);
    }
    rows.write(&path, piece, shown, some)?;
    let (tensor, seconds) = rows.map(&path).map_err(|why| Error::Data(format!("{}: {why}", path.display())))?;
    made(tensor, seconds, false)
}
