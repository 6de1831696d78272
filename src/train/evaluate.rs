//! Passes of a model over a split in evaluation mode.

use super::evaluation::Evaluation;
use super::loss::HardLabels;
use super::metrics::Sums;
use super::progress::Pass;
use super::{Criterion, Examples, FitOptions, KdLoss, Metrics};
use crate::Result;
use crate::models::{Mode, Model};
use tch::{Device, Tensor, no_grad};

/// Returns the logits f32 `[N, C]` of every sample in split order, on the CPU, in evaluation mode and without
/// gradients.
///
/// # Errors
/// When the batch size is 0, the examples do not fit the model, or the user interrupts it on the live kernel.
pub fn predict(model: &Model, examples: &Examples, batch_size: usize) -> Result<Tensor> {
    let order: Vec<i64> = (0..examples.len() as i64).collect();
    let (mut rows, mut done) = (Vec::new(), 0);
    let mut pass = Pass::begin(&format!("{} on {}", model.name, examples.split_name), model.device());
    let forward = model.pass()?;
    let batches = crate::data::batches(&order, batch_size)?;
    for (number, indices) in batches.iter().enumerate() {
        pass.check(done, examples.len())?;
        done += indices.len();
        examples.read_ahead(batches.get(number + 1).map(Vec::as_slice), None);
        let batch = examples.batch(indices, model.device())?;
        rows.push(forward(&batch.inputs)?.f_to_device(Device::Cpu)?);
    }
    Ok(Tensor::f_cat(&rows, 0)?)
}

/// Measures accuracy and cross-entropy of `model` on `examples`.
///
/// # Errors
/// As [`predict`], and when no image has a label.
pub fn evaluate(model: &Model, examples: &Examples, batch_size: usize) -> Result<Evaluation> {
    Evaluation::new(&predict(model, examples, batch_size)?, &examples.labels())
}

/// Computes the metrics of a fit on its validation split, in evaluation mode; returns `None` when the user stopped it.
/// In a group, each process computes its part of every batch.
pub(super) fn validate(
    model: &Model,
    examples: &Examples,
    criterion: &Criterion,
    kd: Option<KdLoss>,
    hard: &HardLabels,
    options: &FitOptions,
) -> Result<Option<Metrics>> {
    let mut sums = Sums::new(model.device(), kd.is_some())?;
    let order: Vec<i64> = (0..examples.len() as i64).collect();
    let batches = crate::data::batches(&order, options.batch_size)?;
    no_grad(|| {
        for (number, indices) in batches.iter().enumerate() {
            if options.agreed()?.0 {
                return Ok(None);
            }
            examples.read_ahead(batches.get(number + 1).map(|next| options.part(next)), None);
            let share = options.share(indices.len());
            if share.weight == 0.0 {
                continue;
            }
            let batch = examples.part_in(indices, indices, None, &share, hard, model.device())?;
            let logits = model.forward_in(&batch.inputs, Mode::Evaluation, options.precision)?;
            sums.add(&criterion.loss(&logits, &batch, kd, hard, 1.0)?, &logits, &batch, kd)?;
        }
        sums.metrics(options.group.as_ref()).map(Some)
    })
}
