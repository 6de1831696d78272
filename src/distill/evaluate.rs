//! Measuring a model on a split, and the sums behind every reported mean.

use super::loss::{UNLABELLED, cross_entropy};
use super::{Criterion, Examples, FitOptions, KdLoss, Metrics, Minibatch, Progress};
use crate::live::{Watch, lock, watch};
use crate::models::{Mode, Model};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Reduction, Tensor, no_grad};

/// How a model does on a split.
pub struct Evaluation {
    /// Mean cross-entropy over all samples: the negative log-likelihood (NLL) of the labels, in nats.
    pub cross_entropy: f64,
    /// Samples whose largest logit is the label's.
    pub correct: usize,
    pub total: usize,
    /// f32 `[N, C]`, CPU, in split order.
    pub logits: Tensor,
    /// i64 `[N]`, CPU.
    pub labels: Tensor,
}

/// How far a model's confidence can be believed: Guo et al., "On Calibration of Modern Neural Networks" (2017).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Expected calibration error: mean over all samples of |accuracy - confidence| of their bin, in [0, 1].
    pub ece: f64,
    /// Bins of equal width; bin `m` of `M` holds confidences in (m/M, (m+1)/M].
    pub bins: Vec<CalibrationBin>,
}

/// The samples whose largest probability lies in one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    pub samples: usize,
    /// Mean of the largest probability; 0 for an empty bin.
    pub confidence: f64,
    /// Share of samples that were right; 0 for an empty bin.
    pub accuracy: f64,
}

impl Evaluation {
    /// From logits `[N, C]` and labels i64 `[N]`, on any device. Images without a label ([`UNLABELLED`]) are left out.
    ///
    /// # Errors
    /// When no image has a label, or the logits have fewer classes than the labels.
    pub fn new(logits: &Tensor, labels: &Tensor) -> Result<Self> {
        let (mut logits, mut labels) = (logits.f_to_device(Device::Cpu)?, labels.f_to_device(Device::Cpu)?);
        let labelled = labels.f_ne(UNLABELLED)?;
        let count = i64::try_from(labelled.f_sum(Kind::Int64)?)?;
        if count == 0 {
            return Err(Error::Input(format!(
                "none of the {} images has a label, so there is nothing to measure; evaluate on examples with labels",
                labels.numel()
            )));
        }
        if count < labels.numel() as i64 && logits.size().first() == labels.size().first() {
            let rows = labelled.f_nonzero()?.f_squeeze_dim(1)?;
            (logits, labels) = (logits.f_index_select(0, &rows)?, labels.f_index_select(0, &rows)?);
        }
        check_classes(&logits, &labels)?;
        let cross_entropy = f64::try_from(cross_entropy(&logits, &labels)?)?;
        let correct = i64::try_from(logits.f_argmax(-1, false)?.f_eq_tensor(&labels)?.f_sum(Kind::Int64)?)? as usize;
        Ok(Self { cross_entropy, correct, total: labels.numel(), logits, labels })
    }

