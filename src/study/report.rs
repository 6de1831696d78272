//! The results of a sweep: its runs on file, and their comparison with the student alone.

use super::grid::faults;
use super::{Distillation, Setting, Sweep, SweepMethod, Verdict};
use crate::store::atomic::{set_aside, write_json};
use crate::store::csv_file::{cell, write_csv};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use statrs::statistics::Statistics;
use std::path::Path;

/// The result of one fit of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepRun {
    /// What was trained.
    pub setting: Setting,
    /// Decided first weights, order of batches and the choice of labels.
    pub seed: u64,
    /// Digest of everything the run depends on: a run of the same key is not repeated.
    pub key: String,
    /// Epoch whose weights were kept.
    pub best_epoch: usize,
    /// Validation accuracy of those weights, in [0, 1].
    pub validation: f64,
    /// Test accuracy of those weights, in [0, 1].
    pub test: f64,
    /// Recall of each class on the test split, in [0, 1].
    pub recall: Vec<f64>,
    /// `None` in a sweep that omits no class.
    pub(crate) corrected: Option<Corrected>,
    /// Validation accuracy of the teacher, in [0, 1]; `None` for the student alone.
    pub teacher: Option<f64>,
    /// Time of training and validation.
    pub seconds: f64,
    /// Training throughput.
    pub images_per_second: f64,
    /// Threads of the CPU that the fit took; the last digits depend on them. `None` on a GPU, and if an earlier version
    /// made the run.
    #[serde(default)]
    pub(crate) threads: Option<i32>,
    /// The CPU of the machine that made the run: other kinds round differently. `None` if an earlier version made it.
    #[serde(default)]
    pub(crate) cpu: Option<String>,
    /// Epochs that were done when the fit last went on after a kill or a stop; 0 if it ran in one piece.
    #[serde(default)]
    pub(crate) resumed_at: usize,
}

/// Test results after a bias was added to the omitted class's logit. The bias is chosen on the validation split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Corrected {
    pub bias: f64,
    pub test: f64,
    pub recall: Vec<f64>,
}

/// All runs of a sweep so far. The sweep writes it as `sweep.json` after each run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// The grid.
    pub sweep: Sweep,
    /// Name of the profile.
    pub profile: String,
    /// Name of the data set.
    pub data: String,
    /// Number of images on which the students are trained.
    pub images: usize,
    /// Digest of what every run of the sweep depends on beside its plan: the images of all splits, and how the teacher
    /// is made. Empty if an earlier version made the report.
    #[serde(default)]
    pub(crate) conditions: String,
    /// Finished runs, seed after seed.
    pub runs: Vec<SweepRun>,
    /// Why the sweep ended before its last run, if it did.
    pub stopped: Option<String>,
}

/// What settings are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Accuracy on the validation split, which also chose the epoch. Choose a setting by it.
    Validation,
    /// Accuracy on the test split.
    Test,
    /// Recall of the omitted class on the test split.
    OmittedRecall,
    /// Recall of the omitted class on the test split, after the bias correction.
    CorrectedRecall,
    /// Test accuracy after the bias correction.
    CorrectedTest,
}

/// A setting compared with the student alone, in the seeds that are done for both.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// How the student was distilled.
    pub setting: Setting,
    /// The student alone: a fraction in [0, 1] for each seed.
    pub alone: Vec<f64>,
    /// The distilled student, in the same seeds.
    pub distilled: Vec<f64>,
    /// Whether the distilled student is better than the student alone.
    pub verdict: Verdict,
}

/// File of a finished run in its own folder. When `sweep.json` is damaged, the runs are collected from these files.
const RUN: &str = "run.json";

