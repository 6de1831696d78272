//! What the page, a participant's cell and the export show: pairs pooled by study and setting, with the course's
//! verdict.

use crate::post::{Study, words};
use crate::store::{All, Row};
use anyhow::Result;
use kdlab::study::Verdict;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Most dots of a setting on the page; the latest. The verdict takes all.
const DOTS: usize = 600;
/// Most studies on the page: those with most people.
const STUDIES: usize = 12;
/// Most steps of the picture of an interval that shrinks.
const STEPS: usize = 40;

/// The page's picture of the board.
#[derive(Serialize)]
pub struct Board {
    people: u32,
    pairs: usize,
    studies: Vec<StudyView>,
}

#[derive(Serialize)]
struct StudyView {
    /// Name of the sweep.
    name: String,
    /// What all its pairs have in common, in words.
    about: String,
    people: usize,
    /// Percentage points that people bet.
    bets: Vec<f64>,
    settings: Vec<SettingView>,
}

#[derive(Serialize)]
struct SettingView {
    setting: String,
    dots: Vec<Dot>,
    people: usize,
    seeds: usize,
    /// `None` below two seeds.
    result: Option<Outcome>,
    /// The interval after each of the first seeds: number of seeds, low, mean, high, in points.
    path: Vec<(usize, f64, f64, f64)>,
}

#[derive(Serialize)]
struct Dot {
    name: String,
    seed: i64,
    points: f64,
}

/// A verdict in percentage points.
#[derive(Serialize)]
struct Outcome {
    decision: String,
    mean: f64,
    low: f64,
    high: f64,
    confidence: f64,
    /// Bets inside the interval.
    bets_inside: usize,
}

/// The pairs of one setting.
struct Pooled<'a> {
    setting: &'a str,
    rows: Vec<&'a Row>,
    /// For each seed, in the order in which they came, the means of the student alone and of the distilled one over the
    /// people who ran it: two runs of one seed are nearly the same run, and count once.
    alone: Vec<f64>,
    distilled: Vec<f64>,
}

impl<'a> Pooled<'a> {
    fn new(setting: &'a str, rows: Vec<&'a Row>) -> Self {
        let mut order = Vec::new();
        let mut sums: BTreeMap<i64, (f64, f64, f64)> = BTreeMap::new();
        for row in &rows {
            let (alone, distilled, count) = sums.entry(row.seed).or_insert_with(|| {
                order.push(row.seed);
                (0.0, 0.0, 0.0)
            });
            *alone += row.alone;
            *distilled += row.distilled;
            *count += 1.0;
        }
        let (alone, distilled) = order.iter().map(|seed| sums[seed]).map(|(a, d, n)| (a / n, d / n)).unzip();
        Self { setting, rows, alone, distilled }
    }

    fn seeds(&self) -> usize {
        self.alone.len()
    }

    fn people(&self) -> usize {
        self.rows.iter().map(|row| row.place).collect::<BTreeSet<_>>().len()
    }

    /// The course's verdict on the first `seeds`.
    fn verdict(&self, seeds: usize, comparisons: usize) -> Option<Verdict> {
        Verdict::new(self.alone.get(..seeds)?, self.distilled.get(..seeds)?, comparisons).ok()
    }
}

/// The settings of a study, and how many of them are compared.
fn pooled(all: &All, study: i64) -> (Vec<Pooled<'_>>, usize) {
    let mut by_setting: Vec<(&str, Vec<&Row>)> = Vec::new();
    for row in all.rows.iter().filter(|row| row.study == study) {
        match by_setting.iter_mut().find(|(setting, _)| *setting == row.setting) {
            Some((_, rows)) => rows.push(row),
            None => by_setting.push((&row.setting, vec![row])),
        }
    }
    let settings: Vec<_> = by_setting.into_iter().map(|(setting, rows)| Pooled::new(setting, rows)).collect();
    let comparisons = settings.iter().filter(|pooled| pooled.seeds() > 1).count();
    (settings, comparisons)
}

/// Makes the page's picture.
pub fn board(all: &All) -> Board {
    let mut studies: Vec<StudyView> =
        all.studies.iter().map(|(number, study)| study_view(all, *number, study)).collect();
    studies.retain(|study| !study.settings.is_empty());
    // Bets on sweeps that nobody has posted yet.
    let mut waiting: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (question, points) in &all.bets {
        if studies.iter().all(|study| words(&study.name) != *question) {
            waiting.entry(question).or_default().push(*points);
        }
    }
    studies.extend(waiting.into_iter().map(|(question, bets)| StudyView {
        name: question.to_owned(),
        about: "bets so far; nobody has posted a result".into(),
        people: bets.len(),
        bets,
        settings: Vec::new(),
    }));
    studies.sort_by_key(|study| std::cmp::Reverse(study.people));
    studies.truncate(STUDIES);
    Board { people: all.people, pairs: all.rows.len(), studies }
}

