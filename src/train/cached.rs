//! What a frozen teacher computes once for every image: features, logits, and logits of augmented views. The file of
//! each has a key in its name that depends on all its inputs.

use super::progress::{Pass, Ticker};
use super::row_file::RowFile;
use super::{Event, Group, Listener};
use crate::data::{Split, Transform, Views};
use crate::models::{Backbone, Mode, Model, TorchScript};
use crate::store::digest::digest;
use crate::store::tensors::{digest_tensors, map_tensor, save_tensors};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Device, Kind, Tensor, no_grad};

/// Number of rows that a head takes at a time: many, so that a linear layer is fast, but at most 64 MB of the largest
/// features.
const HEAD_ROWS: usize = 8192;

/// Values that were computed once for every sample of a split. Those on disk are memory-mapped, so they may be larger
/// than memory.
pub struct CachedTensor {
    /// f32 `[N, D]` for features, f32 `[N, C]` for logits, f16 `[N, V, C]` for logits of `V` views; on the CPU.
    pub tensor: Tensor,
    /// Digest of everything that the values depend on.
    pub key: String,
    /// The `V` views of logits `[N, V, C]`; `None` for other values.
    pub(crate) views: Option<Views>,
    /// Shape of a row, where it is not one dimension: `[C, H, W]` of a layer's features.
    pub(super) row: Option<Vec<i64>>,
    split_key: String,
    /// The file that holds the values; `None` if they are in memory.
    pub path: Option<PathBuf>,
    /// True if the values were read from disk rather than computed.
    pub from_disk: bool,
    /// Seconds that the computation took, in this process or an earlier one; 0 if unknown.
    pub seconds: f64,
}

impl CachedTensor {
    /// Wraps values `[N, D]` that you computed yourself, row i for sample i of `split`. `key` names the computation:
    /// other values need another key.
    ///
    /// # Errors
    /// When `tensor` does not have one row for each sample.
    pub fn new(split: &Split, tensor: Tensor, key: &str) -> Result<Self> {
        let made = Self::in_memory(split, tensor, None, digest(&[split.key.as_bytes(), key.as_bytes()]));
        made.check(&split.key, split.len(), "values")?;
        Ok(made)
    }

    /// Copies the values of the samples at `indices` of `split`, for `split.select(indices)`.
    ///
    /// # Errors
    /// When the values belong to another split, or an index is outside it.
    pub fn select(&self, split: &Split, indices: &[i64]) -> Result<Self> {
        self.check(&split.key, split.len(), "values")?;
        let part = split.select(indices)?;
        let key = digest(&[part.key.as_bytes(), self.key.as_bytes()]);
        let tensor = self.tensor.f_index_select(0, &Tensor::f_from_slice(indices)?)?;
        Ok(Self { row: self.row.clone(), ..Self::in_memory(&part, tensor, self.views.clone(), key) })
    }

    fn in_memory(split: &Split, tensor: Tensor, views: Option<Views>, key: String) -> Self {
        Self { tensor, key, views, row: None, split_key: split.key.clone(), path: None, from_disk: false, seconds: 0.0 }
    }

    /// Checks that each of the `samples` of a split has its row, or a row for each view. `what` is for the message.
    pub(crate) fn check(&self, split_key: &str, samples: usize, what: &str) -> Result<()> {
        if self.split_key != split_key {
            return Err(Error::Input(format!(
                "these {what} were computed for other data (another split, seed, subset or image set); compute them \
                 again for this split"
            )));
        }
        let size = self.tensor.size();
        if size.len() != 2 + usize::from(self.views.is_some()) || size[0] != samples as i64 {
            return Err(Error::Input(format!(
                "{what} are {size:?}, but the split has {samples} samples: one row each is needed"
            )));
        }
        Ok(())
    }
}

/// The images of the samples `from..to`. A pass asks for as many next, behind those that the other `ranks` compute now.
fn images(split: &Split, from: i64, to: i64, ranks: i64) -> Result<Tensor> {
    let samples = |from: i64, to: i64| (from..to.min(split.len() as i64)).collect::<Vec<_>>();
    let images = split.batch(&samples(from, to))?.images;
    let ahead = (to - from) * ranks;
    split.read_ahead(&samples(from + ahead, to + ahead));
    Ok(images)
}