impl SweepRun {
    /// Writes the run to the folder of its fit.
    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(RUN), self)
    }

    /// Reads the run of a fit's folder; `None` where there is none. A damaged run is made again.
    pub(super) fn load(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(RUN)).ok()?).ok()
    }

    /// Whether both are results of the same fit and have the same setting.
    fn is_same(&self, other: &Self) -> bool {
        self.key == other.key && self.setting == other.setting
    }

    /// The value of a measure; `None` if it was not measured.
    pub(crate) fn value(&self, measure: Measure, omitted: Option<i64>) -> Option<f64> {
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
    /// Reads the `sweep.json` that a sweep wrote.
    ///
    /// # Errors
    /// When the file can't be read, or is not a sweep's report.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(|e| Error::io("reading", path, e))?;
        serde_json::from_slice(&text)
            .map_err(|e| Error::Data(format!("{} is not a sweep's report: {e}; run the sweep again", path.display())))
    }

    /// All finished runs in a sweep's folder: those of `sweep.json`, and those that only their own folders hold. A
    /// damaged `sweep.json` is renamed, and stderr says so.
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
            let found = SweepRun::load(&entry.path());
            runs.extend(found.filter(|run| runs.iter().all(|known| !known.is_same(run))));
        }
        Ok(runs)
    }

    /// Writes the report, and with it the runs of earlier grids, so that they are not lost.
    pub(super) fn save(&self, path: &Path, before: &[SweepRun]) -> Result<()> {
        let mut all = self.clone();
        all.runs.extend(before.iter().filter(|b| self.runs.iter().all(|run| !run.is_same(b))).cloned());
        write_json(path, &all)
    }

    /// Writes a CSV file with a row for each finished run: its setting, its seed, and what was measured. Accuracies and
    /// recalls are fractions, numbers have all their digits, and a cell without a value is empty. The file is whole or
    /// absent.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save_csv(&self, path: impl AsRef<Path>) -> Result<()> {
        let classes = self.runs.iter().map(|run| run.recall.len()).max().unwrap_or(0);
        let recalls: Vec<String> = (0..classes).map(|class| format!("recall_{class}")).collect();
        let setting = ["setting", "method", "temperature", "alpha", "teacher", "published", "labelled", "noise"];
        let shared = ["augmentation", "recipe", "student", "size", "epochs", "images", "seed"];
        let measured = ["best_epoch", "validation_accuracy", "test_accuracy", "teacher_accuracy", "seconds"];
        let last = ["images_per_second", "threads", "cpu", "corrected_bias", "corrected_test_accuracy"];
        let names = [&setting[..], &shared, &measured, &last].concat().into_iter();
        let names: Vec<&str> = names.chain(recalls.iter().map(String::as_str)).collect();
        let rows: Vec<_> = self.runs.iter().map(|run| self.csv_row(run, classes)).collect();
        write_csv(path.as_ref(), &names, &rows)
    }

    /// The cells of a run, with recalls for so many classes.
    fn csv_row(&self, run: &SweepRun, classes: usize) -> Vec<String> {
        let Setting { distillation, labelled, noise, augmentation, recipe } = &run.setting;
        let taught = distillation.as_ref();
        let by_logits = taught.filter(|t| matches!(t.method, SweepMethod::Logits(_)));
        let name = serde_json::to_value(augmentation).unwrap_or_default();
        let corrected = run.corrected.as_ref();
        let mut cells = vec![
            run.setting.to_string(),
            taught.map_or("alone".into(), |t| t.method.to_string()),
            cell(by_logits.map(|t| t.temperature)),
            cell(by_logits.map(|t| t.alpha)),
            taught.map_or(String::new(), |t| t.teacher.to_string()),
            taught.map_or(String::new(), |t| t.published.to_string()),
            labelled.to_string(),
            noise.to_string(),
            name.as_str().unwrap_or_default().to_owned(),
            recipe.to_string(),
            self.sweep.student.to_string(),
            self.sweep.size.to_string(),
            self.sweep.epochs.to_string(),
            self.images.to_string(),
            run.seed.to_string(),
            run.best_epoch.to_string(),
            run.validation.to_string(),
            run.test.to_string(),
            cell(run.teacher),
            run.seconds.to_string(),
            run.images_per_second.to_string(),
            run.threads.map_or(String::new(), |threads| threads.to_string()),
            run.cpu.clone().unwrap_or_default(),
            cell(corrected.map(|c| c.bias)),
            cell(corrected.map(|c| c.test)),
        ];
        cells.extend((0..classes).map(|class| cell(run.recall.get(class).copied())));
        cells
    }

    /// Compares every setting of the grid with the student alone, for settings with at least two completed seeds. The
    /// confidence accounts for the number of settings ([`Verdict::new`]).
    ///
    /// # Errors
    /// When the measure needs an omitted class and the sweep has none, and when the report holds a seed twice.
    pub fn compare(&self, measure: Measure) -> Result<Vec<Comparison>> {
        let needs_class = !matches!(measure, Measure::Validation | Measure::Test);
        if needs_class && self.sweep.omitted.is_none() {
            return Err(Error::Input(format!(
                "{measure:?} needs a sweep with an omitted class; set omitted in sweep {}, or choose Measure::Test",
                self.sweep.name
            )));
        }
        if let Some(fault) = faults(&self.sweep.seeds) {
            return Err(Error::Input(format!("sweep {}: seeds {fault}", self.sweep.name)));
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

    /// The mean difference to the student alone, in percentage points, of each temperature (rows) and alpha
    /// (columns), for the first value of every other axis; `None` where no seed is done yet.
    pub(crate) fn grid(&self, measure: Measure) -> Vec<Vec<Option<f64>>> {
        let settings = self.sweep.settings();
        let one = |t: f64, a: f64| {
            let logits = |x: &Distillation| matches!(x.method, SweepMethod::Logits(_));
            let here = |x: &Distillation| logits(x) && x.temperature == t && x.alpha == a;
            let at = |s: &&Setting| s.distillation.as_ref().is_some_and(here);
            let (alone, distilled) = self.pairs(settings.iter().find(at)?, measure);
            Some(100.0 * (mean(&distilled)? - mean(&alone)?))
        };
        let row = |&t: &f64| self.sweep.alphas.iter().map(|&a| one(t, a)).collect();
        self.sweep.temperatures.iter().map(row).collect()
    }

    /// The values of the student alone and of the distilled one, in the seeds that are done for both.
    fn pairs(&self, setting: &Setting, measure: Measure) -> (Vec<f64>, Vec<f64>) {
        self.seeds_and_pairs(setting, measure).into_iter().map(|(_, alone, distilled)| (alone, distilled)).unzip()
    }

    /// The seeds that are done for both, each with the values of the student alone and of the distilled one.
    pub(crate) fn seeds_and_pairs(&self, setting: &Setting, measure: Measure) -> Vec<(u64, f64, f64)> {
        let value = |setting: &Setting, seed: u64| {
            let run = self.runs.iter().find(|run| run.seed == seed && run.setting == *setting)?;
            run.value(measure, self.sweep.omitted)
        };
        let seeds = self.sweep.seeds.iter();
        seeds.filter_map(|&seed| Some((seed, value(&setting.alone(), seed)?, value(setting, seed)?))).collect()
    }

    /// The CPUs that made the runs, each once.
    pub(crate) fn cpus(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.runs.iter().filter_map(|run| run.cpu.as_deref()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Seconds spent in all runs.
    pub(crate) fn seconds(&self) -> f64 {
        self.runs.iter().map(|run| run.seconds).sum()
    }
}

/// The mean; `None` of no values.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.mean())
}
