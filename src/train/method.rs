//! Distillation methods that replace plain KL in the loss.

use super::KdLoss;
use super::loss::{batch_mean, check_pair, cross_entropy, log_probabilities};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use tch::{Kind, Reduction, Tensor};

/// How the loss compares the student with its teacher: the term `soft` in `alpha * T^2 * soft + (1 - alpha) * CE`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Method {
    /// `KL(teacher_T || student_T)`: Hinton, Vinyals and Dean (2015). See [`KdLoss`].
    Kd,
    /// `target * TCKD + non_target * NCKD`: Zhao et al., "Decoupled Knowledge Distillation" (CVPR 2022), equation 7.
    ///
    /// TCKD is the KL of (target, all others), NCKD the KL among the others. Plain KD is
    /// `TCKD + (1 - p_target) * NCKD`, which mutes the second term where the teacher is sure. Needs at least 3 classes
    /// and the label of every image.
    Dkd {
        /// Weight of TCKD, at least 0.
        target: f64,
        /// Weight of NCKD, at least 0.
        non_target: f64,
    },
    /// KL of standardised logits: Sun et al., "Logit Standardization in Knowledge Distillation" (CVPR 2024).
    ///
    /// The logits of each image, the student's and the teacher's, are brought to mean 0 and standard deviation 1 before
    /// they are divided by T.
    StandardisedKd,
    /// Cross-entropy against the class that the teacher finds likeliest: hard labels from the teacher. What soft
    /// targets add shows beside it. It has no temperature.
    Argmax,
}

/// How a method was run: `hard * CE + soft * T^2 * soft_term`.
#[derive(Clone, Copy)]
pub(super) struct Published {
    pub temperature: f64,
    pub hard: f64,
    pub soft: f64,
    /// Epochs in which the weight of the soft term rises: in epoch `n` it is `min(n / warmup, 1)` of `soft`.
    pub warmup: usize,
}

/// The paper's weights for CIFAR-100; for other data it recommends 0.5 to 10 for the second.
const DKD: Method = Method::Dkd { target: 1.0, non_target: 8.0 };

impl Method {
    /// The soft term, a scalar: mean over the batch in nats, not yet scaled by T^2. `student` and `teacher` are
    /// logits `[B, C]`, `labels` i64 `[B]`.
    ///
    /// # Errors
    /// When shapes don't fit, there are too few classes, or an image has no label that the method needs.
    pub(crate) fn divergence(&self, kd: KdLoss, student: &Tensor, labels: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        match *self {
            Method::Kd => kd.divergence(student, teacher),
            Method::Dkd { target, non_target } => {
                let (tckd, nckd) = decoupled(student, labels, teacher, kd.temperature())?;
                Ok(tckd.f_mul_scalar(target)?.f_add(&nckd.f_mul_scalar(non_target)?)?)
            }
            Method::StandardisedKd => kd.divergence(&standardised(student)?, &standardised(teacher)?),
            Method::Argmax => {
                check_pair(student, teacher)?;
                let found = cross_entropy(student, &teacher.f_argmax(1, false)?)?;
                // The loss multiplies it by T^2, which belongs to soft targets.
                Ok(found.f_div_scalar(kd.temperature().powi(2))?)
            }
        }
    }

    /// How its authors ran it on CIFAR-100; plain distillation and its hard labels as the comparisons of Tian et al.
    /// (ICLR 2020) and of the others do.
    pub(super) fn published(&self) -> Published {
        match self {
            Method::Kd | Method::Argmax => Published { temperature: 4.0, hard: 0.1, soft: 0.9, warmup: 0 },
            Method::Dkd { .. } => Published { temperature: 4.0, hard: 1.0, soft: 1.0, warmup: 20 },
            Method::StandardisedKd => Published { temperature: 2.0, hard: 0.1, soft: 9.0, warmup: 0 },
        }
    }
}

