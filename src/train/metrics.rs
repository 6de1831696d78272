//! Metrics of an epoch, summed on the device.

use super::loss::UNLABELLED;
use super::{Group, KdLoss, Metrics, Minibatch};
use crate::Result;
use tch::{Device, Kind, Reduction, Tensor, no_grad};

/// Sums over the samples of an epoch. They stay on the device, so that no step waits for a copy.
pub(super) struct Sums {
    sums: Tensor, // f64 [5]: loss, cross-entropy, divergence, correct, labelled samples
    samples: usize,
    kd: bool,
    /// Steps not yet added to `sums`; all have the same batch size, temperature and alpha.
    waiting: Vec<Step>,
}

/// Loss and outputs of one training step.
struct Step {
    loss: Tensor,   // [1]
    logits: Tensor, // [B, C]
    labels: Tensor, // [B]
    teacher: Option<Tensor>,
    kd: Option<KdLoss>,
}

/// Steps that are added up together. Adding up takes as many operations as a pass of a small network, and on a GPU
/// kernel launches dominate, so a sum for each step would slow training down.
const STEPS: usize = 16;
/// Most logits that are added up together: the intermediate results take ten times their memory.
const LOGITS: usize = 1 << 20;

impl Sums {
    pub(super) fn new(device: Device, kd: bool) -> Result<Self> {
        // f32 would round sums over a million samples; MPS has no f64.
        let kind = if matches!(device, Device::Mps) { Kind::Float } else { Kind::Double };
        Ok(Self { sums: Tensor::f_zeros(5, (kind, device))?, samples: 0, kd, waiting: vec![] })
    }

    /// Goes on with the values of an epoch that was stopped.
    pub(super) fn resumed(device: Device, kd: bool, values: &[f64]) -> Result<Self> {
        let Self { sums, waiting, .. } = Self::new(device, kd)?;
        let [all @ .., samples] = values else { return Self::new(device, kd) };
        sums.shallow_clone().f_copy_(&Tensor::f_from_slice(all)?)?;
        Ok(Self { sums, samples: *samples as usize, kd, waiting })
    }

    pub(super) fn add(&mut self, loss: &Tensor, logits: &Tensor, batch: &Minibatch, kd: Option<KdLoss>) -> Result<()> {
        let (loss, logits) = (loss.f_detach()?.f_reshape(-1)?, logits.f_detach()?);
        let labels = batch.labels.shallow_clone();
        let teacher = kd.map(|_| batch.teacher().map(Tensor::shallow_clone)).transpose()?;
        let step = Step { loss, logits, labels, teacher, kd };
        let alike = |other: &Step| other.kd == kd && other.labels.size() == step.labels.size();
        let full = self.waiting.len() == STEPS || (self.waiting.len() + 1) * step.logits.numel() > LOGITS;
        if full || !self.waiting.iter().all(alike) {
            self.sums = self.added_up()?;
            self.waiting.clear();
        }
        self.samples += step.labels.numel();
        self.waiting.push(step);
        Ok(())
    }

    /// The sums, with the steps that are waiting.
    fn added_up(&self) -> Result<Tensor> {
        let Some(first) = self.waiting.first() else { return Ok(self.sums.shallow_clone()) };
        let (kind, of_each) = (self.sums.kind(), first.labels.numel() as i64);
        let all = |part: &dyn Fn(&Step) -> &Tensor| -> Result<Tensor> {
            Ok(Tensor::f_cat(&self.waiting.iter().map(part).collect::<Vec<_>>(), 0)?)
        };
        no_grad(|| {
            let (logits, labels) = (all(&|o| &o.logits)?, all(&|o| &o.labels)?);
            let loss = all(&|o| &o.loss)?.f_sum(kind)?.f_mul_scalar(of_each)?;
            let hard = logits.f_cross_entropy_loss(&labels, None::<Tensor>, Reduction::Sum, UNLABELLED, 0.0)?;
            let teacher = self.waiting.iter().map(|o| o.teacher.as_ref()).collect::<Option<Vec<_>>>();
            let divergence = match first.kd.zip(teacher) {
                Some((kd, teacher)) => {
                    kd.divergence(&logits, &Tensor::f_cat(&teacher, 0)?)?.f_mul_scalar(labels.numel() as i64)?
                }
                None => hard.f_zeros_like()?,
            };
            let correct = logits.f_argmax(-1, false)?.f_eq_tensor(&labels)?.f_sum(kind)?;
            let labelled = labels.f_ne(UNLABELLED)?.f_sum(kind)?;
            let row = [loss, hard.f_to_kind(kind)?, divergence.f_to_kind(kind)?, correct, labelled];
            Ok(self.sums.f_add(&Tensor::f_stack(&row, 0)?)?)
        })
    }

    /// The sums and the number of samples, in a `group` over all processes. The copy to the host waits for the device.
    pub(super) fn values(&self, group: Option<&Group>) -> Result<Vec<f64>> {
        // Waiting steps go on waiting, so the sums do not depend on when progress was shown.
        let mut values = Vec::<f64>::try_from(self.added_up()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?;
        values.push(self.samples as f64);
        group.map_or(Ok(values.clone()), |group| group.sum_values(&values))
    }

    /// The means so far, in a `group` over the samples of all processes.
    pub(super) fn metrics(&self, group: Option<&Group>) -> Result<Metrics> {
        let values = self.values(group)?;
        let (all, labelled) = (values[5].max(1.0), values[4].max(1.0));
        Ok(Metrics {
            loss: values[0] / all,
            cross_entropy: values[1] / labelled,
            divergence: self.kd.then_some(values[2] / all),
            accuracy: values[3] / labelled,
        })
    }
}
