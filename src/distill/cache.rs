//! What a frozen teacher says of every image, computed once and kept on disk under a key of all it depends on.

use super::evaluate::{Pass, Ticker};
use super::{Event, Listener};
use crate::data::{Split, Transform};
use crate::files::{digest, digest_tensors, load_tensors, save_tensors};
use crate::models::{Backbone, Model};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Device, Tensor, no_grad};

/// One row per sample of a split, f32 on the CPU, with the key it was made under.
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

    pub(super) fn check(&self, split_key: &str, rows: usize, what: &str) -> Result<()> {
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
    let (split, transform) = (split.key.as_bytes(), transform.key());
    Ok(digest(&[b"features", arch.as_bytes(), weights.as_bytes(), split, transform.as_bytes()]))
}

/// The frozen backbone's features f32 `[N, D]` of every image of `split`, in evaluation mode and without gradients.
///
/// With a `folder` they are kept there and found again as long as data, transform and backbone stay the same.
///
/// # Errors
/// As libtorch's and the disk's; and when the user interrupts it, after which nothing is in the folder.
pub fn backbone_features(
    backbone: &Backbone,
    split: &Split,
    transform: &Transform,
    batch_size: usize,
    folder: Option<&Path>,
    listener: &Listener,
) -> Result<CachedTensor> {
    let device = backbone.model.device();
    cached(folder, "features", features_key(backbone, split, transform)?, split, || {
        let name = format!("{} on {}", backbone.arch, split.name);
        let mut ticker = Ticker::new(&name, split.len());
        let (pass, mut done) = (Pass::new(&name), 0);
        let mut rows = Vec::new();
        let order: Vec<i64> = (0..split.len() as i64).collect();
        for indices in crate::data::batches(&order, batch_size)? {
            pass.check(done, split.len())?;
            done += indices.len();
            let inputs = transform.apply(&split.batch(&indices)?.images, device)?;
            rows.push(backbone.features(&inputs)?.f_to_device(Device::Cpu)?);
            if let Some(progress) = ticker.advance(indices.len()) {
                listener.tell(Event::Progress(progress));
            }
        }
        Ok(Tensor::f_cat(&rows, 0)?)
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
    cached(folder, "logits", key, split, || {
        let logits = no_grad(|| head.forward(&features.tensor.f_to_device(head.device())?, false))?;
        Ok(logits.f_to_device(Device::Cpu)?)
    })
}

fn cached(
    folder: Option<&Path>,
    kind: &str,
    key: String,
    split: &Split,
    compute: impl FnOnce() -> Result<Tensor>,
) -> Result<CachedTensor> {
    let path: Option<PathBuf> = folder.map(|f| f.join(format!("{kind}-{}-{}.safetensors", split.name, &key[..16])));
    // A file that can't be read, or was made under another key, is computed anew and written over.
    let found = path.as_deref().filter(|p| p.exists()).and_then(|p| load_tensors(p).ok());
    let found = found.filter(|(_, meta)| meta.get("key") == Some(&key));
    let found = found.and_then(|(mut t, meta)| Some((t.remove(kind)?, meta.get("seconds")?.parse().ok()?)));
    let from_disk = found.is_some();
    let (tensor, seconds) = match found {
        Some(found) => found,
        None => {
            let start = Instant::now();
            let tensor = compute()?;
            let seconds = start.elapsed().as_secs_f64();
            if let Some(path) = &path {
                let meta = [("key".to_owned(), key.clone()), ("seconds".to_owned(), seconds.to_string())].into();
                save_tensors(path, &[(kind.to_owned(), tensor.shallow_clone())], meta)?;
            }
            (tensor, seconds)
        }
    };
    let made = CachedTensor { tensor, key, split_key: split.key.clone(), from_disk, seconds };
    made.check(&split.key, split.len(), kind)?;
    Ok(made)
}
