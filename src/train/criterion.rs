//! The loss that a fit minimises.

use super::loss::HardLabels;
use super::method::Published;
use super::{FeatureMethod, KdLoss, Method, Minibatch};
use crate::{Error, Result};
use tch::{Kind, Tensor};

type HardLoss = Box<dyn Fn(&Tensor, &Tensor) -> Tensor + Send + Sync>;
type SoftLoss = Box<dyn Fn(&Tensor, &Tensor, &Tensor, KdLoss) -> Result<Tensor> + Send + Sync>;

enum Function {
    CrossEntropy {
        /// Whether mixup may give an image two labels.
        mixed: bool,
    },
    /// With the temperature and alpha that a fit begins with.
    Kd(Method, KdLoss),
    Hard(HardLoss),
    Soft(SoftLoss, KdLoss),
}

/// The loss that a fit minimises: cross-entropy, [`KdLoss`], or a function of your own.
pub struct Criterion {
    name: String,
    function: Function,
    /// Multiplies the loss.
    scale: f64,
    /// Epochs in which the weight of the soft term rises to its full value; 0 for none.
    warmup: usize,
    /// How a layer of the student is held to the teacher's features.
    features: Option<(FeatureMethod, String)>,
}

/// A loss times a factor.
fn times(loss: Tensor, factor: f64) -> Result<Tensor> {
    Ok(if factor == 1.0 { loss } else { loss.f_mul_scalar(factor)? })
}

impl Criterion {
    /// Returns cross-entropy against the hard labels.
    pub fn cross_entropy() -> Self {
        Self::new("cross-entropy", Function::CrossEntropy { mixed: false })
    }

    /// Returns cross-entropy for images that mixup mixes: that of both labels, each by its share, as in Zhang et al.
    /// (2018). It is what a distilled student with mixup is compared with.
    pub fn mixed_cross_entropy() -> Self {
        Self::new("mixed-cross-entropy", Function::CrossEntropy { mixed: true })
    }

    /// Returns distillation as [`KdLoss`] computes it. It needs examples with teacher logits.
    pub fn kd(kd: KdLoss) -> Self {
        Self::distil(Method::Kd, kd)
    }

    /// Returns distillation by any [`Method`], with the temperature and alpha of `kd`. It needs examples with teacher
    /// logits.
    pub fn distil(method: Method, kd: KdLoss) -> Self {
        Self::new(&method.to_string(), Function::Kd(method, kd))
    }

    /// Returns distillation as the authors of a [`Method`] ran it on CIFAR-100. It needs examples with teacher logits.
    ///
    /// | method | T | weight of cross-entropy | weight of `T^2 *` the soft term | warm-up |
    /// | --- | --- | --- | --- | --- |
    /// | `kd`, `argmax` | 4 | 0.1 | 0.9 | |
    /// | `dkd` | 4 | 1 | 1, with 1 for TCKD and 8 for NCKD | 20 epochs |
    /// | `standardised-kd` | 2 | 0.1 | 9 | |
    ///
    /// With a warm-up of `n` epochs, the soft term has `min(epoch / n, 1)` of its weight in training. Alpha is the
    /// share of the soft term in both weights; a live change of it keeps their sum.
    pub fn published(method: Method) -> Self {
        let Published { temperature, hard, soft, warmup } = method.published();
        let kd = KdLoss::of(temperature, soft / (hard + soft));
        let plain = Self::new(&format!("{method}-published"), Function::Kd(method, kd));
        Self { scale: hard + soft, warmup, ..plain }
    }

    /// Adds a term that holds the student's `layer` to the teacher's features, beside this loss. `layer` is a name of
    /// the student's summary, such as `relu3`. It needs examples with
    /// [`with_teacher_features`](super::Examples::with_teacher_features). Validation leaves this term out.
    ///
    /// The authors of attention transfer and of relational distillation add it to [`Criterion::cross_entropy`].
    ///
    /// # Errors
    /// When a weight of `method` is negative.
    pub fn with_features(self, method: FeatureMethod, layer: &str) -> Result<Self> {
        method.check()?;
        let name = format!("{}+{}", self.name, method.name());
        Ok(Self { name, features: Some((method, layer.to_owned())), ..self })
    }

