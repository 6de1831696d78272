//! Training examples by sample index: inputs, hard labels and, for distillation, the teacher's logits.

use super::CachedTensor;
use super::cached::{features_key, pick_views};
use super::loss::{HardLabels, UNLABELLED};
use crate::data::{EpochViews, Split, Transform, Views};
use crate::models::Backbone;
use crate::store::digest::digest;
use crate::store::tensors::upload;
use crate::{Error, Result};
use tch::{Device, Tensor};

enum Inputs {
    Features(Tensor),
    Images(Box<Images>),
}

struct Images {
    split: Split,
    transform: Transform,
    /// Its features of the images are the inputs.
    backbone: Option<Backbone>,
}

/// A split of at most so many bytes is copied to a GPU. Training and validation then leave room for the network.
const RESIDENT_BYTES: usize = 2 << 30;

/// A split as a model sees it: inputs, labels and perhaps the teacher's logits. A sample index is a position in the
/// split, whatever the order of the batches.
pub struct Examples {
    inputs: Inputs,
    labels: Tensor, // i64 [N], CPU; UNLABELLED for images without a label
    partly_labelled: bool,
    teacher: Option<Tensor>,  // f32 [N, C], or f16 [N, V, C] with the logits of all views; CPU
    features: Option<Tensor>, // f32 [N, D] or [N, C, H, W]: of the teacher; CPU
    /// The teacher sees another view than the student, drawn independently.
    apart: bool,
    views: Option<Views>,
    pub(crate) split_name: String,
    split_key: String,
    key: String,
}

/// One batch on the device.
pub struct Minibatch {
    /// f32 `[B, 3, S, S]` for images, `[B, D]` for features.
    pub inputs: Tensor,
    /// i64 `[B]`.
    pub labels: Tensor,
    pub(super) teacher: Option<Tensor>,
    /// The teacher's features `[B, D]` or `[B, C, H, W]`.
    pub(super) features: Option<Tensor>,
    pub(super) partly_labelled: bool,
}

impl Minibatch {
    /// Mean cross-entropy over the images with a label.
    pub(super) fn hard_loss(&self, logits: &Tensor, hard: &HardLabels) -> Result<Tensor> {
        hard.mean(logits, &self.labels, self.partly_labelled)
    }

    /// Returns the teacher's logits `[B, C]` of these samples.
    ///
    /// # Errors
    /// When the examples have no teacher.
    pub fn teacher(&self) -> Result<&Tensor> {
        self.teacher.as_ref().ok_or_else(|| {
            Error::Input("this loss needs a teacher, and the examples carry none; add with_teacher(&logits)".into())
        })
    }
}

impl Examples {
    /// Makes examples of images, which are transformed batch by batch on the device.
    ///
    /// # Errors
    /// When the labels can't be read.
    pub fn images(split: &Split, transform: &Transform) -> Result<Self> {
        let key = digest(&[split.key.as_bytes(), transform.key().as_bytes()]);
        let images = Images { split: split.clone(), transform: transform.clone(), backbone: None };
        Self::new(split, Inputs::Images(Box::new(images)), key)
    }

    /// Makes examples of features that a frozen backbone computed once for every image of the split.
    ///
    /// # Errors
    /// When the features belong to another split.
    pub fn features(split: &Split, features: &CachedTensor) -> Result<Self> {
        features.check(&split.key, split.len(), "features")?;
        Self::new(split, Inputs::Features(features.tensor.shallow_clone()), features.key.clone())
    }

    /// Makes examples of features that a copy of the frozen backbone computes again for every batch of every epoch, as
    /// in the article. They equal [`Examples::features`] up to rounding, at many times the cost.
    ///
    /// # Errors
    /// When the labels can't be read, or the backbone can't be copied.
    pub fn through_backbone(split: &Split, transform: &Transform, backbone: &Backbone) -> Result<Self> {
        let key = features_key(backbone, split, transform)?;
        let images = Images { split: split.clone(), transform: transform.clone(), backbone: Some(backbone.copy()?) };
        Self::new(split, Inputs::Images(Box::new(images)), key)
    }

    /// Adds the teacher's logits `[N, C]`.
    ///
    /// # Errors
    /// When they were computed for other data, or for views.
    pub fn with_teacher(mut self, logits: &CachedTensor) -> Result<Self> {
        logits.check(&self.split_key, self.len(), "teacher logits")?;
        if logits.views.is_some() {
            return Err(Error::Input("these are logits of several views: use with_teacher_of_views".into()));
        }
        self.key = digest(&[self.key.as_bytes(), logits.key.as_bytes()]);
        (self.teacher, self.apart) = (Some(logits.tensor.shallow_clone()), false);
        Ok(self)
    }

