//! The report card: accuracy, calibration and cost of a set of models on one split.

use crate::data::{Split, Transform};
use crate::models::{Model, device_name};
use crate::store::atomic;
use crate::train::{CachedTensor, Calibration, Evaluation, Examples, evaluate};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use statrs::statistics::{Data, Median};
use std::path::Path;
use std::time::Instant;
use tch::{Device, no_grad};

/// Bins of the expected calibration error, as in Guo et al. (2017).
const BINS: usize = 15;
/// Timed passes of each model, after `WARM_UP` untimed ones.
const PASSES: usize = 31;
const WARM_UP: usize = 3;

/// A model for [`report_card`], with the transform that makes its input.
pub struct Candidate<'a> {
    /// Stands in the table.
    pub name: &'a str,
    /// A network from images to logits.
    pub model: &'a Model,
    /// Makes the model's input from the split's images.
    pub transform: &'a Transform,
    /// The model's logits for the split, if they are known; otherwise they are computed.
    pub logits: Option<&'a CachedTensor>,
}

/// One model on the split of a [`ReportCard`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportRow {
    /// Name of the model.
    pub model: String,
    /// Share of images whose largest logit is the label's, in [0, 1].
    pub accuracy: f64,
    /// Negative log-likelihood of the labels: mean cross-entropy, in nats.
    pub nll: f64,
    /// Expected calibration error over 15 bins.
    pub calibration: Calibration,
    /// Share of images to which it gives the same class as the first model, in [0, 1]; `None` for the first model.
    pub agreement: Option<f64>,
    /// Number of weights, trained or not.
    pub parameters: i64,
    /// Multiply-accumulates for one image.
    pub macs: i64,
    /// Median time of a forward pass of one image, without its transform.
    pub latency_ms: f64,
    /// Size of its weights as safetensors.
    pub file_bytes: usize,
    /// Counts `[C][C]`: row = true class, column = predicted class.
    pub confusion: Vec<Vec<usize>>,
}

/// A row for each model. The first one is the teacher, with which the others are compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportCard {
    /// Name of the split.
    pub split: String,
    /// Number of its images.
    pub images: usize,
    /// Device on which the latencies were measured.
    pub device: String,
    /// One for each model, in the given order.
    pub rows: Vec<ReportRow>,
}

/// Measures accuracy, calibration, agreement with the first model, and cost of every model on `split`. Returns the
/// card, and each model's evaluation in the same order.
///
/// Latencies are measured in turns, one pass of each model after the other, so that other load on the machine slows all
/// of them.
///
/// # Errors
/// When there is no model, one does not fit the split's images or classes, or logits belong to another split.
pub fn report_card(split: &Split, models: &[Candidate], batch_size: usize) -> Result<(ReportCard, Vec<Evaluation>)> {
    let Some(first) = models.first() else {
        return Err(Error::Input("a report card of no models; give the teacher and its students".into()));
    };
    let evaluations = models
        .iter()
        .map(|m| match m.logits {
            Some(logits) => {
                logits.check(&split.key, split.len(), "logits")?;
                Evaluation::new(&logits.tensor, &split.labels()?)
            }
            None => evaluate(m.model, &Examples::images(split, m.transform)?, batch_size),
        })
        .collect::<Result<Vec<_>>>()?;
    let latencies = latencies(split, models)?;
    let row = |(i, latency_ms): (usize, f64)| {
        let (m, e) = (&models[i], &evaluations[i]);
        let size = m.transform.size;
        let summary = m.model.summary([3, size, size])?;
        Ok(ReportRow {
            model: m.name.to_owned(),
            accuracy: e.accuracy(),
            nll: e.cross_entropy,
            calibration: e.calibration(BINS)?,
            agreement: (i > 0).then(|| e.agreement(&evaluations[0])).transpose()?,
            parameters: summary.parameters,
            macs: summary.macs,
            latency_ms,
            file_bytes: m.model.file_size()?,
            confusion: e.confusion()?,
        })
    };
    let rows = latencies.into_iter().enumerate().map(row).collect::<Result<_>>()?;
    let device = device_name(first.model.device());
    let card = ReportCard { split: split.name.clone(), images: split.len(), device, rows };
    Ok((card, evaluations))
}

/// Median milliseconds of one image's forward pass, for each model.
fn latencies(split: &Split, models: &[Candidate]) -> Result<Vec<f64>> {
    let image = split.batch(&[0])?.images;
    let inputs = models.iter().map(|m| m.transform.apply(&image, m.model.device())).collect::<Result<Vec<_>>>()?;
    let mut times = vec![Vec::with_capacity(PASSES); models.len()];
    for pass in 0..WARM_UP + PASSES {
        for ((m, input), times) in models.iter().zip(&inputs).zip(&mut times) {
            let start = Instant::now();
            // The copy to the host waits for the device.
            let _ = no_grad(|| m.model.forward(input, false))?.f_to_device(Device::Cpu)?;
            if pass >= WARM_UP {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    Ok(times.into_iter().map(|times| Data::new(times).median()).collect())
}

/// One row of the table that closes a walk through the notebooks. Accuracies are in [0, 1]; `seconds` are those of
/// training, and of the teacher's pass over the images.
#[derive(Serialize)]
pub(crate) struct ResultRow {
    pub model: String,
    pub val_accuracy: f64,
    pub test_accuracy: f64,
    pub parameters: i64,
    pub macs: i64,
    pub seconds: f64,
}

impl ReportCard {
    /// Writes the card as JSON to a file, which is whole or absent.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        atomic::write_json(path.as_ref(), self)
    }
}