/// Where a [`CachedTensor`] is on disk, for another process.
#[derive(Serialize, Deserialize)]
pub(crate) struct CachedFile {
    path: PathBuf,
    key: String,
    split_key: String,
    shape: Vec<i64>,
    row: Option<Vec<i64>>,
    of_views: bool,
}

impl CachedTensor {
    /// Says where the values are on disk; those that are in memory are written to `folder` first.
    pub(crate) fn share(&self, folder: &Path) -> Result<CachedFile> {
        let Self { tensor, key, views, row, split_key, .. } = self;
        let path = match &self.path {
            Some(path) => path.clone(),
            None => {
                let path = folder.join(format!("values-{}.safetensors", &key[..16]));
                if !path.exists() {
                    save_tensors(&path, &[("values".into(), tensor.shallow_clone())], HashMap::new())?;
                }
                path
            }
        };
        let (key, split_key, shape, row) = (key.clone(), split_key.clone(), tensor.size(), row.clone());
        Ok(CachedFile { path, key, split_key, shape, row, of_views: views.is_some() })
    }

    /// Opens what [`CachedTensor::share`] named. `views` are those of logits of views.
    pub(crate) fn open_shared(file: &CachedFile, views: &Views) -> Result<Self> {
        let CachedFile { path, key, split_key, shape, row, of_views } = file;
        let kind = if *of_views { Kind::Half } else { Kind::Float };
        let (tensor, views) = (map_tensor(path, kind, shape)?, of_views.then(|| views.clone()));
        let (key, row, split_key, path) = (key.clone(), row.clone(), split_key.clone(), Some(path.clone()));
        Ok(Self { tensor, key, views, row, split_key, path, from_disk: true, seconds: 0.0 })
    }
}

/// Returns f32 `[B, C]`: the logits of image `images[i]` in view `views[i]`, out of f16 `[N, V, C]`.
pub(super) fn pick_views(logits: &Tensor, images: &[i64], views: &[i64]) -> Result<Tensor> {
    let size = logits.size();
    let rows: Vec<i64> = images.iter().zip(views).map(|(image, view)| image * size[1] + view).collect();
    let rows = logits.f_view([-1, size[2]])?.f_index_select(0, &Tensor::f_from_slice(&rows)?)?;
    Ok(rows.f_to_kind(Kind::Float)?)
}

/// The key of a backbone's features. It depends on the weights themselves, not on the file they came from.
pub(super) fn features_key(backbone: &Backbone, split: &Split, transform: &Transform) -> Result<String> {
    let arch = format!("{:?}", backbone.arch);
    let weights = digest_tensors(&backbone.model.state())?;
    let (split, transform, precision) = (&split.key, transform.key(), backbone.model.precision.to_string());
    Ok(digest(&["features", &arch, &weights, split, &transform, &precision].map(str::as_bytes)))
}

/// Returns the frozen backbone's features f32 `[N, D]` of every image of `split`, in evaluation mode, without
/// gradients.
///
/// With a `folder` they are kept there and found again as long as data, transform and backbone stay the same.
///
/// # Errors
/// When the backbone does not accept the images, the folder cannot be read or written, or the user interrupts it. The
/// rows so far then stay in the folder, and the next call continues from there.
pub fn backbone_features(
    backbone: &Backbone,
    split: &Split,
    transform: &Transform,
    batch_size: usize,
    folder: Option<&Path>,
    listener: &Listener,
) -> Result<CachedTensor> {
    features_in(None, backbone, split, transform, batch_size, folder, listener)
}

/// [`backbone_features`], of which each process of a `group` computes its part; all find them in one folder.
pub(crate) fn features_in(
    group: Option<&Group>,
    backbone: &Backbone,
    split: &Split,
    transform: &Transform,
    batch_size: usize,
    folder: Option<&Path>,
    listener: &Listener,
) -> Result<CachedTensor> {
    let device = backbone.model.device();
    let title = format!("{} on {}", backbone.arch, split.name);
    let key = features_key(backbone, split, transform)?;
    let pass = backbone.model.pass()?;
    // Copying results from a GPU makes it wait for its next batch, so several batches are copied at once.
    let batches = if device == Device::Cpu { 1 } else { 8 };
    let (width, chunk) = (backbone.arch.features(), batches * batch_size);
    let what = "features";
    let ranks = group.map_or(1, Group::size) as i64;
    Computation { what, title: &title, split, views: None, group, device, width, chunk, listener }.run(
        key,
        folder,
        &mut |from, to| {
            let images = images(split, from, to, ranks)?.f_to_device(device)?;
            let of = |images: &Tensor| pass(&transform.apply(images, device)?);
            let found = images.f_split(batch_size as i64, 0)?.iter().map(of).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::f_cat(&found, 0)?.f_to_device(Device::Cpu)?)
        },
    )
}