    /// In [0, 1].
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }

    /// The class of the largest logit, i64 `[N]`.
    pub fn predictions(&self) -> Result<Tensor> {
        Ok(self.logits.f_argmax(-1, false)?)
    }

    /// Top-1 agreement: share of samples that both give the same class, right or wrong, in [0, 1].
    ///
    /// # Errors
    /// When the two were not measured on the same labels.
    pub fn agreement(&self, other: &Evaluation) -> Result<f64> {
        if self.labels.size() != other.labels.size() || !self.labels.f_equal(&other.labels)? {
            return Err(Error::Input(format!(
                "agreement of {} with {} samples: both models must be evaluated on the same split",
                self.total, other.total
            )));
        }
        let same = self.predictions()?.f_eq_tensor(&other.predictions()?)?.f_sum(Kind::Int64)?;
        Ok(i64::try_from(same)? as f64 / self.total.max(1) as f64)
    }

    /// Confidence against accuracy in `bins` bins (15 is usual).
    ///
    /// # Errors
    /// When `bins` is 0.
    pub fn calibration(&self, bins: usize) -> Result<Calibration> {
        if bins == 0 {
            return Err(Error::Input("calibration in 0 bins: at least 1 is needed, 15 is usual".into()));
        }
        let (confidence, predicted) = self.logits.f_softmax(-1, Kind::Double)?.f_max_dim(-1, false)?;
        let right = Vec::<bool>::try_from(predicted.f_eq_tensor(&self.labels)?)?;
        let mut sums = vec![CalibrationBin::default(); bins];
        for (confidence, right) in Vec::<f64>::try_from(confidence)?.into_iter().zip(right) {
            let bin = (confidence * bins as f64).ceil() as usize;
            let bin = &mut sums[bin.clamp(1, bins) - 1];
            bin.samples += 1;
            bin.confidence += confidence;
            bin.accuracy += f64::from(u8::from(right));
        }
        let gaps: f64 = sums.iter().map(|bin| (bin.accuracy - bin.confidence).abs()).sum();
        let mean = |b: CalibrationBin| {
            let n = b.samples.max(1) as f64;
            CalibrationBin { confidence: b.confidence / n, accuracy: b.accuracy / n, ..b }
        };
        Ok(Calibration { ece: gaps / self.total.max(1) as f64, bins: sums.into_iter().map(mean).collect() })
    }

    /// Share of each class's samples that were given their class, in [0, 1]; 0 for a class without samples.
    pub fn recall(&self) -> Result<Vec<f64>> {
        let rows = self.confusion()?;
        let of = |(class, row): (usize, &Vec<usize>)| row[class] as f64 / row.iter().sum::<usize>().max(1) as f64;
        Ok(rows.iter().enumerate().map(of).collect())
    }

    /// The same logits with `bias` added to those of one class.
    ///
    /// # Errors
    /// When there is no such class.
    pub fn with_bias(&self, class: i64, bias: f64) -> Result<Evaluation> {
        Evaluation::new(&self.raised(class, bias)?, &self.labels)
    }

    /// The bias for one class's logits with which most of these samples are right: how Hinton et al. (2015) gave back a
    /// class that the transfer set had left out. Choose it on the validation split.
    ///
    /// # Errors
    /// When there is no such class.
    pub fn best_bias(&self, class: i64) -> Result<f64> {
        let (highest, other) = self.raised(class, f64::NEG_INFINITY)?.f_max_dim(1, false)?;
        // Above this bias a sample is given the class.
        let needed = Vec::<f64>::try_from(highest.f_sub(&self.logits.f_select(1, class)?)?.f_to_kind(Kind::Double)?)?;
        let (labels, other) = (Vec::<i64>::try_from(&self.labels)?, Vec::<i64>::try_from(&other)?);
        let mut order: Vec<usize> = (0..needed.len()).collect();
        order.sort_by(|&a, &b| needed[a].total_cmp(&needed[b]));
        // Right ones gained when the bias passes each sample's in turn.
        let (mut gained, mut best, mut bias) = (0, 0, 0.0);
        let mut start = order.first().map_or(0.0, |&i| needed[i] - 1.0);
        for (place, &i) in order.iter().enumerate() {
            if place == 0 || (best < gained && start < needed[i]) {
                (best, bias) = (gained, (start + needed[i]) / 2.0);
            }
            gained += i64::from(labels[i] == class) - i64::from(labels[i] == other[i]);
            start = needed[i];
        }
        Ok(if best < gained { start + 1.0 } else { bias })
    }

    /// The logits, with `by` added to those of one class.
    fn raised(&self, class: i64, by: f64) -> Result<Tensor> {
        let classes = self.logits.size()[1];
        if !(0..classes).contains(&class) {
            return Err(Error::Input(format!("class {class}: there are {classes}, from 0")));
        }
        let bias = Tensor::f_zeros(classes, (self.logits.kind(), Device::Cpu))?;
        let _ = bias.f_select(0, class)?.f_fill_(by)?;
        Ok(self.logits.f_add(&bias)?)
    }

    /// Counts `[C][C]`: row = true class, column = predicted class.
    pub fn confusion(&self) -> Result<Vec<Vec<usize>>> {
        let classes = self.logits.size()[1];
        let pairs = self.labels.f_mul_scalar(classes)?.f_add(&self.predictions()?)?;
        let counts = pairs.f_bincount(None::<&Tensor>, classes * classes)?;
        let counts = Vec::<i64>::try_from(counts)?;
        Ok(counts.chunks(classes as usize).map(|row| row.iter().map(|&n| n as usize).collect()).collect())
    }
}

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

/// A label beyond the logits is undefined behaviour on CUDA and an obscure message on the CPU: say it plainly, once.
pub(super) fn check_classes(logits: &Tensor, labels: &Tensor) -> Result<()> {
    let (size, highest) = (logits.size(), i64::try_from(labels.f_max()?)?);
    match size.as_slice() {
        [_, classes] if highest < *classes => Ok(()),
        _ => Err(Error::Input(format!(
            "the model gives {size:?} but labels go up to {highest}: it needs logits [batch, {}]; give it as many outputs as the dataset has classes",
            highest + 1
        ))),
    }
}

/// Sums over the samples of an epoch, kept on the device so that no step waits for a copy.
pub(super) struct Sums {
    sums: Tensor, // f64 [5]: loss, cross-entropy, divergence, correct, labelled samples
    samples: usize,
    kd: bool,
    /// Not in the sums yet; alike in the number of samples, in T and in alpha.
    waiting: Vec<Outcome>,
}

/// What a step came to.
struct Outcome {
    loss: Tensor,   // [1]
    logits: Tensor, // [B, C]
    labels: Tensor, // [B]
    teacher: Option<Tensor>,
    kd: Option<KdLoss>,
}

