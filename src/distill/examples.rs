//! What a fit learns from: inputs, hard labels and, for distillation, the teacher's logits, all by sample index.

use super::CachedTensor;
use crate::data::{Split, Transform};
use crate::models::Backbone;
use crate::{Error, Result};
use tch::{Device, Tensor};

enum Inputs {
    Images { split: Split, transform: Transform },
    Features(Tensor),
    Backbone { split: Split, transform: Transform, backbone: Backbone },
}

/// A split as a model sees it. Sample index = position in the split, whatever the order of the batches.
pub struct Examples {
    inputs: Inputs,
    labels: Tensor,          // i64 [N], CPU
    teacher: Option<Tensor>, // f32 [N, C], CPU
    pub(super) split_name: String,
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
}

impl Minibatch {
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
        let key = crate::files::digest(&[split.key.as_bytes(), transform.key().as_bytes()]);
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
        let key = super::cache::features_key(backbone, split, transform)?;
        let inputs =
            Inputs::Backbone { split: split.clone(), transform: transform.clone(), backbone: backbone.copy()? };
        Self::new(split, inputs, key)
    }

    /// Adds the teacher's logits `[N, C]`; refused when they were computed for other data.
    pub fn with_teacher(mut self, logits: &CachedTensor) -> Result<Self> {
        logits.check(&self.split_key, self.len(), "teacher logits")?;
        self.key = crate::files::digest(&[self.key.as_bytes(), logits.key.as_bytes()]);
        self.teacher = Some(logits.tensor.shallow_clone());
        Ok(self)
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
        let teacher = self.teacher.as_ref().map(Tensor::shallow_clone);
        let (split_name, split_key, key) = (self.split_name.clone(), self.split_key.clone(), self.key.clone());
        Ok(Self { inputs, labels: self.labels(), teacher, split_name, split_key, key })
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

    /// The samples at `indices`, on `device`.
    pub fn batch(&self, indices: &[i64], device: Device) -> Result<Minibatch> {
        self.batch_with_teacher_of(indices, indices, device)
    }

    /// The samples at `indices` with the teacher's logits of the samples at `others`: the same ones, but in [`super::teaching`].
    pub(super) fn batch_with_teacher_of(&self, indices: &[i64], others: &[i64], device: Device) -> Result<Minibatch> {
        let pick = |t: &Tensor, rows: &[i64]| -> Result<Tensor> {
            Ok(t.f_index_select(0, &Tensor::f_from_slice(rows)?)?.f_to_device(device)?)
        };
        let inputs = match &self.inputs {
            Inputs::Images { split, transform } => transform.apply(&split.batch(indices)?.images, device)?,
            Inputs::Features(features) => pick(features, indices)?,
            Inputs::Backbone { split, transform, backbone } => {
                backbone.features(&transform.apply(&split.batch(indices)?.images, device)?)?
            }
        };
        let teacher = self.teacher.as_ref().map(|logits| pick(logits, others)).transpose()?;
        Ok(Minibatch { inputs, labels: pick(&self.labels, indices)?, teacher })
    }

    /// Changes with the data, its transform, the backbone and the teacher.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Classes of the teacher's logits.
    pub(super) fn teacher_classes(&self) -> Option<i64> {
        self.teacher.as_ref().and_then(|t| t.size().last().copied())
    }

    fn new(split: &Split, inputs: Inputs, key: String) -> Result<Self> {
        if split.is_empty() {
            return Err(Error::Input(format!("the {} split holds no image; give it more data", split.name)));
        }
        let (split_name, split_key) = (split.name.clone(), split.key.clone());
        Ok(Self { inputs, labels: split.labels()?, teacher: None, split_name, split_key, key })
    }
}