/// The teacher's logits f32 `[N, C]`: its `head` on the `features` of `split`. A `folder` keeps them.
///
/// # Errors
/// When the features belong to another split; else as [`backbone_features`].
pub(crate) fn teacher_logits(
    head: &Model,
    split: &Split,
    features: &CachedTensor,
    folder: Option<&Path>,
) -> Result<CachedTensor> {
    features.check(&split.key, split.len(), "features")?;
    let title = format!("{} on {}", head.name, split.name);
    let key = digest(&[b"logits", features.key.as_bytes(), digest_tensors(&head.state())?.as_bytes()]);
    let mut compute = |from: i64, to: i64| -> Result<Tensor> {
        let rows = features.tensor.f_narrow(0, from, to - from)?.f_to_device(head.device())?;
        Ok(no_grad(|| head.forward(&rows, false))?.f_to_device(Device::Cpu)?)
    };
    let (what, width, listener) = ("logits", compute(0, 1)?.size().last().copied().unwrap_or(1), &Listener::default());
    Computation {
        what,
        title: &title,
        split,
        views: None,
        group: None,
        device: head.device(),
        width,
        chunk: HEAD_ROWS,
        listener,
    }
    .run(key, folder, &mut compute)
}

/// Returns the outputs of one layer of `teacher` for every image of `split`, f32 `[N, C * H * W]`, in evaluation mode,
/// without gradients: what [`FeatureMethod`](super::FeatureMethod) holds a student to. `layer` is a name of the
/// teacher's summary, such as `layer3.1.relu` of a ResNet-18 or `avgpool`.
/// Take a layer after BatchNorm: where a convolution and its BatchNorm run as one, both names give the pair's output.
///
/// With a `folder` they are kept there and found again as long as layer, data, transform and teacher stay the same. A
/// layer of 256 channels at 14 x 14 takes 200 kB for each image.
///
/// # Errors
/// When the teacher has no such layer; else as [`backbone_features`].
pub fn layer_features(
    teacher: &Model,
    layer: &str,
    split: &Split,
    transform: &Transform,
    batch_size: usize,
    folder: Option<&Path>,
    listener: &Listener,
) -> Result<CachedTensor> {
    let device = teacher.device();
    let title = format!("{layer} of {} on {}", teacher.name, split.name);
    let (weights, precision) = (digest_tensors(&teacher.state())?, teacher.precision.to_string());
    let parts = ["layer features", layer, &weights, &split.key, &transform.key(), &precision];
    let key = digest(&parts.map(str::as_bytes));
    let of = |from: i64, to: i64| -> Result<Tensor> {
        let images = transform.apply(&images(split, from, to, 1)?, device)?;
        no_grad(|| Ok(teacher.forward_to(&images, Mode::Evaluation, teacher.precision, layer)?.1))
    };
    let row = of(0, 1)?.size().get(1..).unwrap_or_default().to_vec();
    let (what, width) = ("layer-features", row.iter().product());
    let pass = Computation {
        what,
        title: &title,
        split,
        views: None,
        group: None,
        device,
        width,
        chunk: batch_size,
        listener,
    };
    let made =
        pass.run(key, folder, &mut |from, to| Ok(of(from, to)?.f_flatten(1, -1)?.f_to_device(Device::Cpu)?))?;
    Ok(CachedTensor { row: Some(row), ..made })
}