fn study_view(all: &All, number: i64, study: &Study) -> StudyView {
    let (settings, comparisons) = pooled(all, number);
    let asked = words(&study.sweep.name);
    let bets =
        all.bets.iter().filter(|(question, _)| *question == asked).map(|(_, points)| *points).collect::<Vec<_>>();
    let people: BTreeSet<i64> = settings.iter().flat_map(|pooled| &pooled.rows).map(|row| row.place).collect();
    let Study { profile, data, images, sweep, .. } = study;
    let (epochs, size) = (sweep.epochs, sweep.size);
    let plural = if epochs == 1 { "" } else { "s" };
    StudyView {
        name: sweep.name.clone(),
        about: format!("{data}, {profile}, {images} images at {size} px, {epochs} epoch{plural}"),
        people: people.len(),
        settings: settings.iter().map(|pooled| setting_view(pooled, comparisons, &bets)).collect(),
        bets,
    }
}

fn setting_view(pooled: &Pooled, comparisons: usize, bets: &[f64]) -> SettingView {
    let seeds = pooled.seeds();
    let result = pooled.verdict(seeds, comparisons).map(|verdict| {
        let (low, high) = (100.0 * verdict.low, 100.0 * verdict.high);
        Outcome {
            decision: verdict.decision.to_string(),
            mean: 100.0 * verdict.mean,
            low,
            high,
            confidence: 100.0 * verdict.confidence,
            bets_inside: bets.iter().filter(|points| (low..=high).contains(*points)).count(),
        }
    });
    let step = |i: usize| 2 + i * seeds.saturating_sub(2) / STEPS.min(seeds.saturating_sub(2)).max(1);
    let mut steps: Vec<usize> = (0..=STEPS).map(step).filter(|n| *n <= seeds).collect();
    steps.dedup();
    let at = |n: usize| {
        let verdict = pooled.verdict(n, comparisons)?;
        Some((n, 100.0 * verdict.low, 100.0 * verdict.mean, 100.0 * verdict.high))
    };
    let latest = &pooled.rows[pooled.rows.len().saturating_sub(DOTS)..];
    let dot = |row: &&Row| {
        let points = 100.0 * (row.distilled - row.alone);
        Dot { name: row.name.clone(), seed: row.seed, points }
    };
    SettingView {
        setting: pooled.setting.to_owned(),
        dots: latest.iter().map(dot).collect(),
        people: pooled.people(),
        seeds,
        result,
        path: steps.into_iter().filter_map(at).collect(),
    }
}

/// What the class has found in the settings of a post: setting, seeds, people, mean difference, interval, verdict.
pub fn found(all: &All, study: i64, settings: &BTreeSet<String>) -> Vec<Vec<String>> {
    let (pooled, comparisons) = pooled(all, study);
    let row = |pooled: &Pooled| {
        let mut cells = vec![pooled.setting.to_owned(), pooled.seeds().to_string(), pooled.people().to_string()];
        match pooled.verdict(pooled.seeds(), comparisons) {
            None => cells.extend(["".into(), "".into(), "after a second seed".into()]),
            Some(verdict) => cells.extend([
                format!("{:+.1}", 100.0 * verdict.mean),
                format!("{:+.1} to {:+.1}", 100.0 * verdict.low, 100.0 * verdict.high),
                verdict.decision.to_string(),
            ]),
        }
        cells
    };
    pooled.iter().filter(|pooled| settings.contains(pooled.setting)).map(row).collect()
}

/// All pairs as CSV, in the order in which they came.
pub fn csv(all: &All) -> Result<Vec<u8>> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    let study = ["profile", "data", "images", "conditions", "sweep", "student", "size", "epochs"];
    let pair = ["setting", "seed", "alone", "distilled"];
    csv.write_record(["time", "name"].iter().chain(&study).chain(&pair))?;
    for row in &all.rows {
        let Some(Study { profile, data, images, conditions, sweep }) = all.studies.get(&row.study) else { continue };
        // A spreadsheet would take other texts for formulas.
        let data = if data.starts_with(char::is_alphanumeric) { data.clone() } else { format!("'{data}") };
        csv.write_record([
            &row.time,
            &row.name,
            profile,
            &data,
            &images.to_string(),
            conditions,
            &sweep.name,
            &sweep.student.to_string(),
            &sweep.size.to_string(),
            &sweep.epochs.to_string(),
            &row.setting,
            &row.seed.to_string(),
            &row.alone.to_string(),
            &row.distilled.to_string(),
        ])?;
    }
    Ok(csv.into_inner()?)
}