    /// How a layer of the student is held to the teacher's features.
    pub(super) fn features(&self) -> Option<(FeatureMethod, &str)> {
        self.features.as_ref().map(|(method, layer)| (*method, layer.as_str()))
    }

    fn new(name: &str, function: Function) -> Self {
        Self { name: name.into(), function, scale: 1.0, warmup: 0, features: None }
    }

    /// Wraps your own loss: a function of logits `[B, C]` and labels i64 `[B]` that returns a scalar.
    pub fn hard(name: &str, loss: impl Fn(&Tensor, &Tensor) -> Tensor + Send + Sync + 'static) -> Self {
        Self::new(name, Function::Hard(Box::new(loss)))
    }

    /// Wraps your own distillation loss: a function of student logits `[B, C]`, labels i64 `[B]`, teacher logits `[B,
    /// C]`, temperature and alpha, in this order, that returns a scalar. `kd` has the values that the fit begins with.
    pub fn soft(
        name: &str,
        kd: KdLoss,
        loss: impl Fn(&Tensor, &Tensor, &Tensor, f64, f64) -> Tensor + Send + Sync + 'static,
    ) -> Self {
        Self::try_soft(name, kd, move |s, y, t, kd| Ok(loss(s, y, t, kd.temperature(), kd.alpha())))
    }

    /// [`Criterion::soft`] for a loss that reports its errors.
    pub(crate) fn try_soft(
        name: &str,
        kd: KdLoss,
        loss: impl Fn(&Tensor, &Tensor, &Tensor, KdLoss) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, Function::Soft(Box::new(loss), kd))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_kd(&self) -> bool {
        matches!(self.function, Function::Kd(Method::Kd, _)) && self.scale == 1.0 && self.features.is_none()
    }

    /// Refuses a warm-up of the soft term that the run is too short for.
    pub(crate) fn check(&self, epochs: usize) -> Result<()> {
        if self.warmup <= epochs {
            return Ok(());
        }
        Err(Error::Input(format!(
            "criterion {} raises its soft term over {} epochs, and the run has {epochs}: train longer, or take \
             Criterion::distil, which has no warm-up",
            self.name, self.warmup
        )))
    }

    /// What the fingerprint of a fit holds of the weights; empty for criteria that have no such.
    pub(super) fn key(&self) -> String {
        let features = self.features.as_ref().map_or(String::new(), |(method, layer)| format!(" {method:?} {layer}"));
        if self.scale == 1.0 && self.warmup == 0 {
            return features;
        }
        format!(" scale {} warmup {}{features}", self.scale, self.warmup)
    }

    /// The share of its weight that the soft term has in an epoch of training, counted from 1.
    pub(super) fn soft_share(&self, epoch: usize) -> f64 {
        if epoch >= self.warmup { 1.0 } else { epoch as f64 / self.warmup as f64 }
    }

    /// Temperature and alpha that a fit begins with; `None` for a loss of hard labels alone.
    pub(crate) fn kd_loss(&self) -> Option<KdLoss> {
        match self.function {
            Function::Kd(_, kd) | Function::Soft(_, kd) => Some(kd),
            Function::CrossEntropy { .. } | Function::Hard(_) => None,
        }
    }

    /// Whether the loss takes one hard label for each image, and nothing else.
    pub(super) fn takes_one_label(&self) -> bool {
        matches!(self.function, Function::CrossEntropy { mixed: false } | Function::Hard(_))
    }

    /// Whether the loss needs the label of every image.
    pub(super) fn needs_all_labels(&self) -> bool {
        matches!(self.function, Function::Kd(Method::Dkd { .. }, _) | Function::Hard(_) | Function::Soft(..))
    }

