//! A model card in Markdown: what people must know before they use a trained network.

use super::words::{counted, duration, percent, threads};
use crate::data::{Dataset, Framing};
use crate::models::{Model, ModelCard};
use crate::store::atomic::write_bytes;
use crate::store::digest::file_sha256;
use crate::study::{Measure, SweepReport};
use crate::train::{Evaluation, History};
use crate::{Error, Result};
use statrs::distribution::{ContinuousCDF, Normal};
use std::path::{Path, PathBuf};

/// How often the intervals of the card hold the true share.
const CONFIDENCE: f64 = 0.95;
/// Classes that are listed one by one; of more, the least recognised ones are.
const LISTED: usize = 20;

/// What a model card in Markdown is written from, after Mitchell et al., "Model Cards for Model Reporting" (2019).
pub struct CardText<'a> {
    /// The network; its name is the title.
    pub model: &'a Model,
    /// Its classes, and how pictures are prepared for it.
    pub card: &'a ModelCard,
    /// The data on which it was trained and measured.
    pub data: &'a Dataset,
    /// The curve of its fit.
    pub history: &'a History,
    /// Its measurement on the test split.
    pub test: &'a Evaluation,
    /// A sweep that compared this way of training with the student alone, if there is one.
    pub sweep: Option<&'a SweepReport>,
    /// The files that are handed on.
    pub files: &'a [PathBuf],
}

impl CardText<'_> {
    /// Writes the card: what the network is, data, training, results with intervals, limits, and files with their
    /// checksums.
    ///
    /// The interval of an accuracy is Wilson's, with 95 % confidence: it covers other images of the same kind. That of
    /// a sweep covers other seeds.
    ///
    /// # Errors
    /// When the card is of another network, one of `files` is missing, or the card can't be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_bytes(path.as_ref(), self.markdown()?.as_bytes())
    }

    fn markdown(&self) -> Result<String> {
        let (named, tested) = (self.card.classes.len(), self.test.confusion()?.len());
        if named != tested {
            return Err(Error::Input(format!(
                "the card names {named} classes and the test has {tested}: give the card of this network"
            )));
        }
        let sections = [self.network()?, self.training(), self.results()?, self.limits(), self.listed()?];
        Ok(sections.into_iter().flatten().collect::<Vec<_>>().join("\n") + "\n")
    }

    fn network(&self) -> Result<Vec<String>> {
        let Self { model, card, data, .. } = self;
        let (stored, size, classes) = (card.stored_size, card.transform.size, &card.classes);
        let framed = if card.framing == Framing::Squeeze { "squeezed into" } else { "cropped around its centre to" };
        let summary = model.summary([3, size, size])?;
        let (parameters, macs) = (summary.parameters, summary.macs as f64 / 1e6);
        let names = classes.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", ");
        let mut text = vec![
            format!("# {}\n\nA network that tells {} classes apart: {names}.\n", plain(&model.name), classes.len()),
            format!("- Input: a picture of any size, {framed} a square of {stored} pixels,"),
            format!("  then brought to {size} x {size} pixels, red, green, blue"),
            "- Output: a probability for each class".to_owned(),
            format!("- Cost: {parameters} parameters, {macs:.1} million multiply-adds for a picture"),
        ];
        if card.threshold > 0.0 {
            let least = percent(card.threshold, 1);
            text.push(format!("- Below a probability of {least} % a program should not answer"));
        }
        text.push("\n## Data\n".to_owned());
        text.extend(data.to_string().lines().map(|line| format!("{}  ", plain(line))));
        text.push(format!("\nFingerprint of images, labels and splits: `{}`", data.key));
        Ok(text)
    }

    fn training(&self) -> Vec<String> {
        let History { criterion, records, epochs, stopped, recipe, changes, mistake, threads: all, .. } = self.history;
        let mut text = vec![format!("\n## Training\n\n- Loss: {}", plain(criterion))];
        if let Some(best) = self.history.best() {
            let (epoch, values) = (best.epoch, best.hyperparameters);
            text.push(format!("- Kept: the weights of epoch {epoch}, the best on the validation split, with {values}"));
        }
        text.push(match recipe.is_default() {
            true => "- Optimizer: Adam at a constant learning rate".to_owned(),
            false => format!("- Optimizer and schedule: `{recipe}`"),
        });
        if !changes.is_empty() {
            text.push(format!("- Changed by hand during training: {}", counted(changes.len(), "time")));
        }
        let why = stopped.as_ref().map_or(String::new(), |why| format!(", stopped: {}", plain(why)));
        let time = duration(self.history.seconds());
        let on = if all.is_empty() { String::new() } else { format!(" on {}", threads(all)) };
        text.push(format!("- Length: {} of {epochs} epochs in {time}{on}{why}", records.len()));
        text.extend(mistake.as_ref().map(|name| format!("- **With a mistake made on purpose: {name}. Not for use.**")));
        text
    }

    fn results(&self) -> Result<Vec<String>> {
        let test = self.test;
        let (share, between) = (percent(test.accuracy(), 1), interval(test.correct, test.total)?);
        let mut text = vec![
            "\n## Results\n\nOn the test split, which had no part in training or in any choice, with intervals of"
                .to_owned(),
            "95 % confidence.\n".to_owned(),
            "| test images | right (%) | interval (%) | cross-entropy |\n| --- | --- | --- | --- |".to_owned(),
            format!("| {} | {share} | {between} | {:.4} |\n", test.total, test.cross_entropy),
        ];
        let confusion = test.confusion()?;
        let row = |(class, name)| {
            let (right, of) =
                confusion.get(class).map_or((0, 0), |row: &Vec<_>| (row[class], row.iter().sum::<usize>()));
            (right as f64 / of.max(1) as f64, name, right, of)
        };
        let mut rows: Vec<_> = self.card.classes.iter().enumerate().map(row).collect();
        if rows.len() > LISTED {
            rows.sort_by(|a, b| a.0.total_cmp(&b.0));
            rows.truncate(LISTED);
            text.push(format!("The {LISTED} classes that are recognised least:\n"));
        }
        text.push("| class | its test images | recognised (%) | interval (%) |\n| --- | --- | --- | --- |".to_owned());
        for (share, name, right, of) in rows {
            text.push(format!("| {} | {of} | {} | {} |", plain(name), percent(share, 1), interval(right, of)?));
        }
        if let Some(sweep) = self.sweep {
            text.push("\nAgainst the same network trained without a teacher, over several seeds".to_owned());
            text.push(format!("({}):\n", plain(&sweep.headline())));
            text.extend(sweep.compare(Measure::Test)?.iter().map(|c| format!("- {}: {}", c.setting, c.verdict)));
        }
        Ok(text)
    }

    fn limits(&self) -> Vec<String> {
        let mut text = vec![
            "\n## Limits\n\n- It knows these classes only: of a picture of anything else it names one all the same.",
            "- The results hold for pictures of the same kind as its data. Another camera, place or season is",
            "  another kind: measure again.",
            match self.card.framing {
                Framing::Squeeze => "- Pictures are squeezed into a square, which changes their proportions.",
                Framing::CentreCrop => "- It does not see the ends of a picture that is no square.",
            },
        ];
        if self.history.records.iter().any(|record| record.validation.divergence.is_some()) {
            text.push("- It learned from another network, and may have learned that network's errors.");
        }
        text.into_iter().map(str::to_owned).collect()
    }

    fn listed(&self) -> Result<Vec<String>> {
        let row = |file: &PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let bytes = std::fs::metadata(file).map_err(|e| Error::io("reading", file, e))?.len();
            Ok(format!("| `{name}` | {bytes} | `{}` |", file_sha256(file)?))
        };
        if self.files.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.files.iter().map(row).collect::<Result<Vec<_>>>()?;
        Ok([vec!["\n## Files\n\n| file | bytes | SHA-256 |\n| --- | --- | --- |".to_owned()], rows].concat())
    }
}

