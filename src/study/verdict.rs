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
    /// The whole interval lies below [`Verdict::MARGIN`]: a gain worth having is ruled out.
    DoesNotBeat,
    /// Neither; more seeds may decide it.
    Inconclusive,
}

/// Paired differences of two ways of training that share their seeds, and the conclusion from them.
///
/// The interval is Student's t interval of the mean difference: `mean ± t(n - 1) * deviation / sqrt(n)`. It covers other
/// seeds (first weights, order of batches, choice of labels) on the same images, not other test images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Difference of two fractions for each seed: 0.01 is a percentage point.
    pub differences: Vec<f64>,
    pub mean: f64,
    /// Sample standard deviation of the differences.
    pub deviation: f64,
    /// How often such intervals contain the true mean difference, such as 0.95.
    pub confidence: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
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
        // Equal differences mean that one seed was given twice, or that there are too few images: without spread there is
        // no verdict.
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

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Verdicts on simulated sweeps whose truth is known: accuracies with a common part of each seed, and a true gain.
    fn simulate(gain: f64, spread: f64, seeds: usize, comparisons: usize) -> Vec<Verdict> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        // Twelve uniform numbers: normal enough, with variance 1.
        let mut normal = move || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        let mut sweep = || {
            let pair = |_: usize| {
                let of_seed = 0.5 + 0.05 * normal();
                (of_seed, of_seed + gain + spread * normal())
            };
            let (alone, distilled): (Vec<_>, Vec<_>) = (0..seeds).map(pair).unzip();
            Verdict::new(&alone, &distilled, comparisons).unwrap()
        };
        (0..4000).map(|_| sweep()).collect()
    }

    fn share(verdicts: &[Verdict], of: impl Fn(&Verdict) -> bool) -> f64 {
        verdicts.iter().filter(|v| of(v)).count() as f64 / verdicts.len() as f64
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        for (gain, seeds, comparisons) in [(0.0, 3, 1), (0.02, 3, 1), (-0.01, 5, 1), (0.02, 8, 1), (0.0, 3, 10)] {
            let verdicts = simulate(gain, 0.01, seeds, comparisons);
            let held = share(&verdicts, |v| v.low <= gain && gain <= v.high);
            let wanted = 1.0 - 0.05 / comparisons as f64;
            // Three standard deviations of a share of 4,000.
            let tolerance = 3.0 * (wanted * (1.0 - wanted) / 4000.0).sqrt() + 1e-3;
            assert!((held - wanted).abs() < tolerance, "gain {gain}, {seeds} seeds: {held} instead of {wanted}");
        }
    }

    #[test]
    fn verdicts_follow_the_truth() {
        let decided = |verdicts: &[Verdict], decision| share(verdicts, |v| v.decision == decision);
        // No gain at all: it is said to beat in one of forty sweeps, half of 5 %.
        for seeds in [3, 5, 10] {
            let false_alarms = decided(&simulate(0.0, 0.01, seeds, 1), Decision::Beats);
            assert!((0.015..0.035).contains(&false_alarms), "{seeds} seeds: {false_alarms}");
        }
        // A gain of ten standard deviations is seen with three seeds, one of two with five, mostly.
        assert!(decided(&simulate(0.05, 0.005, 3, 1), Decision::Beats) > 0.97);
        assert!(decided(&simulate(0.02, 0.01, 5, 1), Decision::Beats) > 0.8);
        // A loss never beats, and a large one is told as such.
        let losing = simulate(-0.05, 0.005, 3, 1);
        assert_eq!(decided(&losing, Decision::Beats), 0.0);
        assert!(decided(&losing, Decision::DoesNotBeat) > 0.97);
        // A gain that is lost in the spread of three seeds leaves the question open.
        assert!(decided(&simulate(0.01, 0.02, 3, 1), Decision::Inconclusive) > 0.8);
        // A gain worth having is seldom denied.
        assert!(decided(&simulate(0.01, 0.01, 5, 1), Decision::DoesNotBeat) < 0.03);
        // Of ten comparisons without any gain, fewer than one sweep in twenty has one that beats.
        assert!(decided(&simulate(0.0, 0.01, 3, 10), Decision::Beats) * 10.0 < 0.05);
    }

    #[test]
    fn the_interval_is_student_s() {
        // scipy.stats.t.interval(0.95, 2, loc=0.03, scale=scipy.stats.sem([0.02, 0.03, 0.04]))
        let v = Verdict::new(&[0.5, 0.4, 0.6], &[0.52, 0.43, 0.64], 1).unwrap();
        assert!((v.low - 0.005158623).abs() < 1e-6 && (v.high - 0.054841377).abs() < 1e-6, "{v:?}");
        assert_eq!(v.decision, Decision::Beats);
        assert_eq!(v.to_string(), "BEATS: +3.0 points on average over 3 seeds, +0.5 to +5.5 with 95.0 % confidence");
        let two = Verdict::new(&[0.5, 0.4], &[0.52], 1).unwrap_err().to_string();
        assert!(two.contains("1 runs against 2"), "{two}");
    }
}
