//! How each type shows itself when a cell ends with it. evcxr looks for a method of this name.

use super::table::escape;
use super::{Figure, Table, curves};
use crate::Result;
use crate::data::{Batch, Dataset};
use crate::lab::Lab;
use crate::models::{LoadReport, Summary};
use crate::study::Verdict;
use crate::study::{Measure, ReportCard, SweepReport};
use crate::train::{CachedTensor, Change, Evaluation, History, Hyperparameters, Run};
use base64::Engine;
use kdlab_client::Bundle;
use serde_json::json;
use std::fmt::Display;
use std::io::Write;

/// Hands one cell result to the kernel, in every form given. Outside a kernel the first form is printed.
fn emit(forms: &[(&str, &str)]) {
    let mut out = std::io::stdout().lock();
    let in_kernel = std::env::var_os("EVCXR_IS_RUNTIME").is_some();
    let shown = if in_kernel { forms } else { &forms[..1] };
    for (mime, content) in shown {
        // Nothing can be done about a closed stdout here, and the fit must not die of it.
        let _ = if in_kernel {
            writeln!(out, "EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT")
        } else {
            writeln!(out, "{content}")
        };
    }
}

/// Form of a result that holds the metadata of the others; the live kernel puts it where Jupyter has it.
const METADATA: &str = "application/vnd.live-kernel.metadata+json";

/// Hands a figure and its words to the kernel. The size, of which the PNG has twice, is for the live kernel alone.
fn emit_figure(figure: &Figure, text: &str) -> Result<()> {
    let bundle = bundle(figure)?;
    let png = bundle.data["image/png"].as_str().unwrap_or_default();
    let metadata = json!(bundle.metadata).to_string();
    let mut forms = vec![("text/plain", text), ("image/png", png)];
    if std::env::var_os("LIVE_KERNEL_SOCKET").is_some() {
        forms.push((METADATA, &metadata));
    }
    emit(&forms);
    Ok(())
}

/// What stands in the place of a figure where only text is shown.
fn in_words(figure: &Figure) -> String {
    format!("figure: {}", figure.alt())
}

pub(super) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A figure for a display on the live kernel, with its size, so that nothing below it moves while it is drawn anew.
pub(super) fn bundle(figure: &Figure) -> Result<Bundle> {
    let (width, height) = figure.size();
    let metadata = json!({"width": width, "height": height, "alt": figure.alt()});
    let mut bundle = Bundle::text(in_words(figure)).with("image/png", base64(&figure.png()?));
    bundle.metadata.insert("image/png".into(), metadata);
    Ok(bundle)
}

pub(super) fn emit_text(value: &dyn Display) {
    let text = value.to_string();
    let html = format!("<pre style=\"line-height:1.3;font-family:monospace\">{}</pre>", escape(text.trim_end()));
    emit(&[("text/plain", text.trim_end()), ("text/html", &html)]);
}

/// Shows a cell's value as evcxr does what has no display of its own, by `{:?}`. evcxr would find out by compiling the
/// cell twice. Displays of their own come before it.
pub trait ShowDebug: std::fmt::Debug {
    fn evcxr_display(&self) {
        emit(&[("text/plain", &format!("{self:?}"))]);
    }
}

impl<T: std::fmt::Debug + ?Sized> ShowDebug for T {}

/// `{:?}` in the words of the display: evcxr asks for it when a notebook's first cell ends with `?`.
macro_rules! debug_as_display {
    ($($shown:ty)*) => { $(impl std::fmt::Debug for $shown {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{self}")
        }
    })* };
}

debug_as_display!(Dataset Batch Lab Evaluation Run CachedTensor);

impl Figure {
    /// Shows the figure below the cell, as PNG: the one form that JupyterLab fits to its column and shows in a notebook
    /// that somebody else ran, and that GitHub renders.
    pub fn evcxr_display(&self) {
        if let Err(e) = emit_figure(self, &in_words(self)) {
            eprintln!("{e}");
        }
    }
}

impl SweepReport {
    /// What it was about, and the verdicts on the test split.
    pub fn evcxr_display(&self) {
        match self.table(Measure::Test) {
            Ok(table) => {
                let (text, html) = (self.headline(), format!("<p>{}</p>{}", escape(&self.headline()), table.html()));
                emit(&[("text/plain", &format!("{text}\n{table}")), ("text/html", &html)]);
            }
            Err(e) => eprintln!("{e}"),
        }
    }
}

impl Table {
    pub fn evcxr_display(&self) {
        emit(&[("text/plain", self.to_string().trim_end()), ("text/html", &self.html())]);
    }
}