/// A text that means nothing to Markdown, such as the name of a class.
fn plain(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if "\\`*_{}[]<>#|&~".contains(c) {
            escaped.push('\\');
        }
        escaped.push(if c.is_control() { ' ' } else { c });
    }
    escaped
}

/// Wilson's interval of a share in percent, as Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion"
/// (2001), recommend it.
fn interval(right: usize, of: usize) -> Result<String> {
    if of == 0 {
        return Ok(String::new());
    }
    let normal = Normal::new(0.0, 1.0).map_err(|e| Error::Input(format!("normal distribution: {e}")))?;
    let (z, n) = (normal.inverse_cdf(0.5 + CONFIDENCE / 2.0), of as f64);
    let share = right as f64 / n;
    let centre = share + z * z / (2.0 * n);
    let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let [low, high] = [centre - half, centre + half].map(|end| percent((end / (1.0 + z * z / n)).clamp(0.0, 1.0), 1));
    Ok(format!("{low} to {high}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_classes_stay_text_on_one_line() {
        assert_eq!(plain("salt & <b>\r\n|~`"), "salt \\& \\<b\\>  \\|\\~\\`");
    }

    #[test]
    fn intervals_are_wilson_s() {
        // statsmodels.stats.proportion.proportion_confint(..., method="wilson")
        for (right, of, wanted) in [(8, 10, "49.0 to 94.3"), (0, 20, "0.0 to 16.1"), (20, 20, "83.9 to 100.0")] {
            assert_eq!(interval(right, of).unwrap(), wanted);
        }
        assert_eq!(interval(0, 0).unwrap(), "");
    }
}