/// TCKD and NCKD of the paper, scalars: means over the batch, not yet scaled by T^2. Logits `[B, C]` of at least 3
/// classes, `labels` i64 `[B]`.
fn decoupled(student: &Tensor, labels: &Tensor, teacher: &Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    check_pair(student, teacher)?;
    let (size, classes) = (student.size(), student.size()[1]);
    if classes < 3 || labels.size() != [size[0]] {
        return Err(Error::Input(format!(
            "decoupled distillation of logits {size:?} with labels {:?}: it needs [batch, classes] with at least 3 \
             classes, and a label for each image",
            labels.size()
        )));
    }
    // Selecting by a mask finds missing labels, which `scatter` on a GPU would not survive.
    // [B, C]
    let of_target = Tensor::f_arange(classes, (Kind::Int64, labels.device()))?.f_eq_tensor(&labels.f_unsqueeze(1)?)?;
    let others = of_target.f_logical_not()?;
    // Logits of (target, any other class) [B, 2], and of the others [B, C - 1], at the temperature.
    let parts = |logits: &Tensor| -> Result<(Tensor, Tensor)> {
        let scaled = logits.f_div_scalar(temperature)?;
        let rest = scaled.f_masked_select(&others)?;
        if rest.numel() as i64 != size[0] * (classes - 1) {
            return Err(Error::Input(format!(
                "decoupled distillation needs the label of every image, 0 to {}; for images without labels take kd",
                classes - 1
            )));
        }
        let rest = rest.f_view([size[0], classes - 1])?;
        let target = scaled.f_masked_select(&of_target)?.f_view([size[0], 1])?;
        let binary = Tensor::f_cat(&[&target, &rest.f_logsumexp([1i64].as_slice(), true)?], 1)?;
        Ok((binary, rest))
    };
    let (s_target, s_rest) = parts(student)?;
    let (s_target, s_rest) = (s_target.f_log_softmax(1, None::<Kind>)?, s_rest.f_log_softmax(1, None::<Kind>)?);
    let (t_target, t_rest) = parts(&teacher.f_detach()?)?;
    let (t_target, t_rest) = (log_probabilities(&t_target)?, log_probabilities(&t_rest)?);
    let mean = |s: &Tensor, t: &Tensor| batch_mean(&s.f_kl_div(t, Reduction::Sum, true)?, student);
    Ok((mean(&s_target, &t_target)?, mean(&s_rest, &t_rest)?))
}

/// Each row of logits `[B, C]` with mean 0 and sample standard deviation 1: `(z - mean) / (std + 1e-7)`, as in the
/// paper's code.
fn standardised(logits: &Tensor) -> Result<Tensor> {
    let size = logits.size();
    if size.len() != 2 || size[1] < 2 {
        return Err(Error::Input(format!(
            "logits are {size:?}: to standardise them they must be [batch, classes], 2 or more"
        )));
    }
    let mean = logits.f_mean_dim([1i64].as_slice(), true, None::<Kind>)?;
    let deviation = logits.f_std_dim([1i64].as_slice(), true, true)?.f_add_scalar(1e-7)?;
    Ok(logits.f_sub(&mean)?.f_div(&deviation)?)
}

impl FromStr for Method {
    type Err = Error;

    /// Reads `kd`, `dkd` (with the paper's weights 1 and 8), `dkd(1,2)` with other weights, `standardised-kd` or
    /// `argmax`.
    fn from_str(name: &str) -> Result<Self> {
        let weights = name.strip_prefix("dkd(").and_then(|rest| rest.strip_suffix(')')?.split_once(','));
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|w| w.is_finite() && *w >= 0.0);
        match (name, weights.and_then(|(target, rest)| number(target).zip(number(rest)))) {
            ("kd", _) => Ok(Method::Kd),
            ("dkd", _) => Ok(DKD),
            ("standardised-kd", _) => Ok(Method::StandardisedKd),
            ("argmax", _) => Ok(Method::Argmax),
            (_, Some((target, non_target))) => Ok(Method::Dkd { target, non_target }),
            _ => Err(Error::Input(format!(
                "no method named {name:?}; there are kd, dkd, dkd(1,2), standardised-kd and argmax"
            ))),
        }
    }
}

impl TryFrom<String> for Method {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<Method> for String {
    fn from(method: Method) -> Self {
        method.to_string()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Kd => f.write_str("kd"),
            m if *m == DKD => f.write_str("dkd"),
            Method::Dkd { target, non_target } => write!(f, "dkd({target},{non_target})"),
            Method::StandardisedKd => f.write_str("standardised-kd"),
            Method::Argmax => f.write_str("argmax"),
        }
    }
}
