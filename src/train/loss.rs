//! The distillation loss of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015).

use super::Recipe;
use crate::{Error, Result};
use tch::{Device, Kind, Reduction, Tensor};

/// `alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * CE`: alpha weights the teacher, 1 - alpha the hard labels.
///
/// KL is summed over classes and averaged over the batch, as PyTorch's
/// `F.kl_div(log_softmax(s/T), softmax(t/T), reduction="batchmean")`. The temperature shrinks the gradient of the soft
/// targets by 1/T^2 where T is well above the logits; the factor T^2 undoes that, so that alpha means the same at every
/// such T.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KdLoss {
    temperature: f64,
    alpha: f64,
}

impl KdLoss {
    /// Creates the loss for a `temperature` above 0 (1 to 10 are usual) and an `alpha` in [0, 1].
    ///
    /// # Errors
    /// When a value is out of its range.
    pub fn new(temperature: f64, alpha: f64) -> Result<Self> {
        Ok(Self { temperature: check_temperature(temperature)?, alpha: check_alpha(alpha)? })
    }

    /// The loss of constants that are in range.
    pub(super) const fn of(temperature: f64, alpha: f64) -> Self {
        Self { temperature, alpha }
    }

    /// Returns the temperature, above 0.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// Returns the weight of the soft targets, from 0 to 1.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Returns the loss, a scalar. `student` and `teacher` are logits `[B, C]` of one float kind, `labels` i64 `[B]`.
    ///
    /// # Errors
    /// When shapes don't fit, or when only the teacher's logits carry a gradient, as they do when the two are swapped.
    pub fn forward(&self, student: &Tensor, labels: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        if teacher.requires_grad() && !student.requires_grad() {
            return Err(Error::Input(
                "this loss has no gradient towards the student: only the teacher's logits carry one. Are the two \
                 swapped? It is forward(student, labels, teacher). To measure alone, compute the teacher's logits \
                 in no_grad"
                    .into(),
            ));
        }
        self.mix(&|| self.divergence(student, teacher), &|| cross_entropy(student, labels))
    }

    /// `alpha * T^2 * soft + (1 - alpha) * hard`. A term of weight 0 is not computed: alpha = 0 needs no teacher, and
    /// alpha = 1 no labels.
    pub(super) fn mix(&self, soft: &dyn Fn() -> Result<Tensor>, hard: &dyn Fn() -> Result<Tensor>) -> Result<Tensor> {
        if self.alpha == 0.0 {
            return hard();
        }
        let soft = soft()?.f_mul_scalar(self.alpha * self.temperature.powi(2))?;
        if self.alpha == 1.0 {
            return Ok(soft);
        }
        Ok(soft.f_add(&hard()?.f_mul_scalar(1.0 - self.alpha)?)?)
    }

    /// Returns `KL(teacher_T || student_T)` alone, a scalar in nats, neither scaled by T^2 nor weighted by alpha. It is
    /// zero for equal logits, and never negative.
    ///
    /// No gradient reaches the teacher. A class that the teacher rules out by a logit of -inf adds nothing.
    ///
    /// # Errors
    /// When shapes don't fit.
    pub fn divergence(&self, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        check_pair(student, teacher)?;
        let log_student = student.f_div_scalar(self.temperature)?.f_log_softmax(-1, None::<Kind>)?; // [B, C]
        let log_teacher = log_probabilities(&teacher.f_detach()?.f_div_scalar(self.temperature)?)?; // [B, C]
        batch_mean(&log_student.f_kl_div(&log_teacher, Reduction::Sum, true)?, student)
    }
}

/// The teacher's log-softmax over the last dimension. It is bounded, so that `p * (log p - log q)` is 0 rather than NaN
/// where a logit is -inf. The bound changes nothing else, because exp(-10,000) is 0 in every float kind.
pub(super) fn log_probabilities(logits: &Tensor) -> Result<Tensor> {
    Ok(logits.f_log_softmax(-1, None::<Kind>)?.f_clamp_min(-1e4)?)
}

pub(super) fn check_pair(student: &Tensor, teacher: &Tensor) -> Result<()> {
    let (s, t) = (student.size(), teacher.size());
    if s.len() == 2 && s == t {
        return Ok(());
    }
    Err(Error::Input(format!(
        "student logits are {s:?} and teacher logits {t:?}: both must be [batch, classes] with the same classes; \
         train the teacher's head for the student's classes"
    )))
}

/// Divides a sum over the batch by the number of samples.
pub(super) fn batch_mean(sum: &Tensor, logits: &Tensor) -> Result<Tensor> {
    Ok(sum.f_div_scalar(logits.size()[0].max(1))?)
}

/// Mean cross-entropy of logits `[B, C]` against hard labels i64 `[B]`: `F.cross_entropy(logits, labels)`.
pub(crate) fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    HardLabels::default().mean(logits, labels, false)
}

