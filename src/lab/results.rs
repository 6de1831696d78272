//! What a walk through the notebooks has found: results that were stored beside them, the closing table, and bets.

use crate::data::Dataset;
use crate::models::{Model, Precision};
use crate::show::Table;
use crate::store::{self, atomic};
use crate::study::{ResultRow, Setting, Sweep, SweepReport, Verdict};
use crate::train::{Examples, evaluate};
use crate::{Error, Lab, Result, Teacher};
use serde_json::json;
use statrs::statistics::Statistics;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::Device;

/// Images in a batch of an evaluation.
const BATCH: usize = 256;

impl Lab {
    /// Runs a sweep as [`Lab::sweep`] does where fits are fast, on a GPU or a CPU that multiplies bf16. Elsewhere it
    /// returns the report of the same sweep that is stored beside the notebooks, and says so. A sweep that differs from
    /// the stored one is run.
    ///
    /// # Errors
    /// As [`Lab::sweep`].
    pub fn sweep_or_stored(&self, sweep: &Sweep, data: &Dataset) -> Result<SweepReport> {
        let root = store::variable("KDLAB_ROOT").unwrap_or_else(|| PathBuf::from("."));
        let stored = root.join("notebooks/stored").join(&sweep.name).with_extension("json");
        let fast = self.device != Device::Cpu || sweep.precision != Precision::F32;
        if fast || !stored.exists() {
            return self.sweep(sweep, data);
        }
        let report = SweepReport::load(&stored)?;
        if report.sweep != *sweep || report.profile != self.profile.name || report.data != data.name {
            return self.sweep(sweep, data);
        }
        let minutes = report.runs.iter().map(|run| run.seconds).sum::<f64>() / 60.0;
        println!(
            "A stored result, from another machine: this CPU is slow at such fits. There they took {minutes:.0} \
             minutes of training, added up. `lab.sweep` in the place of `lab.sweep_or_stored` runs them here."
        );
        Ok(report)
    }

    /// Judges the teacher on the test split. Returns a table of it and of the students of some sweeps, each a mean over
    /// its seeds, and writes the table for `cargo lab run`.
    ///
    /// # Errors
    /// When the file can't be written; else as [`Teacher::features`].
    pub fn report(&self, data: &Dataset, teacher: &Teacher, sweeps: &[&SweepReport]) -> Result<Table> {
        let size = teacher.transform.size;
        let cost = teacher.backbone.model.summary([3, size, size])?;
        // A linear layer multiplies once by each of its weights.
        let head = teacher.head.parameters();
        let judge = |split| evaluate(&teacher.head, &Examples::features(split, &teacher.features(split)?)?, BATCH);
        let seconds = self.history("teacher").map_or(0.0, |history| history.seconds());
        let mut rows = vec![ResultRow {
            model: format!("teacher {}", teacher.backbone.arch),
            val_accuracy: judge(&data.validation)?.accuracy(),
            test_accuracy: judge(&data.test)?.accuracy(),
            parameters: cost.parameters + head,
            macs: cost.macs + head,
            seconds: teacher.features(&data.train)?.seconds + seconds,
        }];
        for report in sweeps {
            let (sweep, classes) = (&report.sweep, data.classes.len() as i64);
            let student = |vs: &tch::nn::Path| sweep.student.layers(vs, classes, sweep.size);
            let cost = Model::new("student", Device::Cpu, 0, &student)?.summary([3, sweep.size, sweep.size])?;
            let mut settings: Vec<Setting> = Vec::new();
            for run in &report.runs {
                if !settings.contains(&run.setting) {
                    settings.push(run.setting.clone());
                }
            }
            for setting in settings {
                let mean = |value: &dyn Fn(&crate::study::SweepRun) -> f64| {
                    report.runs.iter().filter(|run| run.setting == setting).map(value).mean()
                };
                rows.push(ResultRow {
                    model: format!("{}: {setting}", sweep.name),
                    val_accuracy: mean(&|run| run.validation),
                    test_accuracy: mean(&|run| run.test),
                    parameters: cost.parameters,
                    macs: cost.macs,
                    seconds: mean(&|run| run.seconds),
                });
            }
        }
        let results = json!({"profile": self.profile.name, "dataset": data.name, "rows": rows});
        atomic::write_json(&self.folder.join("results.json"), &results)?;
        let header = ["model", "val accuracy (%)", "test accuracy (%)", "parameters", "MACs per image", "seconds"];
        Ok(rows.iter().fold(Table::new(&header), |table, r| {
            table.row(&[
                r.model.clone(),
                format!("{:.2}", 100.0 * r.val_accuracy),
                format!("{:.2}", 100.0 * r.test_accuracy),
                format!("{:.2} M", r.parameters as f64 / 1e6),
                format!("{:.1} M", r.macs as f64 / 1e6),
                format!("{:.1}", r.seconds),
            ])
        }))
    }

    /// Keeps your guess of a difference, in percentage points, until [`Lab::bets`] shows it beside the result. Another
    /// guess of the same name replaces it. If a class's board was joined, it shows the guess, without your name.
    ///
    /// # Errors
    /// When no difference of two accuracies has this value, or the file can't be written.
    pub fn bet(&self, name: &str, points: f64) -> Result<()> {
        if !(-100.0..=100.0).contains(&points) {
            return Err(Error::Input(format!(
                "a bet on {name} must be a difference of two accuracies in percentage points, -100 to 100, got {points}"
            )));
        }
        // Two kernels may bet at once.
        let lock = atomic::lock(&self.folder.join(".bets.lock"))?;
        let mut bets = self.kept_bets()?;
        bets.insert(name.to_owned(), points);
        atomic::write_json(&self.bets_file(), &bets)?;
        drop(lock);
        println!("kept: you bet {points:+.1} points on {name}");
        self.show_bets(&bets)
    }

    /// Shows your bets beside what was measured.
    ///
    /// # Errors
    /// When the file of the bets can't be read.
    pub fn bets(&self, measured: &[(&str, &Verdict)]) -> Result<Table> {
        let bets = self.kept_bets()?;
        let table = Table::new(&["difference, points", "your bet", "measured", "interval", "your bet is"]);
        Ok(measured.iter().fold(table, |table, (name, verdict)| {
            let bet = bets.get(*name);
            let inside = |points: &f64| (100.0 * verdict.low..=100.0 * verdict.high).contains(points);
            table.row(&[
                (*name).to_owned(),
                bet.map_or("none".into(), |points| format!("{points:+.1}")),
                format!("{:+.1}", 100.0 * verdict.mean),
                verdict.interval(),
                bet.map_or("", |points| if inside(points) { "inside" } else { "outside" }).to_owned(),
            ])
        }))
    }

    fn bets_file(&self) -> PathBuf {
        self.folder.join("bets.json")
    }

    pub(super) fn kept_bets(&self) -> Result<BTreeMap<String, f64>> {
        let path = self.bets_file();
        match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(Error::io("reading", &path, e)),
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| Error::Data(format!("{} does not hold bets: {e}; remove it", path.display()))),
        }
    }
}
