//! The loss that a fit minimises.

use super::{KdLoss, Method, Minibatch};
use crate::{Error, Result};
use tch::{Kind, Tensor};

type HardLoss = Box<dyn Fn(&Tensor, &Tensor) -> Tensor + Send + Sync>;
type SoftLoss = Box<dyn Fn(&Tensor, &Tensor, &Tensor, KdLoss) -> Result<Tensor> + Send + Sync>;

enum Function {
    CrossEntropy,
    Kd(Method),
    Hard(HardLoss),
    Soft(SoftLoss),
}

/// The loss that a fit minimises: cross-entropy, [`KdLoss`], or a function of your own.
pub struct Criterion {
    name: String,
    kd: Option<KdLoss>,
    function: Function,
}

impl Criterion {
    /// Cross-entropy against the hard labels.
    pub fn cross_entropy() -> Self {
        Self { name: "cross-entropy".into(), kd: None, function: Function::CrossEntropy }
    }

    /// Distillation as [`KdLoss`] computes it. It needs examples with teacher logits.
    pub fn kd(kd: KdLoss) -> Self {
        Self::distil(Method::Kd, kd)
    }

    /// Distillation by any [`Method`], with the temperature and alpha of `kd`. It needs examples with teacher logits.
    pub fn distil(method: Method, kd: KdLoss) -> Self {
        Self { name: method.to_string(), kd: Some(kd), function: Function::Kd(method) }
    }

    pub(crate) fn is_kd(&self) -> bool {
        matches!(self.function, Function::Kd(Method::Kd))
    }

    /// Whether the loss needs the label of every image.
    pub(super) fn needs_all_labels(&self) -> bool {
        matches!(self.function, Function::Kd(Method::Dkd { .. }) | Function::Hard(_) | Function::Soft(_))
    }

    /// Your own loss: a function of `(logits [B, C], labels i64 [B])` that returns a scalar.
    pub fn hard(name: &str, loss: impl Fn(&Tensor, &Tensor) -> Tensor + Send + Sync + 'static) -> Self {
        Self { name: name.into(), kd: None, function: Function::Hard(Box::new(loss)) }
    }

    /// Your own distillation loss: a function of student logits `[B, C]`, labels i64 `[B]`, teacher logits `[B, C]`,
    /// temperature and alpha, in this order, that returns a scalar. `kd` has the values that the fit begins with.
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
        Self { name: name.into(), kd: Some(kd), function: Function::Soft(Box::new(loss)) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Temperature and alpha that a fit begins with; `None` for hard labels.
    pub(crate) fn kd_loss(&self) -> Option<KdLoss> {
        self.kd
    }

    /// Refuses a user's loss that at alpha = 0 does not change with the student's logits. The usual cause is swapped
    /// arguments: cross-entropy then measures the teacher.
    pub(super) fn check_labels(&self, logits: &Tensor, batch: &Minibatch) -> Result<()> {
        let (Function::Soft(f), Some(kd)) = (&self.function, self.kd) else { return Ok(()) };
        tch::no_grad(|| {
            let moved = Tensor::f_arange(logits.numel() as i64, (Kind::Float, logits.device()))?.f_sin()?;
            let moved = logits.f_add(&moved.f_view(logits.size().as_slice())?)?;
            let value = |student: &Tensor| -> Result<Option<f64>> {
                let loss = f(student, &batch.labels, batch.teacher()?, KdLoss::new(kd.temperature(), 0.0)?)?;
                Ok(if loss.numel() == 1 { Some(loss.f_double_value(&[])?) } else { None })
            };
            // A loss without a label term, or that is no scalar, is not judged here.
            let Some(here) = value(logits)?.filter(|loss| loss.abs() > 1e-6) else { return Ok(()) };
            if value(&moved)? == Some(here) {
                return Err(self
                    .swapped("at alpha = 0 it is the same whatever the student says, so the labels teach it nothing"));
            }
            Ok(())
        })
    }

    /// Refuses a user's function whose teacher term has no gradient towards the student: its whole gradient is that of
    /// cross-entropy, weighted by 1 - alpha.
    pub(super) fn check_teacher(
        &self,
        loss: &Tensor,
        logits: &Tensor,
        batch: &Minibatch,
        kd: Option<KdLoss>,
    ) -> Result<()> {
        let (Function::Soft(_), Some(kd)) = (&self.function, kd) else { return Ok(()) };
        if !loss.requires_grad() || !logits.requires_grad() || !(0.01..1.0).contains(&kd.alpha()) {
            return Ok(());
        }
        let gradients = Tensor::f_run_backward(&[loss], &[logits], true, false)?;
        let Some(gradient) = gradients.first().filter(|gradient| gradient.defined()) else { return Ok(()) };
        tch::no_grad(|| {
            let wanted = logits.f_softmax(-1, None::<Kind>)?;
            // A student that begins as a copy of its teacher has no gradient from it yet.
            let teacher = batch.teacher()?.f_softmax(-1, None::<Kind>)?;
            if wanted.f_allclose(&teacher, 1e-3, 1e-3, false)? {
                return Ok(());
            }
            let labels = batch.labels.f_one_hot(logits.size()[1])?;
            let wanted = wanted.f_sub(&labels)?.f_mul_scalar((1.0 - kd.alpha()) / logits.size()[0] as f64)?;
            match gradient.f_allclose(&wanted, 1e-5, 1e-9, false)? {
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

    /// The loss of one batch at `kd`, the values in force now: a scalar with a gradient towards `logits`.
    pub(super) fn loss(&self, logits: &Tensor, batch: &Minibatch, kd: Option<KdLoss>) -> Result<Tensor> {
        let loss = match (&self.function, kd) {
            (Function::CrossEntropy, _) => return batch.hard_loss(logits),
            (Function::Hard(f), _) => f(logits, &batch.labels),
            (Function::Kd(method), Some(kd)) => {
                let soft = || method.divergence(kd, logits, &batch.labels, batch.teacher()?);
                return kd.mix(&soft, &|| batch.hard_loss(logits));
            }
            (Function::Soft(f), Some(kd)) => f(logits, &batch.labels, batch.teacher()?, kd)?,
            (Function::Kd(_) | Function::Soft(_), None) => {
                return Err(Error::Input(format!("criterion {} has no temperature and alpha", self.name)));
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
}
