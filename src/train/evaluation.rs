//! Accuracy, agreement, calibration and confusion of a model, from its logits on a split.

use super::loss::{UNLABELLED, check_classes, cross_entropy};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Measurements of a model on a split.
pub struct Evaluation {
    /// Mean cross-entropy over all samples in nats: the negative log-likelihood (NLL) of the labels.
    pub cross_entropy: f64,
    /// Number of samples whose largest logit is the label's.
    pub correct: usize,
    /// Number of samples with a label.
    pub total: usize,
    /// f32 `[N, C]` on the CPU, in split order.
    pub logits: Tensor,
    /// i64 `[N]` on the CPU.
    pub labels: Tensor,
}

/// How well a model's confidence matches its accuracy: Guo et al., "On Calibration of Modern Neural Networks" (2017).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Expected calibration error: mean over all samples of |accuracy - confidence| of their bin, in [0, 1].
    pub ece: f64,
    /// Bins of equal width; bin `m` of `M` holds confidences in (m/M, (m+1)/M].
    pub(crate) bins: Vec<CalibrationBin>,
}

/// The samples whose largest probability lies in one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CalibrationBin {
    pub samples: usize,
    /// Mean of the largest probability; 0 for an empty bin.
    pub confidence: f64,
    /// Share of samples that are right; 0 for an empty bin.
    pub accuracy: f64,
}

impl Evaluation {
    /// Measures logits `[N, C]` against labels i64 `[N]`, on any device. Images with the label -100, the `ignore_index`
    /// of PyTorch's cross-entropy, have no label and are left out.
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

    /// Returns the share of samples that are right, in [0, 1].
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }

    /// The class of the largest logit, i64 `[N]`.
    fn predictions(&self) -> Result<Tensor> {
        Ok(self.logits.f_argmax(-1, false)?)
    }

    /// The top-1 agreement: the share of samples to which both models give the same class, in [0, 1].
    ///
    /// # Errors
    /// When the two were not measured on the same labels.
    pub(crate) fn agreement(&self, other: &Evaluation) -> Result<f64> {
        if self.labels.size() != other.labels.size() || !self.labels.f_equal(&other.labels)? {
            return Err(Error::Input(format!(
                "agreement of {} with {} samples: both models must be evaluated on the same split",
                self.total, other.total
            )));
        }
        let same = self.predictions()?.f_eq_tensor(&other.predictions()?)?.f_sum(Kind::Int64)?;
        Ok(i64::try_from(same)? as f64 / self.total.max(1) as f64)
    }

    /// Compares confidence with accuracy in `bins` bins (15 is usual).
    ///
    /// # Errors
    /// When `bins` is 0.
    pub(crate) fn calibration(&self, bins: usize) -> Result<Calibration> {
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

    /// Returns the least probability of the likeliest class at which to answer, 0 to 1: of the samples with this
    /// probability or more, a share of at least `accuracy` is right. Without such a probability it is 1, and then
    /// nothing is answered. Choose it on the validation split; the threshold lies midway between the least probability
    /// that is answered and the next below.
    ///
    /// # Errors
    /// When `accuracy` is not in [0, 1].
    pub fn threshold(&self, accuracy: f64) -> Result<f64> {
        if !(0.0..=1.0).contains(&accuracy) {
            return Err(Error::Input(format!(
                "accuracy {accuracy} of the answers: give a share from 0 to 1, such as 0.9"
            )));
        }
        let (confidence, predicted) = self.logits.f_softmax(-1, Kind::Double)?.f_max_dim(-1, false)?;
        let right = Vec::<bool>::try_from(predicted.f_eq_tensor(&self.labels)?)?;
        let mut samples: Vec<(f64, bool)> = Vec::<f64>::try_from(confidence)?.into_iter().zip(right).collect();
        samples.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut threshold, mut correct) = (1.0, 0);
        for (i, &(least, right)) in samples.iter().enumerate() {
            correct += usize::from(right);
            let next = samples.get(i + 1).map_or(0.0, |next| next.0);
            // Samples with one probability are answered together or not at all.
            if next < least && correct as f64 >= accuracy * (i + 1) as f64 {
                threshold = if i + 1 == samples.len() { 0.0 } else { (least + next) / 2.0 };
            }
        }
        Ok(threshold)
    }

    /// Returns the recall of each class, in [0, 1]; 0 for a class without samples.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn recall(&self) -> Result<Vec<f64>> {
        let rows = self.confusion()?;
        let of = |(class, row): (usize, &Vec<usize>)| row[class] as f64 / row.iter().sum::<usize>().max(1) as f64;
        Ok(rows.iter().enumerate().map(of).collect())
    }

    /// Measures the same logits with `bias` added to those of one class.
    ///
    /// # Errors
    /// When there is no such class.
    pub fn with_bias(&self, class: i64, bias: f64) -> Result<Evaluation> {
        Evaluation::new(&self.raised(class, bias)?, &self.labels)
    }

    /// Returns the bias for the logits of one class with which most samples are right; choose it on the validation
    /// split. By such a bias, Hinton et al. (2015) restored a class that the transfer set had left out.
    ///
    /// # Errors
    /// When there is no such class.
    pub fn best_bias(&self, class: i64) -> Result<f64> {
        let (highest, other) = self.raised(class, f64::NEG_INFINITY)?.f_max_dim(1, false)?;
        // Above this bias, a sample's largest logit is that of the class.
        let needed = Vec::<f64>::try_from(highest.f_sub(&self.logits.f_select(1, class)?)?.f_to_kind(Kind::Double)?)?;
        let (labels, other) = (Vec::<i64>::try_from(&self.labels)?, Vec::<i64>::try_from(&other)?);
        let mut order: Vec<usize> = (0..needed.len()).collect();
        order.sort_by(|&a, &b| needed[a].total_cmp(&needed[b]));
        // Right samples gained as the bias passes each sample's threshold in turn.
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

    /// Returns the confusion matrix, counts `[C][C]`: row = true class, column = predicted class.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn confusion(&self) -> Result<Vec<Vec<usize>>> {
        let classes = self.logits.size()[1];
        let pairs = self.labels.f_mul_scalar(classes)?.f_add(&self.predictions()?)?;
        let counts = pairs.f_bincount(None::<&Tensor>, classes * classes)?;
        let counts = Vec::<i64>::try_from(counts)?;
        Ok(counts.chunks(classes as usize).map(|row| row.iter().map(|&n| n as usize).collect()).collect())
    }
}