/// How many steps are added up together. Adding them up takes as many operations as a pass of a small network, and
/// starting an operation on a GPU takes longer than the operation itself.
const STEPS: usize = 16;
/// Logits that are added up together at most: what lies between those operations takes ten times their memory.
const LOGITS: usize = 1 << 20;

impl Sums {
    pub(super) fn new(device: Device, kd: bool) -> Result<Self> {
        // Counts of up to 1.3 million samples and their losses add up exactly enough in f64; MPS has no f64.
        let kind = if matches!(device, Device::Mps) { Kind::Float } else { Kind::Double };
        Ok(Self { sums: Tensor::f_zeros(5, (kind, device))?, samples: 0, kd, waiting: vec![] })
    }

    pub(super) fn add(&mut self, loss: &Tensor, logits: &Tensor, batch: &Minibatch, kd: Option<KdLoss>) -> Result<()> {
        let (loss, logits) = (loss.f_detach()?.f_reshape(-1)?, logits.f_detach()?);
        let labels = batch.labels.shallow_clone();
        let teacher = kd.map(|_| batch.teacher().map(Tensor::shallow_clone)).transpose()?;
        let outcome = Outcome { loss, logits, labels, teacher, kd };
        let alike = |other: &Outcome| other.kd == kd && other.labels.size() == outcome.labels.size();
        let full = self.waiting.len() == STEPS || (self.waiting.len() + 1) * outcome.logits.numel() > LOGITS;
        if full || !self.waiting.iter().all(alike) {
            self.sums = self.added_up()?;
            self.waiting.clear();
        }
        self.samples += outcome.labels.numel();
        self.waiting.push(outcome);
        Ok(())
    }

    /// The sums with those of what is waiting.
    fn added_up(&self) -> Result<Tensor> {
        let Some(first) = self.waiting.first() else { return Ok(self.sums.shallow_clone()) };
        let (kind, of_each) = (self.sums.kind(), first.labels.numel() as i64);
        let all = |part: &dyn Fn(&Outcome) -> &Tensor| -> Result<Tensor> {
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

    /// Copies to the host: waits for the device.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        // What is waiting goes on waiting: sums do not depend on when somebody looked.
        let values = Vec::<f64>::try_from(self.added_up()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?;
        let (all, labelled) = (self.samples.max(1) as f64, values[4].max(1.0));
        Ok(Metrics {
            loss: values[0] / all,
            cross_entropy: values[1] / labelled,
            divergence: self.kd.then_some(values[2] / all),
            accuracy: values[3] / labelled,
        })
    }
}

/// One pass in evaluation mode with the criterion that is trained; none when a stop was asked for before its last
/// batch.
pub(super) fn validate(
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

/// A long pass that is no fit, which the user may interrupt between two batches.
pub(super) struct Pass {
    name: String,
    stop: Arc<Mutex<Option<String>>>,
    _watch: Option<Watch>,
}

impl Pass {
    pub(super) fn new(name: &str) -> Self {
        let stop = Arc::new(Mutex::new(None));
        let asked = Arc::clone(&stop);
        let _watch = watch(name, move |reason| *lock(&asked) = Some(reason.to_owned()));
        Self { name: name.to_owned(), stop, _watch }
    }

    /// Why it is to end, if it is.
    pub(super) fn asked(&self) -> Option<String> {
        lock(&self.stop).clone()
    }

    pub(super) fn check(&self, done: usize, total: usize) -> Result<()> {
        match self.asked() {
            None => Ok(()),
            Some(reason) => Err(Error::Interrupted(format!(
                "{}: {reason} after {done} of {total} images; run the cell again",
                self.name
            ))),
        }
    }
}

/// Decides when progress is due (a few times a second) and what it says.
pub(super) struct Ticker {
    progress: Progress,
    start: Instant,
    last: Instant,
}

impl Ticker {
    pub(super) fn new(name: &str, total: usize) -> Self {
        Self::epoch(name, 1, 1, total)
    }

    pub(super) fn epoch(name: &str, epoch: usize, epochs: usize, total: usize) -> Self {
        let now = Instant::now();
        let progress = Progress {
            name: name.to_owned(),
            epoch,
            epochs,
            done: 0,
            total,
            metrics: None,
            images_per_second: 0.0,
            seconds_left: 0.0,
        };
        Self { progress, start: now, last: now }
    }

    pub(super) fn advance(&mut self, images: usize) -> Option<Progress> {
        let p = &mut self.progress;
        p.done += images;
        p.images_per_second = p.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let left = p.total - p.done.min(p.total) + (p.epochs - p.epoch) * p.total;
        p.seconds_left = left as f64 / p.images_per_second;
        if self.last.elapsed() < Duration::from_millis(250) && p.done < p.total {
            return None;
        }
        self.last = Instant::now();
        Some(p.clone())
    }

    /// Leaves out a time in which nothing was to be done.
    pub(super) fn skip(&mut self, idle: Duration) {
        self.start += idle;
    }

    pub(super) fn images_per_second(&self) -> f64 {
        self.progress.images_per_second
    }
}
