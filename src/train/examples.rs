//! What a fit learns from: inputs, hard labels and, for distillation, the teacher's logits, all by sample index.

use super::CachedTensor;
use super::cached::{features_key, pick_views};
use super::loss::{UNLABELLED, cross_entropy, labelled_cross_entropy};
use crate::data::{EpochViews, Split, Transform, Views};
use crate::models::Backbone;
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
        /// The teacher judges a view of its own, not the student's.
        apart: bool,
    },
}

/// Of images or features: twice this, for training and validation, fits beside a network on any GPU that trains one.
const RESIDENT_BYTES: usize = 2 << 30;

/// A split as a model sees it. Sample index = position in the split, whatever the order of the batches.
pub struct Examples {
    inputs: Inputs,
    labels: Tensor, // i64 [N], CPU; some may be UNLABELLED
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
    /// Mean cross-entropy over the images that have a label.
    pub(super) fn hard_loss(&self, logits: &Tensor) -> Result<Tensor> {
        match self.partly_labelled {
            true => labelled_cross_entropy(logits, &self.labels),
            false => cross_entropy(logits, &self.labels),
        }
    }

    /// The teacher's logits `[B, C]` of these very samples.
    pub fn teacher(&self) -> Result<&Tensor> {
        self.teacher.as_ref().ok_or_else(|| {
            Error::Input("this loss needs a teacher, and the examples carry none; add with_teacher(&logits)".into())
        })
    }
}

impl Examples {
    /// Images, transformed batch by batch on the device.
    pub fn images(split: &Split, transform: &Transform) -> Result<Self> {
        let key = crate::store::digest::digest(&[split.key.as_bytes(), transform.key().as_bytes()]);
        Self::new(split, Inputs::Images { split: split.clone(), transform: transform.clone() }, key)
    }

    /// Features that a frozen backbone gave once for every image of the split.
    pub fn features(split: &Split, features: &CachedTensor) -> Result<Self> {
        features.check(&split.key, split.len(), "features")?;
        Self::new(split, Inputs::Features(features.tensor.shallow_clone()), features.key.clone())
    }

    /// The article's way: the frozen backbone is run again for every batch of every epoch. Equal to
    /// [`Examples::features`] up to rounding, at many times the cost. The
    /// examples hold a copy of the backbone.
    pub fn through_backbone(split: &Split, transform: &Transform, backbone: &Backbone) -> Result<Self> {
        let key = features_key(backbone, split, transform)?;
        let inputs =
            Inputs::Backbone { split: split.clone(), transform: transform.clone(), backbone: backbone.copy()? };
        Self::new(split, inputs, key)
    }

    /// Adds the teacher's logits `[N, C]`; refused when they were computed for other data.
    pub fn with_teacher(mut self, logits: &CachedTensor) -> Result<Self> {
        logits.check(&self.split_key, self.len(), "teacher logits")?;
        if logits.views.is_some() {
            return Err(Error::Input("these are logits of several views: use with_teacher_of_views".into()));
        }
        self.key = crate::store::digest::digest(&[self.key.as_bytes(), logits.key.as_bytes()]);
        self.teacher = Some(Teacher::Rows(logits.tensor.shallow_clone()));
        Ok(self)
    }

    /// Other labels than the split's, i64 `[N]` on the CPU: classes, or [`UNLABELLED`] for images whose class is not told.
    ///
    /// Cross-entropy and accuracy are then those of the labelled images of a batch.
    ///
    /// # Errors
    /// When there is not a label for each image, or none but [`UNLABELLED`].
    pub fn with_labels(mut self, labels: &Tensor) -> Result<Self> {
        let values = Vec::<i64>::try_from(labels.f_to_device(Device::Cpu)?.f_reshape(-1)?)?;
        let told = values.iter().filter(|l| **l != UNLABELLED).count();
        if values.len() != self.len() || told == 0 || values.iter().any(|l| *l < 0 && *l != UNLABELLED) {
            return Err(Error::Input(format!(
                "labels {:?} for {} images: give one for each, a class from 0 or UNLABELLED (-100), and not only that",
                labels.size(),
                self.len()
            )));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|l| l.to_le_bytes()).collect();
        self.key = crate::store::digest::digest(&[self.key.as_bytes(), b"labels", &bytes]);
        self.partly_labelled = told < values.len();
        self.labels = Tensor::f_from_slice(&values)?;
        Ok(self)
    }