/// Label of an image without a label. Cross-entropy leaves it out: it is the `ignore_index` of `F.cross_entropy`.
pub(crate) const UNLABELLED: i64 = crate::data::UNLABELLED;

/// Cross-entropy against the hard labels as a recipe wants it: `F.cross_entropy` with `weight` and `label_smoothing`.
#[derive(Default)]
pub(super) struct HardLabels {
    /// One for each class, in the kind of the logits and on their device.
    weights: Option<Tensor>,
    smoothing: f64,
}

impl HardLabels {
    /// Whether some classes weigh more than others.
    pub(super) fn is_weighted(&self) -> bool {
        self.weights.is_some()
    }

    /// For logits of this kind on this device.
    pub(super) fn new(recipe: &Recipe, kind: Kind, device: Device) -> Result<Self> {
        let upload = |weights: &Vec<f64>| Tensor::f_from_slice(weights)?.f_to_kind(kind)?.f_to_device(device);
        Ok(Self { weights: recipe.class_weights.as_ref().map(upload).transpose()?, smoothing: recipe.label_smoothing })
    }

    /// The mean over the labelled images of a batch, a scalar; 0 where none of a batch that is `partly_labelled` has a
    /// label. `logits` are `[B, C]`, `labels` i64 `[B]`.
    pub(super) fn mean(&self, logits: &Tensor, labels: &Tensor, partly_labelled: bool) -> Result<Tensor> {
        let (l, y) = (logits.size(), labels.size());
        if l.len() != 2 || y.len() != 1 || l[0] != y[0] {
            return Err(Error::Input(format!(
                "logits are {l:?} and labels {y:?}: expected [batch, classes] and [batch]; check that both come from \
                 one batch"
            )));
        }
        let loss = |reduction| {
            logits.f_cross_entropy_loss(labels, self.weights.as_ref(), reduction, UNLABELLED, self.smoothing)
        };
        if !partly_labelled {
            return Ok(loss(Reduction::Mean)?);
        }
        Ok(loss(Reduction::Sum)?.f_div(&self.count(labels, logits.kind())?)?)
    }

    /// The images with a label, each as much as its class weighs: what the sum over a batch is divided by. A scalar on
    /// the device, so that no step waits for it.
    fn count(&self, labels: &Tensor, kind: Kind) -> Result<Tensor> {
        let labelled = labels.f_ne(UNLABELLED)?;
        Ok(match &self.weights {
            None => labelled.f_sum(kind)?.f_clamp_min(1)?,
            Some(weights) => {
                let of_each = weights.f_index_select(0, &labels.f_clamp_min(0)?)?;
                of_each.f_mul(&labelled)?.f_sum(kind)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?
            }
        })
    }

    /// What the mean over a part of a batch is multiplied by, so that the means of all parts, each weighted by its
    /// `share` of the images, add up to the mean over the `whole` batch.
    pub(super) fn part_of(&self, part: &Tensor, whole: &Tensor, share: f64) -> Result<Tensor> {
        let count = |labels| self.count(labels, Kind::Double);
        Ok(count(part)?.f_div(&count(whole)?)?.f_div_scalar(share)?)
    }
}

/// Returns the soft targets `softmax(logits / T)` over the last dimension, in the shape of `logits`.
///
/// # Errors
/// When the temperature is not above 0.
pub fn soft_targets(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let temperature = check_temperature(temperature)?;
    Ok(logits.f_div_scalar(temperature)?.f_softmax(-1, None::<Kind>)?)
}

pub(crate) fn check_temperature(temperature: f64) -> Result<f64> {
    if temperature.is_finite() && temperature > 0.0 {
        Ok(temperature)
    } else {
        Err(Error::Input(format!("temperature must be > 0, got {temperature}; try 1 to 10")))
    }
}

pub(crate) fn check_alpha(alpha: f64) -> Result<f64> {
    if (0.0..=1.0).contains(&alpha) {
        Ok(alpha)
    } else {
        Err(Error::Input(format!("alpha must be in [0, 1], got {alpha}; 0 is labels only, 1 is teacher only")))
    }
}

/// Checks that every label has its logit: a label out of range is undefined behaviour on CUDA.
pub(crate) fn check_classes(logits: &Tensor, labels: &Tensor) -> Result<()> {
    let (size, highest) = (logits.size(), i64::try_from(labels.f_max()?)?);
    match size.as_slice() {
        [_, classes] if highest < *classes => Ok(()),
        _ => Err(Error::Input(format!(
            "the model gives {size:?} but labels go up to {highest}: it needs logits [batch, {}]; give it as many \
             outputs as the dataset has classes",
            highest + 1
        ))),
    }
}
