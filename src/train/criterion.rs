//! The loss that a fit minimises.

use super::{KdLoss, Method, Minibatch};
use crate::{Error, Result};
use tch::{Kind, Tensor};

type HardLoss = Box<dyn Fn(&Tensor, &Tensor) -> Tensor + Send + Sync>;
type SoftLoss = Box<dyn Fn(&Tensor, &Tensor, &Tensor, KdLoss) -> Result<Tensor> + Send + Sync>;

enum Function {
    CrossEntropy,
    /// With the temperature and alpha that a fit begins with.
    Kd(Method, KdLoss),
    Hard(HardLoss),
    Soft(SoftLoss, KdLoss),
}

/// The loss that a fit minimises: cross-entropy, [`KdLoss`], or a function of your own.
pub struct Criterion {
    name: String,
    function: Function,
}

impl Criterion {
    /// Cross-entropy against the hard labels.
    pub fn cross_entropy() -> Self {
        Self { name: "cross-entropy".into(), function: Function::CrossEntropy }
    }

    /// Distillation as [`KdLoss`] computes it. It needs examples with teacher logits.
    pub fn kd(kd: KdLoss) -> Self {
        Self::distil(Method::Kd, kd)
    }

    /// Distillation by any [`Method`], with the temperature and alpha of `kd`. It needs examples with teacher logits.
    pub fn distil(method: Method, kd: KdLoss) -> Self {
        Self { name: method.to_string(), function: Function::Kd(method, kd) }
    }

    /// Your own loss: a function of logits `[B, C]` and labels i64 `[B]` that returns a scalar.
    pub fn hard(name: &str, loss: impl Fn(&Tensor, &Tensor) -> Tensor + Send + Sync + 'static) -> Self {
        Self { name: name.into(), function: Function::Hard(Box::new(loss)) }
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
        Self { name: name.into(), function: Function::Soft(Box::new(loss), kd) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_kd(&self) -> bool {
        matches!(self.function, Function::Kd(Method::Kd, _))
    }

    /// Temperature and alpha that a fit begins with; `None` for a loss of hard labels alone.
    pub(crate) fn kd_loss(&self) -> Option<KdLoss> {
        match self.function {
            Function::Kd(_, kd) | Function::Soft(_, kd) => Some(kd),
            Function::CrossEntropy | Function::Hard(_) => None,
        }
    }

    /// Whether the loss needs the label of every image.
    pub(super) fn needs_all_labels(&self) -> bool {
        matches!(self.function, Function::Kd(Method::Dkd { .. }, _) | Function::Hard(_) | Function::Soft(..))
    }

    /// The loss of one batch: a scalar with a gradient towards `logits`. `now` has the temperature and alpha that are
    /// in force, where they differ from those at the beginning.
    pub(super) fn loss(&self, logits: &Tensor, batch: &Minibatch, now: Option<KdLoss>) -> Result<Tensor> {
        let loss = match &self.function {
            Function::CrossEntropy => return batch.hard_loss(logits),
            Function::Kd(method, kd) => {
                let kd = now.unwrap_or(*kd);
                let soft = || method.divergence(kd, logits, &batch.labels, batch.teacher()?);
                return kd.mix(&soft, &|| batch.hard_loss(logits));
            }
            Function::Hard(f) => f(logits, &batch.labels),
            Function::Soft(f, kd) => f(logits, &batch.labels, batch.teacher()?, now.unwrap_or(*kd))?,
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

    /// Refuses a user's loss that at alpha = 0 does not depend on the student's logits: cross-entropy then measures the
    /// teacher, because the two are swapped.
    pub(super) fn check_labels(&self, logits: &Tensor, batch: &Minibatch) -> Result<()> {
        let Function::Soft(f, kd) = &self.function else { return Ok(()) };
        let labels_alone = KdLoss::new(kd.temperature(), 0.0)?;
        tch::no_grad(|| {
            let value = |student: &Tensor| -> Result<f64> {
                let loss = f(student, &batch.labels, batch.teacher()?, labels_alone)?;
                Ok(loss.f_mean(Kind::Double)?.f_double_value(&[])?)
            };
            let surer = logits.f_add(&batch.labels.f_one_hot(logits.size()[1])?)?;
            let loss = value(logits)?;
            // A loss without a term for the labels is 0 here.
            if loss.abs() < 1e-6 || loss != value(&surer)? {
                return Ok(());
            }
            Err(self.swapped("at alpha = 0 it is the same whatever the student says, so the labels teach it nothing"))
        })
    }

    /// Refuses a user's loss whose teacher term has no gradient towards the student: its whole gradient is that of
    /// cross-entropy, weighted by 1 - alpha.
    pub(super) fn check_teacher(
        &self,
        loss: &Tensor,
        logits: &Tensor,
        batch: &Minibatch,
        now: Option<KdLoss>,
    ) -> Result<()> {
        let Function::Soft(_, kd) = &self.function else { return Ok(()) };
        let alpha = now.unwrap_or(*kd).alpha();
        if !loss.requires_grad() || !logits.requires_grad() || !(0.01..1.0).contains(&alpha) {
            return Ok(());
        }
        let gradient = Tensor::f_run_backward(&[loss], &[logits], true, false)?.remove(0);
        tch::no_grad(|| {
            let student = logits.f_softmax(-1, None::<Kind>)?;
            let teacher = batch.teacher()?.f_softmax(-1, None::<Kind>)?;
            // A student that begins as a copy of its teacher has no gradient from it yet.
            if !gradient.defined() || student.f_allclose(&teacher, 1e-3, 1e-3, false)? {
                return Ok(());
            }
            let of_labels = student.f_sub(&batch.labels.f_one_hot(logits.size()[1])?)?;
            let of_labels = of_labels.f_mul_scalar((1.0 - alpha) / logits.size()[0] as f64)?;
            if !gradient.f_allclose(&of_labels, 1e-5, 1e-9, false)? {
                return Ok(());
            }
            Err(self.swapped("its gradient is that of the labels alone, so the teacher teaches the student nothing"))
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
