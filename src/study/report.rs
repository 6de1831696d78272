//! What a sweep came to: its runs on file, and their comparison with the student alone.

use super::{Setting, Sweep, Verdict};
use crate::store::atomic::{set_aside, write_bytes};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What one fit of a sweep came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepRun {
    pub setting: Setting,
    pub seed: u64,
    /// Changes with everything the run depends on: a run of the same key is not repeated.
    pub key: String,
    /// Whose weights were kept.
    pub best_epoch: usize,
    /// Accuracies in [0, 1], of the kept weights.
    pub validation: f64,
    pub test: f64,
    /// Share of each class's test images that were given their class.
    pub recall: Vec<f64>,
    /// Where a class was left out.
    pub corrected: Option<Corrected>,
    /// Of the teacher on the validation split; none for the student alone.
    pub teacher: Option<f64>,
    pub seconds: f64,
    pub images_per_second: f64,
}

/// After a bias for the omitted class's logit, chosen on the validation split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Corrected {
    pub bias: f64,
    pub test: f64,
    pub recall: Vec<f64>,
}

/// All runs of a sweep so far. It is written as `sweep.json` after each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    pub sweep: Sweep,
    pub profile: String,
    pub data: String,
    /// Images the students were trained on.
    pub images: usize,
    pub runs: Vec<SweepRun>,
    /// Why it ended before its last run, if it did.
    pub stopped: Option<String>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Accuracy on the split that picked the epochs: to choose a setting by.
    Validation,
    /// Accuracy on the test split.
    Test,
    /// Share of the omitted class's test images that are recognised.
    OmittedRecall,
    /// The same after the bias correction.
    CorrectedRecall,
    /// Test accuracy after the bias correction.
    CorrectedTest,
}

/// A setting against the student alone, in the seeds that both were run with.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub setting: Setting,
    /// Fractions in [0, 1], one for each seed.
    pub alone: Vec<f64>,
    pub distilled: Vec<f64>,
    pub verdict: Verdict,
}

/// A finished run in its own folder, from which it is collected again when `sweep.json` is damaged.
const RUN: &str = "run.json";

impl SweepRun {
    /// Keeps it in the folder of its fit.
    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::Data(format!("run of a sweep: {e}")))?;
        write_bytes(&folder.join(RUN), &json)
    }

    /// None where it was not measured.
    pub fn value(&self, measure: Measure, omitted: Option<i64>) -> Option<f64> {
        let of = |recall: &[f64]| recall.get(usize::try_from(omitted?).ok()?).copied();
        match measure {
            Measure::Validation => Some(self.validation),
            Measure::Test => Some(self.test),
            Measure::OmittedRecall => of(&self.recall),
            Measure::CorrectedRecall => of(&self.corrected.as_ref()?.recall),
            Measure::CorrectedTest => self.corrected.as_ref().map(|c| c.test),
        }
    }
}

impl SweepReport {
    /// Reads what a sweep wrote as `sweep.json`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(|e| Error::io("reading", path, e))?;
        serde_json::from_slice(&text)
            .map_err(|e| Error::Data(format!("{} is not a sweep's report: {e}; run the sweep again", path.display())))
    }

    /// All finished runs that lie in a sweep's folder: those of `sweep.json`, and those that only their own folders hold.
    /// A damaged `sweep.json` is renamed, and stderr says so.
    pub(super) fn runs_before(folder: &Path) -> Result<Vec<SweepRun>> {
        let path = folder.join("sweep.json");
        let mut runs = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io("reading", &path, e)),
            Ok(text) => match serde_json::from_slice::<Self>(&text) {
                Ok(report) => report.runs,
                Err(e) => {
                    let aside = set_aside(&path)?;
                    eprintln!(
                        "{} is damaged ({e}): it is now {}; finished runs are collected again from their folders",
                        path.display(),
                        aside.display()
                    );
                    Vec::new()
                }
            },
        };
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io("reading", folder, e))?.flatten() {
            let found = std::fs::read(entry.path().join(RUN)).ok();
            // One that was cut short is made again.
            let found = found.and_then(|text| serde_json::from_slice::<SweepRun>(&text).ok());
            runs.extend(found.filter(|run| runs.iter().all(|known| known.key != run.key)));
        }
        Ok(runs)
    }

    /// With the runs of earlier grids, so that none is lost.
    pub(super) fn save(&self, path: &Path, before: &[SweepRun]) -> Result<()> {
        let mut all = self.clone();
        all.runs.extend(before.iter().filter(|b| self.runs.iter().all(|run| run.key != b.key)).cloned());
        let json = serde_json::to_vec_pretty(&all).map_err(|e| Error::Data(format!("sweep: {e}")))?;
        write_bytes(path, &json)
    }

    /// Every setting of the grid against the student alone, as far as two seeds or more are there. The confidence takes the
    /// number of settings into account ([`Verdict::new`]).
    ///
    /// # Errors
    /// When the measure speaks of an omitted class and there is none.
    pub fn compare(&self, measure: Measure) -> Result<Vec<Comparison>> {
        let needs_class = !matches!(measure, Measure::Validation | Measure::Test);
        if needs_class && self.sweep.omitted.is_none() {
            return Err(Error::Input(format!(
                "{measure:?} is of an omitted class, and sweep {} has none",
                self.sweep.name
            )));
        }
        let settings = self.sweep.settings();
        let mut made = Vec::new();
        for setting in &settings {
            let (alone, distilled) = self.pairs(setting, measure);
            if alone.len() > 1 {
                let verdict = Verdict::new(&alone, &distilled, settings.len())?;
                made.push(Comparison { setting: setting.clone(), alone, distilled, verdict });
            }
        }
        Ok(made)
    }

    /// The mean difference to the student alone, in points, of each temperature (rows) and alpha (columns), for the first
    /// value of every other axis; none where no seed is done yet.
    pub fn grid(&self, measure: Measure) -> Vec<Vec<Option<f64>>> {
        let settings = self.sweep.settings();
        let one = |t: f64, a: f64| {
            let at = |s: &&Setting| s.teaching.is_some_and(|x| x.temperature == t && x.alpha == a);
            let (alone, distilled) = self.pairs(settings.iter().find(at)?, measure);
            Some(100.0 * (mean(&distilled)? - mean(&alone)?))
        };
        let row = |&t: &f64| self.sweep.alphas.iter().map(|&a| one(t, a)).collect();
        self.sweep.temperatures.iter().map(row).collect()
    }

    /// The student alone and the distilled one, in the seeds that are done for both.
    fn pairs(&self, setting: &Setting, measure: Measure) -> (Vec<f64>, Vec<f64>) {
        let value = |setting: &Setting, seed: u64| {
            let run = self.runs.iter().find(|run| run.seed == seed && run.setting == *setting)?;
            run.value(measure, self.sweep.omitted)
        };
        self.sweep
            .seeds
            .iter()
            .filter_map(|&seed| Some((value(&setting.alone(), seed)?, value(setting, seed)?)))
            .unzip()
    }

    /// Seconds spent in all its runs.
    pub fn seconds(&self) -> f64 {
        self.runs.iter().map(|run| run.seconds).sum()
    }
}

pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