/// Returns the logits f32 `[N, C]` of a teacher from a TorchScript file for every image of `split`, without gradients.
/// The teacher is tried on two images first.
///
/// With a `folder` they are kept there and found again as long as the content of the teacher's file, its preprocessing
/// and the data stay the same.
///
/// # Errors
/// When the teacher does not accept its images, or gives another number of outputs than there are classes; else as
/// [`backbone_features`].
pub fn script_logits(
    teacher: &TorchScript,
    split: &Split,
    batch_size: usize,
    folder: Option<&Path>,
    listener: &Listener,
) -> Result<CachedTensor> {
    let title = format!("{} on {}", teacher.name, split.name);
    teacher.check(&split.batch(&[0, split.len() as i64 - 1])?.images, split.classes())?;
    let key = digest(&["script logits", &teacher.key(), &split.key].map(str::as_bytes));
    let (what, device, width) = ("logits", teacher.device, split.classes() as i64);
    Computation { what, title: &title, split, views: None, group: None, device, width, chunk: batch_size, listener }
        .run(key, folder, &mut |from, to| teacher.logits(&images(split, from, to, 1)?))
}

/// Returns the logits f16 `[N, V, C]` of `teacher`, a network from images to logits, for every image of `split` in each
/// of the `V` views, in evaluation mode. Each image is augmented first and then transformed, as the student's are.
///
/// They are kept in `folder` and found again as long as teacher, data, transform and views stay the same. Memory does
/// not grow with the number of images or views.
///
/// # Errors
/// When a logit is too large for f16, or a file in `folder` is damaged; else as [`backbone_features`].
pub fn view_logits(
    teacher: &Model,
    split: &Split,
    transform: &Transform,
    views: &Views,
    batch_size: usize,
    folder: &Path,
    listener: &Listener,
) -> Result<CachedTensor> {
    let (device, per_image) = (teacher.device(), views.count() as i64);
    let title = format!("{} on {per_image} views of {}", teacher.name, split.name);
    let (weights, precision) = (digest_tensors(&teacher.state())?, teacher.precision.to_string());
    let parts = ["view logits", &weights, &split.key, &transform.key(), &views.key(), &precision];
    let key = digest(&parts.map(str::as_bytes));
    let batch = |from: i64, to: i64| -> Result<Tensor> {
        let (images, seen): (Vec<i64>, Vec<i64>) = (from..to).map(|row| (row / per_image, row % per_image)).unzip();
        transform.apply(&views.apply(&split.batch(&images)?.images, &seen)?, device)
    };
    // Not by `pass`, which is prepared for batches of one shape.
    let width = no_grad(|| teacher.forward(&batch(0, 1)?, false))?.size().last().copied().unwrap_or(1);
    let pass = teacher.pass()?;
    let (what, views, chunk) = ("view-logits", Some(views), batch_size);
    Computation { what, title: &title, split, views, group: None, device, width, chunk, listener }.run(
        key,
        Some(folder),
        &mut |from, to| {
            let logits = pass(&batch(from, to)?)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Half)?;
            if i64::try_from(logits.f_isfinite()?.f_logical_not()?.f_sum(Kind::Int64)?)? > 0 {
                return Err(Error::Data(format!(
                    "{title}: a logit is not finite in f16 (beyond 65504); check the teacher's weights"
                )));
            }
            Ok(logits)
        },
    )
}

/// A pass over a split that gives a row of `width` values for each sample, or for each view of each sample.
struct Computation<'a> {
    /// What is computed: the first part of the file's name.
    what: &'a str,
    /// Name of the pass in progress reports and messages.
    title: &'a str,
    split: &'a Split,
    views: Option<&'a Views>,
    /// The processes that compute it together.
    group: Option<&'a Group>,
    /// Where it is computed.
    device: Device,
    width: i64,
    /// Number of rows to compute at a time.
    chunk: usize,
    listener: &'a Listener,
}

