//! Whether one way of training is better than another, by a rule that is fixed before anybody sees the numbers.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::statistics::Statistics;
use std::fmt;

/// The conclusion of a [`Verdict`]: the first of these that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The whole interval lies above 0.
    Better,
    /// The whole interval lies below 0.
    Worse,
    /// The whole interval lies below the margin of half a percentage point: a gain worth having is ruled out.
    NoWorthwhileGain,
    /// None of these; more seeds may decide it.
    Undecided,
}

/// Returns Student's t for a two-sided interval, `mean ± t * standard error`, that holds the true mean with this
/// confidence, as `scipy.stats.t.ppf(0.5 + confidence / 2, degrees_of_freedom)`. The mean of `n` values has `n - 1`
/// degrees of freedom.
///
/// # Errors
/// When the confidence is not between 0 and 1, or there are no degrees of freedom.
pub fn t_quantile(confidence: f64, degrees_of_freedom: usize) -> Result<f64> {
    if !(confidence > 0.0 && confidence < 1.0) {
        return Err(Error::Input(format!("confidence must be between 0 and 1, got {confidence}; try 0.95")));
    }
    // The distribution refuses 0.
    let t = StudentsT::new(0.0, 1.0, degrees_of_freedom as f64).map_err(|_| {
        Error::Input(
            "an interval with 0 degrees of freedom; take 2 values or more, and give their number less 1".into(),
        )
    })?;
    Ok(t.inverse_cdf(0.5 + confidence / 2.0))
}

/// Paired differences of two ways of training that share their seeds, and the conclusion from them.
///
/// The interval is Student's t interval of the mean difference: `mean ± t(n - 1) * deviation / sqrt(n)`. It covers
/// other seeds (first weights, order of batches, choice of labels) on the same images, not other test images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Difference of two fractions for each seed: 0.01 is a percentage point.
    pub differences: Vec<f64>,
    /// Mean difference.
    pub mean: f64,
    /// Sample standard deviation of the differences.
    pub deviation: f64,
    /// How often such intervals contain the true mean difference, such as 0.95.
    pub confidence: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// The conclusion.
    pub decision: Decision,
}

impl Verdict {
    /// The smallest gain worth having: half a percentage point.
    pub(crate) const MARGIN: f64 = 0.005;
    /// The usual standard deviation of paired differences of accuracies: two points. Each interval of `docs/results.md`
    /// gives one, its half-width times `sqrt(n) / t`; their median is 1.7 points, and one in four is above 2.3.
    pub(super) const SPREAD: f64 = 0.02;

    /// Compares the results of each seed: `alone[i]` and `distilled[i]`, fractions in [0, 1], share their seed.
    ///
    /// Among several comparisons, one may look better by luck. Give their number as `comparisons`, and the confidence
    /// becomes `1 - 0.05 / comparisons` (Bonferroni), so that all intervals hold together in 95 % of such sweeps.
    ///
    /// The settings of a sweep share one control, the student alone, so their intervals depend on each other. Dunnett's
    /// test uses that and gives narrower intervals, but it assumes that all settings vary alike. Bonferroni's intervals
    /// are a little wider and hold for any dependence.
    ///
    /// # Errors
    /// When there are fewer than 2 pairs, or the two lists differ in length.
    pub fn new(alone: &[f64], distilled: &[f64], comparisons: usize) -> Result<Self> {
        if alone.len() != distilled.len() || alone.len() < 2 {
            return Err(Error::Input(format!(
                "a verdict on {} runs against {}: give the same seeds for both, 3 or more",
                distilled.len(),
                alone.len()
            )));
        }
        let differences: Vec<f64> = alone.iter().zip(distilled).map(|(a, d)| d - a).collect();
        let n = differences.len();
        let (mean, deviation) = ((&differences).mean(), (&differences).std_dev());
        let confidence = confidence(comparisons);
        let half = t_quantile(confidence, n - 1)? * deviation / (n as f64).sqrt();
        let (low, high) = (mean - half, mean + half);
        // Equal differences mean that one seed was given twice, or that there are too few images: without spread
        // there is no verdict.
        let decision = if deviation < 1e-12 {
            Decision::Undecided
        } else if low > 0.0 {
            Decision::Better
        } else if high < 0.0 {
            Decision::Worse
        } else if high < Self::MARGIN {
            Decision::NoWorthwhileGain
        } else {
            Decision::Undecided
        };
        Ok(Self { differences, mean, deviation, confidence, low, high, decision })
    }

    /// The difference, as a fraction, that a verdict on so many seeds would find in about three of four sweeps; `None`
    /// for fewer than 2 seeds, which give no verdict.
    ///
    /// It is the minimum detectable effect for a power of 80 %, `(t(confidence) + t(power)) * spread / sqrt(seeds)`:
    /// Bloom, "Minimum Detectable Effects" (Evaluation Review, 1995). With 3 to 8 seeds, simulated sweeps find it in 70
    /// to 80 %.
    pub(super) fn detectable(seeds: usize, comparisons: usize) -> Option<f64> {
        let freedom = seeds.checked_sub(1)?;
        // One-sided 80 % is two-sided 60 %.
        let t = t_quantile(confidence(comparisons), freedom).ok()? + t_quantile(0.6, freedom).ok()?;
        Some(t * Self::SPREAD / (seeds as f64).sqrt())
    }

    /// The interval in percentage points: `+2.1 to +5.7`.
    pub(crate) fn interval(&self) -> String {
        format!("{:+.1} to {:+.1}", 100.0 * self.low, 100.0 * self.high)
    }
}

/// The confidence of each interval among several comparisons (Bonferroni).
fn confidence(comparisons: usize) -> f64 {
    1.0 - 0.05 / comparisons.max(1) as f64
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Decision::Better => "BETTER",
            Decision::Worse => "WORSE",
            Decision::NoWorthwhileGain => "NO WORTHWHILE GAIN",
            Decision::Undecided => "UNDECIDED",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, level) = (self.differences.len(), 100.0 * self.confidence);
        write!(f, "{}: {:+.1} points on average over {n} seeds, ", self.decision, 100.0 * self.mean)?;
        write!(f, "{} with {level:.1} % confidence", self.interval())
    }
}