    /// The split's labels for the samples at `indices` alone, the others [`UNLABELLED`].
    pub fn with_labels_of(self, indices: &[i64]) -> Result<Self> {
        let mut labels = self.labels.f_full_like(UNLABELLED)?;
        let told = Tensor::f_from_slice(indices)?;
        let _ = labels.f_index_copy_(0, &told, &self.labels.f_index_select(0, &told)?)?;
        self.with_labels(&labels)
    }

    /// In training, each image is seen in one of `views`, drawn anew in every epoch.
    ///
    /// # Errors
    /// When these examples are features, not images.
    pub fn with_views(mut self, views: &Views) -> Result<Self> {
        if matches!(self.inputs, Inputs::Features(_)) {
            return Err(Error::Input("features have no views: augment images, with Examples::images".into()));
        }
        if matches!(self.teacher, Some(Teacher::Views { .. })) && self.views.as_ref() != Some(views) {
            return Err(Error::Input(
                "the teacher of these examples judged other views; give with_teacher_of_views the logits of these views \
                 instead"
                    .into(),
            ));
        }
        self.key = crate::store::digest::digest(&[self.key.as_bytes(), views.key().as_bytes()]);
        self.views = Some(views.clone());
        Ok(self)
    }

    /// [`Examples::with_views`], and a teacher that judges the very view that the student sees; with `apart`, another one,
    /// drawn for itself. Consistent and independent teaching in Beyer et al., "Knowledge distillation: A good teacher is
    /// patient and consistent" (2022).
    pub fn with_teacher_of_views(mut self, logits: &CachedTensor, apart: bool) -> Result<Self> {
        logits.check(&self.split_key, self.len(), "logits of views")?;
        let Some(views) = &logits.views else {
            return Err(Error::Input("these are logits of the images as they are: use with_teacher".into()));
        };
        // An earlier teacher makes room.
        self.teacher = None;
        let mut made = self.with_views(views)?;
        let pairing: &[u8] = if apart { b"apart" } else { b"same" };
        made.key = crate::store::digest::digest(&[made.key.as_bytes(), logits.key.as_bytes(), pairing]);
        made.teacher = Some(Teacher::Views { logits: logits.tensor.shallow_clone(), apart });
        Ok(made)
    }

    /// The same images and numbers for another thread; not a copy, but for the backbone of
    /// [`Examples::through_backbone`].
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

    /// The same numbers on `device`, so that a step copies nothing but the sample indices to it. None where they are there
    /// already, or are too many.
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

    pub fn len(&self) -> usize {
        self.labels.size().first().map_or(0, |&n| n as usize)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hard labels, i64 `[N]` in split order.
    pub fn labels(&self) -> Tensor {
        self.labels.shallow_clone()
    }

    /// The samples at `indices` as they are, on `device`.
    pub fn batch(&self, indices: &[i64], device: Device) -> Result<Minibatch> {
        self.batch_in(indices, indices, None, device)
    }

    /// The views of an epoch; none where images are seen as they are.
    pub(super) fn draw_views(&self, seed: u64, epoch: usize) -> Option<EpochViews> {
        let apart = matches!(self.teacher, Some(Teacher::Views { apart: true, .. }));
        self.views.as_ref().map(|views| views.draw(self.len(), apart, seed, epoch as u64))
    }

    /// The samples at `indices` in their views, with the teacher's logits of the samples at `others`: the same ones, but in
    /// [`crate::study::mistakes`].
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

    /// Changes with the data, its transform, the backbone and the teacher.
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
        if split.is_empty() {
            return Err(Error::Input(format!("the {} split holds no image; give it more data", split.name)));
        }
        let (split_name, split_key) = (split.name.clone(), split.key.clone());
        let labels = split.labels()?;
        Ok(Self { inputs, labels, partly_labelled: false, teacher: None, views: None, split_name, split_key, key })
    }
}
