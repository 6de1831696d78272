//! The loss as a parameter of the training loop.

use super::teaching::kd_loss_over_classes;
use super::{KdLoss, Method, Minibatch};
use crate::{Error, Result};
use tch::Tensor;

type HardLoss = Box<dyn Fn(&Tensor, &Tensor) -> Tensor + Send + Sync>;
type SoftLoss = Box<dyn Fn(&Tensor, &Tensor, &Tensor, f64, f64) -> Tensor + Send + Sync>;

enum Function {
    CrossEntropy,
    Kd(Method),
    /// The article's; see [`super::teaching`].
    KdOverClasses,
    Hard(HardLoss),
    Soft(SoftLoss),
}

/// What a fit minimises: cross-entropy, [`KdLoss`], or a function of your own.
pub struct Criterion {
    name: String,
    kd: Option<KdLoss>,
    function: Function,
}

impl Criterion {
    /// Hard labels only.
    pub fn cross_entropy() -> Self {
        Self { name: "cross-entropy".into(), kd: None, function: Function::CrossEntropy }
    }

    /// Teacher and hard labels. Needs examples with teacher logits.
    pub fn kd(kd: KdLoss) -> Self {
        Self::distil(Method::Kd, kd)
    }

    /// Teacher and hard labels by any [`Method`], with `kd`'s temperature and alpha.
    pub fn distil(method: Method, kd: KdLoss) -> Self {
        Self { name: method.to_string(), kd: Some(kd), function: Function::Kd(method) }
    }

    pub(super) fn is_kd(&self) -> bool {
        matches!(self.function, Function::Kd(Method::Kd))
    }

    /// Whether the teacher's term looks at the labels too.
    pub(super) fn needs_all_labels(&self) -> bool {
        matches!(
            self.function,
            Function::Kd(Method::Dkd { .. }) | Function::KdOverClasses | Function::Hard(_) | Function::Soft(_)
        )
    }

    /// [`super::teaching::kd_loss_over_classes`] in the place of [`KdLoss`].
    pub(super) fn kd_over_classes(kd: KdLoss) -> Self {
        Self { function: Function::KdOverClasses, ..Self::kd(kd) }
    }

    /// Your own loss of `(logits [B, C], labels [B])`, a scalar.
    pub fn hard(name: &str, loss: impl Fn(&Tensor, &Tensor) -> Tensor + Send + Sync + 'static) -> Self {
        Self { name: name.into(), kd: None, function: Function::Hard(Box::new(loss)) }
    }

    /// Your own loss of `(student logits [B, C], labels [B], teacher logits [B, C], temperature, alpha)`, a scalar.
    pub fn soft(
        name: &str,
        kd: KdLoss,
        loss: impl Fn(&Tensor, &Tensor, &Tensor, f64, f64) -> Tensor + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), kd: Some(kd), function: Function::Soft(Box::new(loss)) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Temperature and alpha this criterion starts with; none for hard labels.
    pub fn kd_loss(&self) -> Option<KdLoss> {
        self.kd
    }

    /// The loss of one batch at `kd` (the values in force now), a scalar with a gradient towards `logits`.
    pub(super) fn loss(&self, logits: &Tensor, batch: &Minibatch, kd: Option<KdLoss>) -> Result<Tensor> {
        let loss = match (&self.function, kd) {
            (Function::CrossEntropy, _) => return batch.hard_loss(logits),
            (Function::Hard(f), _) => f(logits, &batch.labels),
            (Function::Kd(method), Some(kd)) => {
                let soft = || method.divergence(kd, logits, &batch.labels, batch.teacher()?);
                return kd.mix(&soft, &|| batch.hard_loss(logits));
            }
            (Function::KdOverClasses, Some(kd)) => {
                return kd_loss_over_classes(logits, &batch.labels, batch.teacher()?, kd);
            }
            (Function::Soft(f), Some(kd)) => f(logits, &batch.labels, batch.teacher()?, kd.temperature(), kd.alpha()),
            (Function::Kd(_) | Function::KdOverClasses | Function::Soft(_), None) => {
                return Err(Error::Input(format!("criterion {} has no temperature and alpha", self.name)));
            }
        };
        if loss.numel() != 1 {
            return Err(Error::Input(format!(
                "loss {} gave a tensor of shape {:?}; it must be a scalar: end it with .mean(...) or divide a sum by the batch",
                self.name,
                loss.size()
            )));
        }
        Ok(loss)
    }
}
