//! Numbers and values as text, for tables, figures and lines of progress.

use super::output::debug_as_display;
use crate::data::{Batch, Dataset};
use crate::train::{CachedTensor, Change, Evaluation, Hyperparameters, Run};
use std::fmt::{self, Display, Formatter};

debug_as_display!(Dataset Batch Evaluation Run CachedTensor);

/// A number with three digits; that of a slider may have many more.
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

/// [`short`], or an empty text.
pub(crate) fn short_or_empty(value: Option<f64>) -> String {
    value.map_or(String::new(), short)
}

/// A name of at most 18 letters, so that a figure need not grow with it.
pub(super) fn short_name(name: &str) -> String {
    const LONGEST: usize = 18;
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    name.chars().take(LONGEST - 2).chain("..".chars()).collect()
}

pub(super) fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// Such as `1 epoch` and `2 epochs`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The threads of a fit, such as `2 threads` and `2 threads, 1 from epoch 0.40`; empty where there is no record.
pub(super) fn threads(all: &[(f64, usize)]) -> String {
    let Some((&(_, first), changes)) = all.split_first() else { return String::new() };
    let later = |&(epoch, n): &(f64, usize)| format!(", {n} from epoch {epoch:.2}");
    let (shown, more) =
        (changes.iter().take(3).map(later).collect::<String>(), if changes.len() > 3 { ", ..." } else { "" });
    counted(first, "thread") + &shown + more
}

/// A share in percent.
pub(super) fn percent(share: f64, decimals: usize) -> String {
    format!("{:.decimals$}", 100.0 * share)
}

impl Display for Evaluation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (accuracy, of) = (percent(self.accuracy(), 2), format!("{} of {}", self.correct, self.total));
        write!(f, "accuracy {accuracy} % ({of}), cross-entropy {:.4}", self.cross_entropy)
    }
}

impl Display for CachedTensor {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let (Some(views), Some(path)) = (&self.views, &self.path) {
            let from = if self.from_disk { "found" } else { "computed, now" };
            return write!(f, "logits f16 of {} views of each image, {from} at {}", views.count(), path.display());
        }
        let from = if self.from_disk { "found on disk, once computed" } else { "computed" };
        write!(f, "f32 {:?}, {from} in {:.1} s", self.tensor.size(), self.seconds)
    }
}

/// Writes what differs, such as `T 4 -> 2, lr 1e-3 -> 3e-4`.
impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
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

/// Writes the values, such as `T 4, alpha 0.9, learning rate 1e-3`.
impl Display for Hyperparameters {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.temperature.map_or(Ok(()), |t| write!(f, "T {}, ", short(t)))?;
        self.alpha.map_or(Ok(()), |a| write!(f, "alpha {}, ", short(a)))?;
        write!(f, "learning rate {}", short(self.learning_rate))
    }
}
