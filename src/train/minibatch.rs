//! One batch of examples on the device.

use super::OnlineTeacher;
use super::loss::HardLabels;
use crate::{Error, Result};
use std::cell::OnceCell;
use tch::{Device, Tensor};

/// One batch on the device.
pub struct Minibatch {
    /// f32 `[B, 3, S, S]` for images, `[B, D]` for features.
    pub inputs: Tensor,
    /// i64 `[B]`.
    pub labels: Tensor,
    pub(super) answer: Answer,
    /// The teacher's features `[B, D]` or `[B, C, H, W]`.
    pub(super) features: Option<Tensor>,
    pub(super) partly_labelled: bool,
    /// With mixup, the labels i64 `[B]` of the images that were mixed in, and the share of the images themselves.
    pub(super) mixed: Option<(Tensor, f64)>,
    /// In a group, what the mean over this part's labels is multiplied by, where it is not 1.
    pub(super) label_share: Option<Tensor>,
}

/// The teacher's logits of a batch.
#[derive(Default)]
pub(super) struct Answer {
    /// f32 `[B, C]`
    logits: OnceCell<Tensor>,
    /// Who computes them when they are first asked for, of which images u8 `[B, 3, H, W]`, for which device.
    online: Option<(OnlineTeacher, Tensor, Device)>,
}

impl Answer {
    pub(super) fn known(logits: Tensor) -> Self {
        Self { logits: OnceCell::from(logits), online: None }
    }

    /// A fit of hard labels does not ask, and the teacher does not run.
    pub(super) fn later(teacher: OnlineTeacher, images: Tensor, device: Device) -> Self {
        Self { logits: OnceCell::new(), online: Some((teacher, images, device)) }
    }
}

impl Minibatch {
    /// Returns the teacher's logits `[B, C]` of these samples. A teacher that judges each batch computes them now.
    ///
    /// # Errors
    /// When the examples have no teacher, or it refuses the images.
    pub fn teacher(&self) -> Result<&Tensor> {
        if let Some(logits) = self.answer.logits.get() {
            return Ok(logits);
        }
        let Some((teacher, images, device)) = &self.answer.online else {
            let why = "this loss needs a teacher, and the examples carry none; add with_teacher(&logits)";
            return Err(Error::Input(why.into()));
        };
        let logits = teacher.logits(images, *device)?;
        Ok(self.answer.logits.get_or_init(|| logits))
    }

    /// A loss of labels i64 `[B]`. With mixup every image has two of them, and the loss is taken of both:
    /// `share * loss(labels) + (1 - share) * loss(labels mixed in)`.
    pub(super) fn by_label(&self, loss: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let own = loss(&self.labels)?;
        match &self.mixed {
            None => Ok(own),
            Some((others, share)) => Ok(own.f_mul_scalar(*share)?.f_add(&loss(others)?.f_mul_scalar(1.0 - *share)?)?),
        }
    }

    /// Mean cross-entropy over the images with a label.
    pub(super) fn hard_loss(&self, logits: &Tensor, hard: &HardLabels) -> Result<Tensor> {
        let mean = self.by_label(&|labels| hard.mean(logits, labels, self.partly_labelled))?;
        match &self.label_share {
            None => Ok(mean),
            Some(share) => Ok(mean.f_mul(&share.f_to_kind(mean.kind())?)?),
        }
    }
}
