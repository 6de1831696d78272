//! Whether one way of training beats another, by a rule that is fixed before anybody sees the numbers.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::statistics::Statistics;
use std::fmt;

/// The conclusion of a [`Verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The whole interval lies above 0.
    Beats,
    /// The whole interval lies below half a percentage point: a gain worth having is ruled out.
    DoesNotBeat,
    /// Neither; more seeds may decide it.
    Inconclusive,
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

    /// Compares the results of each seed: `alone[i]` and `distilled[i]`, fractions in [0, 1], share their seed.
    ///
    /// Among several comparisons, one may beat by luck. Give their number as `comparisons`, and the confidence becomes
    /// `1 - 0.05 / comparisons` (Bonferroni), so that all intervals hold together in 95 % of such sweeps.
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
        let n = differences.len() as f64;
        let (mean, deviation) = ((&differences).mean(), (&differences).std_dev());
        let confidence = 1.0 - 0.05 / comparisons.max(1) as f64;
        let t = StudentsT::new(0.0, 1.0, n - 1.0).map_err(|e| Error::Input(format!("t distribution: {e}")))?;
        let half = t.inverse_cdf(0.5 + confidence / 2.0) * deviation / n.sqrt();
        let (low, high) = (mean - half, mean + half);
        // Equal differences mean that one seed was given twice, or that there are too few images: without spread
        // there is no verdict.
        let decision = if deviation < 1e-12 {
            Decision::Inconclusive
        } else if low > 0.0 {
            Decision::Beats
        } else if high < Self::MARGIN {
            Decision::DoesNotBeat
        } else {
            Decision::Inconclusive
        };
        Ok(Self { differences, mean, deviation, confidence, low, high, decision })
    }

    /// The interval in percentage points: `+2.1 to +5.7`.
    pub(crate) fn interval(&self) -> String {
        format!("{:+.1} to {:+.1}", 100.0 * self.low, 100.0 * self.high)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Decision::Beats => "BEATS",
            Decision::DoesNotBeat => "DOES NOT BEAT",
            Decision::Inconclusive => "INCONCLUSIVE",
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