    /// Adds features of the teacher, as [`layer_features`](super::layer_features) computes them, for
    /// [`Criterion::with_features`](super::Criterion::with_features).
    ///
    /// # Errors
    /// When they were computed for other data, or these examples are augmented: the teacher saw the images as they are.
    pub fn with_teacher_features(mut self, features: &CachedTensor) -> Result<Self> {
        features.check(&self.split_key, self.len(), "features")?;
        if self.views.is_some() {
            return Err(features_and_views());
        }
        let size: Vec<i64> = match &features.row {
            Some(row) => [&[-1], row.as_slice()].concat(),
            None => features.tensor.size(),
        };
        self.key = digest(&[self.key.as_bytes(), b"features", features.key.as_bytes()]);
        self.features = Some(features.tensor.f_view(size.as_slice())?);
        Ok(self)
    }

    /// Replaces the labels of the split by `labels`, i64 `[N]`: classes, or [`UNLABELLED`] for images without a label.
    /// Cross-entropy and accuracy then leave those images out.
    ///
    /// # Errors
    /// When the number of labels is not that of the images, a label is negative, or no image has a label.
    pub(crate) fn with_labels(mut self, labels: &Tensor) -> Result<Self> {
        let values = Vec::<i64>::try_from(labels.f_to_device(Device::Cpu)?.f_reshape(-1)?)?;
        let labelled = values.iter().filter(|l| **l != UNLABELLED).count();
        if values.len() != self.len() || labelled == 0 || values.iter().any(|l| *l < 0 && *l != UNLABELLED) {
            return Err(Error::Input(format!(
                "labels {:?} for {} images: give one for each, a class from 0 or UNLABELLED (-100), and not only that",
                labels.size(),
                self.len()
            )));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|l| l.to_le_bytes()).collect();
        self.key = digest(&[self.key.as_bytes(), b"labels", &bytes]);
        self.partly_labelled = labelled < values.len();
        self.labels = Tensor::f_from_slice(&values)?;
        Ok(self)
    }

    /// Augments the images: training sees each in one of `views`, drawn anew in every epoch.
    ///
    /// # Errors
    /// When these examples are features, or their teacher saw other views.
    pub fn with_views(mut self, views: &Views) -> Result<Self> {
        if matches!(self.inputs, Inputs::Features(_)) {
            return Err(Error::Input("features have no views: augment images, with Examples::images".into()));
        }
        if self.features.is_some() {
            return Err(features_and_views());
        }
        if self.teacher.as_ref().is_some_and(judges_views) && self.views.as_ref() != Some(views) {
            return Err(Error::Input(
                "the teacher of these examples judged other views; give with_teacher_of_views the logits of these \
                 views instead"
                    .into(),
            ));
        }
        self.key = digest(&[self.key.as_bytes(), views.key().as_bytes()]);
        self.views = Some(views.clone());
        Ok(self)
    }

    /// Augments the images as [`Examples::with_views`] does, and adds the teacher's `logits` of all views. The teacher
    /// sees the same view as the student, or with `apart` a view that is drawn independently. Beyer et al., "Knowledge
    /// distillation: A good teacher is patient and consistent" (2022), call the two consistent and independent
    /// teaching.
    ///
    /// # Errors
    /// When `logits` were computed for other data, or not for views.
    pub fn with_teacher_of_views(mut self, logits: &CachedTensor, apart: bool) -> Result<Self> {
        logits.check(&self.split_key, self.len(), "logits of views")?;
        let Some(views) = &logits.views else {
            return Err(Error::Input("these are logits of the images as they are: use with_teacher".into()));
        };
        // This teacher replaces an earlier one.
        self.teacher = None;
        let mut made = self.with_views(views)?;
        let pairing: &[u8] = if apart { b"apart" } else { b"same" };
        made.key = digest(&[made.key.as_bytes(), logits.key.as_bytes(), pairing]);
        (made.teacher, made.apart) = (Some(logits.tensor.shallow_clone()), apart);
        Ok(made)
    }

    /// The same examples for another thread. They share memory, except for the backbone of
    /// [`Examples::through_backbone`], which is copied.
    pub(super) fn share(&self) -> Result<Self> {
        let inputs = match &self.inputs {
            Inputs::Features(features) => Inputs::Features(features.shallow_clone()),
            Inputs::Images(images) => Inputs::Images(Box::new(Images {
                split: images.split.clone(),
                transform: images.transform.clone(),
                backbone: images.backbone.as_ref().map(Backbone::copy).transpose()?,
            })),
        };
        Ok(Self {
            inputs,
            labels: self.labels(),
            partly_labelled: self.partly_labelled,
            teacher: self.teacher.as_ref().map(Tensor::shallow_clone),
            features: self.features.as_ref().map(Tensor::shallow_clone),
            apart: self.apart,
            views: self.views.clone(),
            split_name: self.split_name.clone(),
            split_key: self.split_key.clone(),
            key: self.key.clone(),
        })
    }

