//! Training examples by sample index: inputs, hard labels and, for distillation, the teacher's logits.

use super::CachedTensor;
use super::cached::{features_key, pick_views};
use super::loss::{UNLABELLED, cross_entropy, labelled_cross_entropy};
use crate::data::{EpochViews, Split, Transform, Views};
use crate::models::Backbone;
use crate::store::digest::digest;
use crate::store::tensors::upload;
use crate::{Error, Result};
use tch::{Device, Tensor};

enum Inputs {
    Images { split: Split, transform: Transform },
    Features(Tensor),
    Backbone { split: Split, transform: Transform, backbone: Backbone },
}

enum Teacher {
    /// f32 [N, C], CPU
    Rows(Tensor),
    Views {
        /// f16 [N, V, C], CPU
        logits: Tensor,
        /// The teacher sees another view than the student, drawn independently.
        apart: bool,
    },
}

/// Most bytes of a split that are copied to a GPU. Twice this, for training and validation, leaves room for the
/// network.
const RESIDENT_BYTES: usize = 2 << 30;

/// A split as a model sees it. A sample index is a position in the split, whatever the order of the batches.
pub struct Examples {
    inputs: Inputs,
    labels: Tensor, // i64 [N], CPU; UNLABELLED for images without a label
    partly_labelled: bool,
    teacher: Option<Teacher>,
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
    pub(super) partly_labelled: bool,
}