impl History {
    /// The curve as a table, an epoch a row.
    pub fn table(&self) -> Table {
        let header = [
            "epoch",
            "train loss",
            "train acc %",
            "val loss",
            "val acc %",
            "val CE",
            "val KL",
            "T",
            "alpha",
            "lr",
            "seconds",
        ];
        let number = |v: f64, digits: usize| format!("{v:.digits$}");
        let maybe = |v: Option<f64>| v.map_or(String::new(), short);
        self.records.iter().fold(Table::new(&header), |table, r| {
            table.row(&[
                r.epoch.to_string(),
                number(r.train.loss, 4),
                number(100.0 * r.train.accuracy, 1),
                number(r.validation.loss, 4),
                number(100.0 * r.validation.accuracy, 1),
                number(r.validation.cross_entropy, 4),
                r.validation.divergence.map_or(String::new(), |d| number(d, 4)),
                maybe(r.hyperparameters.temperature),
                maybe(r.hyperparameters.alpha),
                short(r.hyperparameters.learning_rate),
                number(r.seconds, 1),
            ])
        })
    }

    pub fn evcxr_display(&self) {
        self.table().evcxr_display();
    }
}

impl ReportCard {
    /// A row for each model.
    pub fn table(&self) -> Table {
        let teacher = self.rows.first().map_or("", |r| r.model.as_str());
        let agrees = format!("agrees with {teacher} %");
        let header =
            ["model", "accuracy %", "NLL", "ECE %", &agrees, "parameters", "MACs an image", "ms an image", "file"];
        self.rows.iter().fold(Table::new(&header), |table, r| {
            table.row(&[
                r.model.clone(),
                format!("{:.2}", 100.0 * r.accuracy),
                format!("{:.4}", r.nll),
                format!("{:.2}", 100.0 * r.calibration.ece),
                r.agreement.map_or(String::new(), |a| format!("{:.1}", 100.0 * a)),
                format!("{:.2} M", r.parameters as f64 / 1e6),
                format!("{:.1} M", r.macs as f64 / 1e6),
                format!("{:.2}", r.latency_ms),
                format!("{:.1} MB", r.file_bytes as f64 / 1e6),
            ])
        })
    }

    pub fn evcxr_display(&self) {
        self.table().evcxr_display();
    }
}

impl Summary {
    pub fn evcxr_display(&self) {
        emit_text(self);
    }
}

impl LoadReport {
    pub fn evcxr_display(&self) {
        emit_text(self);
    }
}

impl Dataset {
    pub fn evcxr_display(&self) {
        emit_text(self);
    }
}

impl Batch {
    pub fn evcxr_display(&self) {
        emit_text(self);
    }
}

impl Lab {
    pub fn evcxr_display(&self) {
        emit_text(self);
    }
}

impl Display for Evaluation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let accuracy = 100.0 * self.accuracy();
        write!(
            f,
            "accuracy {accuracy:.2} % ({} of {}), cross-entropy {:.4}",
            self.correct, self.total, self.cross_entropy
        )
    }
}

impl Verdict {
    pub fn evcxr_display(&self) {
        emit_text(self);
    }
}

/// What differs, such as `T 4 -> 2, lr 1e-3 -> 3e-4`.
impl Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (b, a) = (self.before, self.after);
        let values = [
            ("T", b.temperature, a.temperature),
            ("alpha", b.alpha, a.alpha),
            ("lr", Some(b.learning_rate), Some(a.learning_rate)),
        ];
        let differs = |&(name, before, after): &(&str, Option<f64>, Option<f64>)| {
            let (before, after) = (short(before?), short(after?));
            (before != after).then(|| format!("{name} {before} -> {after}"))
        };
        f.write_str(&values.iter().filter_map(differs).collect::<Vec<_>>().join(", "))
    }
}

/// The values in force, such as `T 4, alpha 0.9, learning rate 1e-3`.
impl Display for Hyperparameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.temperature.map_or(Ok(()), |t| write!(f, "T {}, ", short(t)))?;
        self.alpha.map_or(Ok(()), |a| write!(f, "alpha {}, ", short(a)))?;
        write!(f, "learning rate {}", short(self.learning_rate))
    }
}

/// Three digits: a slider's values have many more.
pub(crate) fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 {
        let text = format!("{value:.2e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'));
    }
    let decimals = if value.abs() < 10.0 { 2 } else { 1 };
    let text = format!("{value:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Run {
    /// Its state, and the curve so far.
    pub fn evcxr_display(&self) {
        let text = self.to_string();
        if curves(&[&self.history()]).and_then(|figure| emit_figure(&figure, &text)).is_err() {
            emit_text(self);
        }
    }
}

impl Evaluation {
    pub fn evcxr_display(&self) {
        emit_text(self);
    }
}

impl Display for CachedTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let (Some(views), Some(path)) = (&self.views, &self.path) {
            let from = if self.from_disk { "found" } else { "computed, now" };
            return write!(f, "logits f16 of {} views of each image, {from} at {}", views.count(), path.display());
        }
        let from = if self.from_disk { "found on disk, once computed" } else { "computed" };
        write!(f, "f32 {:?}, {from} in {:.1} s", self.tensor.size(), self.seconds)
    }
}

impl CachedTensor {
    pub fn evcxr_display(&self) {
        emit_text(self);
    }
}
