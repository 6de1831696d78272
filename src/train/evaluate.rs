//! Passes of a model over a split in evaluation mode.

use super::evaluation::Evaluation;
use super::metrics::Sums;
use super::progress::Pass;
use super::{Criterion, Examples, FitOptions, KdLoss, Metrics};
use crate::Result;
use crate::models::{Mode, Model};
use tch::{Device, Tensor, no_grad};

/// Logits f32 `[N, C]` of every sample in split order, on the CPU; evaluation mode, no gradients.
///
/// # Errors
/// As libtorch's, and when the user interrupts it on the live kernel.
pub fn predict(model: &Model, examples: &Examples, batch_size: usize) -> Result<Tensor> {
    let order: Vec<i64> = (0..examples.len() as i64).collect();
    let mut rows = Vec::new();
    let (pass, mut done) = (Pass::new(&format!("{} on {}", model.name, examples.split_name)), 0);
    let forward = model.pass()?;
    for indices in crate::data::batches(&order, batch_size)? {
        pass.check(done, examples.len())?;
        done += indices.len();
        let batch = examples.batch(&indices, model.device())?;
        rows.push(forward(&batch.inputs)?.f_to_device(Device::Cpu)?);
    }
    Ok(Tensor::f_cat(&rows, 0)?)
}

/// Accuracy and cross-entropy of `model` on `examples`. Errors as [`predict`].
pub fn evaluate(model: &Model, examples: &Examples, batch_size: usize) -> Result<Evaluation> {
    Evaluation::new(&predict(model, examples, batch_size)?, &examples.labels())
}

/// One pass in evaluation mode with the criterion that is trained; none when a stop was asked for before its last
/// batch.
pub(crate) fn validate(
    model: &Model,
    examples: &Examples,
    criterion: &Criterion,
    kd: Option<KdLoss>,
    options: &FitOptions,
) -> Result<Option<Metrics>> {
    let mut sums = Sums::new(model.device(), kd.is_some())?;
    let order: Vec<i64> = (0..examples.len() as i64).collect();
    no_grad(|| {
        for indices in crate::data::batches(&order, options.batch_size)? {
            if options.control.stopping().is_some() {
                return Ok(None);
            }
            let batch = examples.batch(&indices, model.device())?;
            let logits = model.forward_in(&batch.inputs, Mode::Evaluation, options.precision)?;
            sums.add(&criterion.loss(&logits, &batch, kd)?, &logits, &batch, kd)?;
        }
        sums.metrics().map(Some)
    })
}