    /// The same examples in the memory of `device`, so that a step copies only sample indices to it. `None` if they are
    /// there already, or too large.
    pub(super) fn resident(&self, device: Device) -> Result<Option<Self>> {
        let bytes = match &self.inputs {
            Inputs::Images(images) => images.split.pool_bytes(),
            Inputs::Features(features) => 4 * features.numel(),
        };
        if device == Device::Cpu || bytes > RESIDENT_BYTES {
            return Ok(None);
        }
        let mut moved = self.share()?;
        match &mut moved.inputs {
            Inputs::Images(images) => images.split = images.split.on(device)?,
            Inputs::Features(features) => *features = features.f_to_device(device)?,
        }
        if let Some(rows) = moved.teacher.as_mut().filter(|logits| !judges_views(logits)) {
            *rows = rows.f_to_device(device)?;
        }
        moved.labels = moved.labels.f_to_device(device)?;
        Ok(Some(moved))
    }

    /// Returns the number of samples, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.labels.size().first().map_or(0, |&n| n as usize)
    }

    /// Hard labels, i64 `[N]` in split order.
    pub(crate) fn labels(&self) -> Tensor {
        self.labels.shallow_clone()
    }

    /// Returns the samples at `indices`, without augmentation, on `device`.
    ///
    /// # Errors
    /// When an index is out of range.
    pub fn batch(&self, indices: &[i64], device: Device) -> Result<Minibatch> {
        self.batch_in(indices, indices, None, device)
    }

    /// The views of an epoch; `None` without augmentation.
    pub(super) fn draw_views(&self, seed: u64, epoch: usize) -> Option<EpochViews> {
        self.views.as_ref().map(|views| views.draw(self.len(), self.apart, seed, epoch as u64))
    }

    /// The samples at `indices` in their views, with the teacher's logits of the samples at `others`. The two are the
    /// same, except in [`crate::study::mistakes`].
    pub(super) fn batch_in(
        &self,
        indices: &[i64],
        others: &[i64],
        drawn: Option<&EpochViews>,
        device: Device,
    ) -> Result<Minibatch> {
        let own = upload(indices, self.labels.device())?;
        let pick = |t: &Tensor, rows: &[i64]| -> Result<Tensor> {
            let at = match rows == indices && t.device() == own.device() {
                true => own.shallow_clone(),
                false => upload(rows, t.device())?,
            };
            Ok(t.f_index_select(0, &at)?.f_to_device(device)?)
        };
        let of = |views: &[i64], rows: &[i64]| -> Vec<i64> { rows.iter().map(|&i| views[i as usize]).collect() };
        let inputs = match &self.inputs {
            Inputs::Features(features) => pick(features, indices)?,
            Inputs::Images(inputs) => {
                let mut images = inputs.split.batch(indices)?.images;
                if let Some((views, drawn)) = self.views.as_ref().zip(drawn) {
                    images = views.apply(&images, &of(&drawn.student, indices))?;
                }
                let images = inputs.transform.apply(&images, device)?;
                match &inputs.backbone {
                    Some(backbone) => backbone.features(&images)?,
                    None => images,
                }
            }
        };
        let teacher = match &self.teacher {
            Some(logits) if judges_views(logits) => {
                let judged = drawn.map_or_else(|| vec![0; others.len()], |drawn| of(&drawn.teacher, others));
                Some(pick_views(logits, others, &judged)?.f_to_device(device)?)
            }
            Some(rows) => Some(pick(rows, others)?),
            None => None,
        };
        let labels = pick(&self.labels, indices)?;
        let features = self.features.as_ref().map(|rows| pick(rows, others)).transpose()?;
        Ok(Minibatch { inputs, labels, teacher, features, partly_labelled: self.partly_labelled })
    }

    /// Digest of the data, its transform, the backbone and the teacher.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Classes of the teacher's logits.
    pub(super) fn teacher_classes(&self) -> Option<i64> {
        self.teacher.as_ref()?.size().last().copied()
    }

    pub(super) fn is_partly_labelled(&self) -> bool {
        self.partly_labelled
    }

    fn new(split: &Split, inputs: Inputs, key: String) -> Result<Self> {
        let labels = split.labels()?;
        let partly_labelled = labels.f_eq(UNLABELLED)?.f_any()?.f_int64_value(&[])? != 0;
        Ok(Self {
            inputs,
            labels,
            partly_labelled,
            teacher: None,
            features: None,
            apart: false,
            views: None,
            split_name: split.name.clone(),
            split_key: split.key.clone(),
            key,
        })
    }
}

fn features_and_views() -> Error {
    Error::Input(
        "the teacher's features are those of the images as they are, and augmentation shows the student other views: \
         leave one of the two out"
            .into(),
    )
}

/// Whether logits of the teacher are those of several views, `[N, V, C]`.
fn judges_views(logits: &Tensor) -> bool {
    logits.dim() == 3
}
