//! Tables and texts that Jupyter shows for histories, sweeps and other results at the end of a cell.

use super::canvas::Figure;
use super::curves::curves;
use super::heatmap::parameter_map;
use super::output::{emit, emit_text, escape, show_as_text};
use super::table::Table;
use super::words::{counted, duration, percent, short, short_or_empty};
use crate::data::{Batch, Dataset};
use crate::models::{LoadReport, Model, Student, Summary};
use crate::study::{Measure, ReportCard, Sweep, SweepReport, Verdict};
use crate::train::{CachedTensor, Evaluation, History, LogitsTable, Run};
use crate::{Error, Result};
use kdlab_client::Bundle;
use std::fmt;

show_as_text!(Summary LoadReport Dataset Batch Evaluation CachedTensor LogitsTable Sweep Verdict);

impl Run {
    /// Shows its state, and the curve so far.
    pub fn evcxr_display(&self) {
        match curves(&[&self.history()]).and_then(|figure| figure.bundle()) {
            Ok(bundle) => emit(&bundle.with("text/plain", self.to_string())),
            Err(_) => emit_text(self),
        }
    }
}

impl History {
    /// Returns the curve as a table with a row for each epoch. Accuracies are in percent.
    pub fn table(&self) -> Table {
        let metrics = ["epoch", "train loss", "train accuracy (%)", "val loss", "val accuracy (%)", "val CE", "val KL"];
        let header = [&metrics[..], &["T", "alpha", "lr", "seconds"]].concat();
        self.records.iter().fold(Table::new(&header), |table, r| {
            table.row(&[
                r.epoch.to_string(),
                format!("{:.4}", r.train.loss),
                percent(r.train.accuracy, 1),
                format!("{:.4}", r.validation.loss),
                percent(r.validation.accuracy, 1),
                format!("{:.4}", r.validation.cross_entropy),
                r.validation.divergence.map_or(String::new(), |d| format!("{d:.4}")),
                short_or_empty(r.hyperparameters.temperature),
                short_or_empty(r.hyperparameters.alpha),
                short(self.last_learning_rate(r)),
                format!("{:.1}", r.seconds),
            ])
        })
    }

    /// Shows the table below the cell.
    pub fn evcxr_display(&self) {
        self.table().evcxr_display();
    }
}

impl ReportCard {
    /// A table with a row for each model.
    pub(super) fn table(&self) -> Table {
        let teacher = self.rows.first().map_or("", |r| r.model.as_str());
        let agreement = format!("agreement with {teacher} (%)");
        let costs = ["parameters", "MACs per image", "ms per image", "file"];
        let header = [&["model", "accuracy (%)", "NLL", "ECE (%)", &agreement], &costs[..]].concat();
        self.rows.iter().fold(Table::new(&header), |table, r| {
            table.row(&[
                r.model.clone(),
                percent(r.accuracy, 2),
                format!("{:.4}", r.nll),
                percent(r.calibration.ece, 2),
                r.agreement.map_or(String::new(), |a| percent(a, 1)),
                format!("{:.2} M", r.parameters as f64 / 1e6),
                format!("{:.1} M", r.macs as f64 / 1e6),
                format!("{:.2}", r.latency_ms),
                format!("{:.1} MB", r.file_bytes as f64 / 1e6),
            ])
        })
    }

    /// Shows the table below the cell.
    pub fn evcxr_display(&self) {
        self.table().evcxr_display();
    }
}

/// Writes a row for each run, in the order of the runs.
impl fmt::Display for SweepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.runs_table().fmt(f)
    }
}

/// Returns a table of the students for so many classes, with what each costs at 32, 64 and 128 pixels: parameters, size
/// of the file in f32, and multiply-adds for an image.
///
/// # Errors
/// When there are no classes.
pub fn student_sizes(classes: i64) -> Result<Table> {
    if classes < 1 {
        return Err(Error::Input(format!("students for {classes} classes; give data.classes.len() as i64")));
    }
    let mut table = Table::new(&["student", "image (px)", "parameters", "file", "MACs per image"]);
    for student in Student::ALL {
        for side in [32, 64, 128] {
            let name = format!("Student::{student:?}");
            let model = Model::new(&name, tch::Device::Cpu, 0, &|vs| student.layers(vs, classes, side))?;
            let Summary { parameters, macs, .. } = model.summary([3, side, side])?;
            table = table.row(&[
                name,
                side.to_string(),
                format!("{:.2} M", parameters as f64 / 1e6),
                format!("{:.1} MB", model.file_size()? as f64 / 1e6),
                format!("{:.1} M", macs as f64 / 1e6),
            ]);
        }
    }
    Ok(table)
}