    /// Whether the loss is a function of the user's, which computes its own cross-entropy.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.function, Function::Hard(_) | Function::Soft(..))
    }

    /// The loss of one batch: a scalar with a gradient towards `logits`. `now` has the temperature and alpha that are
    /// in force, where they differ from those at the beginning; `hard` says how hard labels count, and `soft_share` how
    /// much of its weight the soft term has.
    pub(super) fn loss(
        &self,
        logits: &Tensor,
        batch: &Minibatch,
        now: Option<KdLoss>,
        hard: &HardLabels,
        soft_share: f64,
    ) -> Result<Tensor> {
        let loss = match &self.function {
            Function::CrossEntropy { .. } => return batch.hard_loss(logits, hard),
            Function::Kd(method, kd) => {
                let kd = now.unwrap_or(*kd);
                let of_labels = |labels: &Tensor| method.divergence(kd, logits, labels, batch.teacher()?);
                let soft = || times(batch.by_label(&of_labels)?, soft_share);
                return times(kd.mix(&soft, &|| batch.hard_loss(logits, hard))?, self.scale);
            }
            Function::Hard(f) => f(logits, &batch.labels),
            Function::Soft(f, kd) => {
                batch.by_label(&|labels| f(logits, labels, batch.teacher()?, now.unwrap_or(*kd)))?
            }
        };
        if loss.numel() != 1 {
            return Err(Error::Input(format!(
                "loss {} gave a tensor of shape {:?}; it must be a scalar: end it with .mean(...) or divide a sum by \
                 the batch",
                self.name,
                loss.size()
            )));
        }
        Ok(loss)
    }

    /// Refuses a user's loss one of whose terms does not depend on the student, as when student and teacher are
    /// swapped. The loop calls it before the first step.
    pub(super) fn check_terms(
        &self,
        loss: &Tensor,
        logits: &Tensor,
        batch: &Minibatch,
        now: Option<KdLoss>,
    ) -> Result<()> {
        let Function::Soft(f, kd) = &self.function else { return Ok(()) };
        let (kd, teacher) = (now.unwrap_or(*kd), batch.teacher()?);
        let gradient = match loss.requires_grad() && logits.requires_grad() {
            true => Tensor::f_run_backward(&[loss], &[logits], true, false)?.pop(),
            false => None,
        };
        tch::no_grad(|| {
            let labels = batch.labels.f_one_hot(logits.size()[1])?;
            let labels_alone = KdLoss::new(kd.temperature(), 0.0)?;
            let value = |student: &Tensor| -> Result<f64> {
                let loss = f(student, &batch.labels, teacher, labels_alone)?;
                Ok(loss.f_mean(loss.kind())?.f_double_value(&[])?)
            };
            // Higher logits of the labels change cross-entropy. A loss without that term is 0 at alpha = 0.
            // Detached, because a loss may ask whether it is called to train.
            let logits = logits.f_detach()?;
            let here = value(&logits)?;
            if here.abs() > 1e-6 && here == value(&logits.f_add(&labels)?)? {
                return Err(self
                    .swapped("at alpha = 0 it is the same whatever the student says, so the labels teach it nothing"));
            }
            let (student, teacher) = (logits.f_softmax(-1, None::<Kind>)?, teacher.f_softmax(-1, None::<Kind>)?);
            let Some(gradient) = gradient.filter(Tensor::defined) else { return Ok(()) };
            // A student that begins as a copy of its teacher has no gradient from it yet.
            if !(0.01..1.0).contains(&kd.alpha()) || student.f_allclose(&teacher, 1e-3, 1e-3, false)? {
                return Ok(());
            }
            // The gradient of cross-entropy.
            let of_labels = student.f_sub(&labels)?.f_mul_scalar((1.0 - kd.alpha()) / logits.size()[0] as f64)?;
            match gradient.f_allclose(&of_labels, 1e-5, 1e-9, false)? {
                true => Err(self
                    .swapped("its gradient is that of the labels alone, so the teacher teaches the student nothing")),
                false => Ok(()),
            }
        })
    }

    fn swapped(&self, what: &str) -> Error {
        Error::Input(format!(
            "loss {}: {what}. A term of it has no gradient towards the student: student and teacher are perhaps \
             swapped in it; the order is (student, labels, teacher, temperature, alpha)",
            self.name
        ))
    }
}