impl Computation<'_> {
    /// Finds the values in `folder`. Otherwise computes them: `compute(from, to)` returns the rows `from..to`, a tensor
    /// `[to - from, width]`.
    fn run(
        &self,
        key: String,
        folder: Option<&Path>,
        compute: &mut dyn FnMut(i64, i64) -> Result<Tensor>,
    ) -> Result<CachedTensor> {
        let (samples, views, start) = (self.split.len() as i64, self.views.cloned(), Instant::now());
        let shape = match &views {
            Some(views) => vec![samples, views.count() as i64, self.width],
            None => vec![samples, self.width],
        };
        let Some(folder) = folder else {
            let tensor = Tensor::f_empty(&shape, (Kind::Float, Device::Cpu))?;
            let rows = tensor.f_view([-1, self.width])?;
            self.in_chunks(0, rows.size()[0], &mut |from, to| {
                Ok(rows.f_narrow(0, from, to - from)?.f_copy_(&self.rows(from, to, compute)?)?)
            })?;
            let seconds = start.elapsed().as_secs_f64();
            return Ok(CachedTensor { seconds, ..CachedTensor::in_memory(self.split, tensor, views, key) });
        };
        let path = folder.join(format!("{}-{}-{}.safetensors", self.what, self.split.name, &key[..16]));
        let (name, kind) = if views.is_some() { ("logits", Kind::Half) } else { (self.what, Kind::Float) };
        let file = RowFile { path: path.clone(), name, key: &key, kind, shape: &shape, timed: views.is_none() };
        let found = match file.map() {
            // A pass over views may take hours, so the user decides what to do with a damaged file. The others are
            // computed again.
            Err(_) if views.is_none() => None,
            found => found?,
        };
        // If one process of a group lacks them, all compute them.
        let lacking = f64::from(found.is_none());
        let lacking = self.group.map_or(Ok(lacking), |group| group.sum_value(lacking))?;
        let (found, from_disk) = if lacking > 0.0 { (None, false) } else { (found, true) };
        // Rank 0 writes. It tells the others how many rows an earlier pass left.
        let mut fill = |there: usize, append: &mut dyn FnMut(&Tensor) -> Result<()>| {
            let there = self.group.map_or(Ok(there as f64), |group| group.sum_value(there as f64))? as i64;
            self.in_chunks(there, file.len() as i64, &mut |from, to| append(&self.rows(from, to, compute)?))
        };
        match self.group {
            _ if from_disk => {}
            None => file.write(&mut fill)?,
            Some(group) if group.rank() > 0 => fill(0, &mut |_| Ok(()))?,
            Some(group) => {
                let mut told = false;
                file.write(&mut |there, append| {
                    told = true;
                    fill(there, append)
                })?;
                if !told {
                    // Another program has made the file meanwhile.
                    group.sum_value(file.len() as f64)?;
                }
            }
        }
        if let Some(group) = self.group {
            group.wait()?;
        }
        let deleted = || Error::Data(format!("{} was deleted while it was made; run it again", path.display()));
        let (tensor, seconds) = found.map_or_else(|| file.map(), |found| Ok(Some(found)))?.ok_or_else(deleted)?;
        let made = CachedTensor::in_memory(self.split, tensor, views, key.clone());
        Ok(CachedTensor { path: Some(path), from_disk, seconds, ..made })
    }

    /// Computes the rows `from..to`. Each process of a group computes a part, and all get all of them.
    fn rows(&self, from: i64, to: i64, compute: &mut dyn FnMut(i64, i64) -> Result<Tensor>) -> Result<Tensor> {
        let Some(group) = self.group else { return compute(from, to) };
        let rows = Tensor::f_zeros([to - from, self.width], (Kind::Float, Device::Cpu))?;
        let Range { start, end } = group.part((to - from) as usize);
        let (start, end) = (start as i64, end as i64);
        if start < end {
            rows.f_narrow(0, start, end - start)?.f_copy_(&compute(from + start, from + end)?)?;
        }
        group.sum(&rows)?;
        Ok(rows)
    }

    /// Calls `each` for the rows `from..total`, a chunk at a time. Reports progress, and stops when the user asks.
    fn in_chunks(&self, from: i64, total: i64, each: &mut dyn FnMut(i64, i64) -> Result<()>) -> Result<()> {
        if self.chunk == 0 {
            return Err(Error::Input("batch size must be at least 1, got 0".into()));
        }
        let mut pass = Pass::begin(self.title, self.device);
        let mut ticker = Ticker::new(self.title, (total - from) as usize);
        let chunk = self.chunk * self.group.map_or(1, Group::size);
        for row in (from..total).step_by(chunk) {
            pass.check(row as usize, total as usize)?;
            let to = total.min(row + chunk as i64);
            each(row, to)?;
            let progress = ticker.advance((to - row) as usize, pass.threads());
            if let Some(progress) = progress.filter(|_| self.group.is_none_or(|group| group.rank() == 0)) {
                self.listener.notify(&Event::Progress(progress));
            }
        }
        Ok(())
    }
}