impl Measure {
    fn title(self) -> &'static str {
        match self {
            Measure::Validation => "validation accuracy",
            Measure::Test => "test accuracy",
            Measure::OmittedRecall => "omitted class recognised",
            Measure::CorrectedRecall => "omitted class recognised, bias corrected",
            Measure::CorrectedTest => "test accuracy, bias corrected",
        }
    }
}

impl SweepReport {
    /// Returns a table with a row for each setting: the means of the student alone and of the distilled one in percent,
    /// their paired difference in points with its interval, and the verdict.
    ///
    /// # Errors
    /// When the measure needs an omitted class and the sweep omits none.
    pub fn table(&self, measure: Measure) -> Result<Table> {
        let alone = format!("alone: {} (%)", measure.title());
        let names = ["setting", "seeds", &alone, "distilled (%)"];
        let header = [&names[..], &["difference ± std", "interval", "confidence (%)", "verdict"]].concat();
        let mean = |values: &[f64]| percent(values.iter().sum::<f64>() / values.len().max(1) as f64, 1);
        Ok(self.compare(measure)?.iter().fold(Table::new(&header), |table, c| {
            let v = &c.verdict;
            table.row(&[
                c.setting.to_string(),
                c.alone.len().to_string(),
                mean(&c.alone),
                mean(&c.distilled),
                format!("{:+.1} ± {:.1}", 100.0 * v.mean, 100.0 * v.deviation),
                v.interval(),
                percent(v.confidence, 1),
                v.decision.to_string(),
            ])
        }))
    }

    /// Draws the mean gain over the student alone in points, temperature (rows) by alpha (columns), for the first value
    /// of every other axis.
    ///
    /// # Errors
    /// When the sweep has no temperature or no alpha, or more of them than fit on a screen.
    pub fn map(&self, measure: Measure) -> Result<Figure> {
        if !self.sweep.compares_logits() {
            return Err(Error::Input(format!(
                "sweep {} compares features, which have no T and no alpha, so there is no map over them; show \
                 table(...)",
                self.sweep.name
            )));
        }
        if self.sweep.published {
            return Err(Error::Input(format!(
                "sweep {} ran each method at its authors' temperature and weights, so there is no map over them; show \
                 table(...)",
                self.sweep.name
            )));
        }
        let names = |values: &[f64]| values.iter().map(|&v| short(v)).collect::<Vec<_>>();
        let title = format!("{}: gain over the student alone, {}", self.sweep.name, measure.title());
        let (temperatures, alphas) = (names(&self.sweep.temperatures), names(&self.sweep.alphas));
        parameter_map(&title, ("T", &temperatures), ("alpha", &alphas), &self.grid(measure), "points")
    }

    /// Returns a table with a row for each run, in the order of the runs.
    pub(super) fn runs_table(&self) -> Table {
        let names = ["setting", "seed", "val accuracy (%)", "test accuracy (%)", "teacher (%)"];
        let header = [&names[..], &["best epoch", "seconds", "img/s"]].concat();
        self.runs.iter().fold(Table::new(&header), |table, run| {
            table.row(&[
                run.setting.to_string(),
                run.seed.to_string(),
                percent(run.validation, 1),
                percent(run.test, 1),
                run.teacher.map_or(String::new(), |t| percent(t, 1)),
                run.best_epoch.to_string(),
                format!("{:.1}", run.seconds),
                format!("{:.0}", run.images_per_second),
            ])
        })
    }

    /// What the sweep was about, in a line: data, image size, epochs, runs and time.
    pub(crate) fn headline(&self) -> String {
        let Self { sweep, images, data, runs, .. } = self;
        let stopped = self.stopped.as_ref().map_or(String::new(), |why| format!("; stopped: {why}"));
        let (epochs, runs) = (counted(sweep.epochs, "epoch"), counted(runs.len(), "run"));
        let time = duration(self.seconds());
        // Of one kind it would say nothing about the results.
        let cpus = self.cpus();
        let cpus = if cpus.len() > 1 { format!(" on {}", cpus.join(" and ")) } else { String::new() };
        format!(
            "{}: {data}, {images} images at {} px, {epochs}, {runs}, {time} of training{cpus}{stopped}",
            sweep.name, sweep.size
        )
    }

    /// Shows what the sweep was about, and the verdicts on the test split.
    pub fn evcxr_display(&self) {
        let line = self.headline();
        match self.table(Measure::Test) {
            Ok(table) => {
                let html = format!("<p>{}</p>{}", escape(&line), table.html());
                emit(&Bundle::text(format!("{line}\n{table}")).with("text/html", html));
            }
            Err(e) => eprintln!("{e}"),
        }
    }
}