impl Minibatch {
    /// Mean cross-entropy over the images with a label.
    pub(super) fn hard_loss(&self, logits: &Tensor) -> Result<Tensor> {
        match self.partly_labelled {
            true => labelled_cross_entropy(logits, &self.labels),
            false => cross_entropy(logits, &self.labels),
        }
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
    /// Images, transformed batch by batch on the device.
    ///
    /// # Errors
    /// When the split is empty.
    pub fn images(split: &Split, transform: &Transform) -> Result<Self> {
        let key = digest(&[split.key.as_bytes(), transform.key().as_bytes()]);
        Self::new(split, Inputs::Images { split: split.clone(), transform: transform.clone() }, key)
    }

    /// Features that a frozen backbone computed once for every image of the split.
    ///
    /// # Errors
    /// When the features belong to another split.
    pub fn features(split: &Split, features: &CachedTensor) -> Result<Self> {
        features.check(&split.key, split.len(), "features")?;
        Self::new(split, Inputs::Features(features.tensor.shallow_clone()), features.key.clone())
    }

    /// Features that a copy of the frozen backbone computes again for every batch of every epoch, as in the article.
    /// They equal [`Examples::features`] up to rounding, at many times the cost.
    ///
    /// # Errors
    /// When the split is empty.
    pub fn through_backbone(split: &Split, transform: &Transform, backbone: &Backbone) -> Result<Self> {
        let key = features_key(backbone, split, transform)?;
        let inputs =
            Inputs::Backbone { split: split.clone(), transform: transform.clone(), backbone: backbone.copy()? };
        Self::new(split, inputs, key)
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
        self.teacher = Some(Teacher::Rows(logits.tensor.shallow_clone()));
        Ok(self)
    }

    /// Replaces the labels of the split by `labels`, i64 `[N]`: classes, or [`UNLABELLED`] for images without a label.
    /// Cross-entropy and accuracy then leave those images out.
    ///
    /// # Errors
    /// When the number of labels is not that of the images, a label is negative, or no image has a label.
    pub fn with_labels(mut self, labels: &Tensor) -> Result<Self> {
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
        if matches!(self.teacher, Some(Teacher::Views { .. })) && self.views.as_ref() != Some(views) {
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

    /// [`Examples::with_views`] with a teacher that sees the same view as the student, or with `apart` another one,
    /// drawn independently: consistent and independent teaching in Beyer et al., "Knowledge distillation: A good
    /// teacher is patient and consistent" (2022).
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
        made.teacher = Some(Teacher::Views { logits: logits.tensor.shallow_clone(), apart });
        Ok(made)
    }

    /// The same examples for another thread. They share memory, except for the backbone of
    /// [`Examples::through_backbone`], which is copied.
    pub(super) fn share(&self) -> Result<Self> {
        let inputs = match &self.inputs {
            Inputs::Images { split, transform } => {
                Inputs::Images { split: split.clone(), transform: transform.clone() }
            }
            Inputs::Features(features) => Inputs::Features(features.shallow_clone()),
            Inputs::Backbone { split, transform, backbone } => {
                Inputs::Backbone { split: split.clone(), transform: transform.clone(), backbone: backbone.copy()? }
            }
        };
        let teacher = self.teacher.as_ref().map(|teacher| match teacher {
            Teacher::Rows(rows) => Teacher::Rows(rows.shallow_clone()),
            Teacher::Views { logits, apart } => Teacher::Views { logits: logits.shallow_clone(), apart: *apart },
        });
        Ok(Self {
            inputs,
            labels: self.labels(),
            partly_labelled: self.partly_labelled,
            teacher,
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
            Inputs::Images { split, .. } | Inputs::Backbone { split, .. } => split.pool_bytes(),
            Inputs::Features(features) => 4 * features.numel(),
        };
        if device == Device::Cpu || bytes > RESIDENT_BYTES {
            return Ok(None);
        }
        let mut moved = self.share()?;
        match &mut moved.inputs {
            Inputs::Images { split, .. } | Inputs::Backbone { split, .. } => *split = split.on(device)?,
            Inputs::Features(features) => *features = features.f_to_device(device)?,
        }
        if let Some(Teacher::Rows(rows)) = &mut moved.teacher {
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
        let apart = matches!(self.teacher, Some(Teacher::Views { apart: true, .. }));
        self.views.as_ref().map(|views| views.draw(self.len(), apart, seed, epoch as u64))
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
        let seen = |split: &Split, transform: &Transform| -> Result<Tensor> {
            let images = split.batch(indices)?.images;
            match (&self.views, drawn) {
                (Some(views), Some(drawn)) => {
                    let chosen: Vec<i64> = indices.iter().map(|&i| drawn.student[i as usize]).collect();
                    transform.apply(&views.apply(&images, &chosen)?, device)
                }
                _ => transform.apply(&images, device),
            }
        };
        let inputs = match &self.inputs {
            Inputs::Images { split, transform } => seen(split, transform)?,
            Inputs::Features(features) => pick(features, indices)?,
            Inputs::Backbone { split, transform, backbone } => backbone.features(&seen(split, transform)?)?,
        };
        let teacher = match &self.teacher {
            Some(Teacher::Rows(rows)) => Some(pick(rows, others)?),
            Some(Teacher::Views { logits, .. }) => {
                let judged: Vec<i64> = others.iter().map(|&i| drawn.map_or(0, |d| d.teacher[i as usize])).collect();
                Some(pick_views(logits, others, &judged)?.f_to_device(device)?)
            }
            None => None,
        };
        let labels = pick(&self.labels, indices)?;
        Ok(Minibatch { inputs, labels, teacher, partly_labelled: self.partly_labelled })
    }

    /// Digest of the data, its transform, the backbone and the teacher.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Classes of the teacher's logits.
    pub(super) fn teacher_classes(&self) -> Option<i64> {
        match self.teacher.as_ref()? {
            Teacher::Rows(logits) | Teacher::Views { logits, .. } => logits.size().last().copied(),
        }
    }

    pub(super) fn is_partly_labelled(&self) -> bool {
        self.partly_labelled
    }

    fn new(split: &Split, inputs: Inputs, key: String) -> Result<Self> {
        let (split_name, split_key) = (split.name.clone(), split.key.clone());
        let labels = split.labels()?;
        Ok(Self { inputs, labels, partly_labelled: false, teacher: None, views: None, split_name, split_key, key })
    }
}
