//! Loss, accuracy and learning rate over epochs, any number of fits in one figure.

use super::canvas::{Area, Drawn, Figure, INK, anchored, chart, color, dashed, px, range, stroke, styled};
use super::canvas::{text, text_color};
use super::words::{percent, short};
use crate::train::{Change, EpochRecord, History, Metrics};
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

struct Curves {
    curves: Vec<Curve>,
    /// Where the epoch axis begins.
    from: f64,
}

/// The curve of one fit, finished or running.
#[derive(Clone)]
pub(super) struct Curve {
    pub history: History,
    /// Epochs done so far, and the training metrics of the one that is running.
    pub running: Option<(f64, Metrics)>,
    /// Learning rate before the schedule, for a fit without an epoch or a change that says so.
    pub learning_rate: f64,
}

/// Draws loss (left) and accuracy (right) over epochs. Validation is solid, training dashed; a ring marks the epoch
/// whose weights were kept. A thin vertical line marks each change of temperature, alpha or learning rate. Where a
/// fit's recipe changes the learning rate, it is drawn below.
///
/// # Errors
/// When no fit has a finished epoch.
pub fn curves(histories: &[&History]) -> Result<Figure> {
    if histories.iter().all(|h| h.records.is_empty()) {
        return Err(Error::Input("no finished epoch to draw yet".into()));
    }
    let early = |h: &&&History| h.recipe.varies_rate() || h.changes.iter().any(|change| change.epoch < 0.8);
    let from = if histories.iter().any(|h| early(&h)) { 0.0 } else { 0.8 };
    let finished = |&h: &&History| Curve { history: h.clone(), running: None, learning_rate: f64::NAN };
    Ok(figure(Curves { curves: histories.iter().map(finished).collect(), from }))
}

/// The curves of fits while they run, from the first batch on, and always in the same frame.
pub(super) fn running_curves(curves: Vec<Curve>) -> Figure {
    figure(Curves { curves, from: 0.0 })
}

fn figure(curves: Curves) -> Figure {
    let run = |h: &History| match h.best() {
        Some(best) => {
            let accuracy = percent(best.validation.accuracy, 1);
            format!("{}, best {accuracy} % in epoch {} of {}", h.name, best.epoch, h.epochs)
        }
        None => format!("{}, no finished epoch of {}", h.name, h.epochs),
    };
    let runs: Vec<_> = curves.histories().map(run).collect();
    let and_rate = if curves.has_rates() { ", with the learning rate" } else { "" };
    let alt = format!("cross-entropy and accuracy over epochs{and_rate}: {}", runs.join("; "));
    let height = curves.plots() + 8 + 18 * curves.curves.len() as u32;
    Figure::new([880, height], alt, move |area| curves.draw(area))
}

/// What a panel shows.
struct Quantity {
    title: &'static str,
    value: fn(&Metrics) -> f64,
    /// The y axis of a fit that has nothing to show yet.
    empty: (f64, f64),
}

/// Nominal pixels: the width of a panel, the space on the plot's left side, the margin.
const PANEL: u32 = 440;
const LEFT: u32 = 56;
const MARGIN: u32 = 8;
/// Height of loss and accuracy, and of the learning rate below them.
const CURVES: u32 = 322;
const RATES: u32 = 96;
/// Points that draw a learning rate, at most.
const POINTS: usize = 500;
/// Height of a line of labels, and about that of the plot: their ratio is the share of the plot that a line takes.
const LINE: u32 = 15;
const PLOT: f64 = 235.0;
/// More lines of labels would leave too little of the plot.
const LINES: usize = 5;

/// Labels of the epoch axis: whole epochs alone.
fn whole(epoch: &f64) -> String {
    if epoch.fract() == 0.0 { format!("{epoch:.0}") } else { String::new() }
}

/// A vertical line with its label: one change, or several of one run that are too close to tell apart.
struct Mark {
    run: usize,
    change: Change,
    text: String,
    /// Nominal pixels from the plot's left end, and line from its top.
    x: f64,
    line: usize,
}

impl Curves {
    fn draw(&self, area: &Area) -> Drawn {
        let (plots, legend) = area.split_vertically(px(self.plots()));
        let (curves, rates) = plots.split_vertically(px(CURVES));
        if self.has_rates() {
            let (left, right) = rates.split_horizontally(px(PANEL));
            self.rates(&left)?;
            self.rates(&right)?;
        }
        let (left, right) = curves.split_horizontally(px(PANEL));
        let loss = Quantity { title: "Cross-entropy", value: |m| m.cross_entropy, empty: (0.0, 2.5) };
        let accuracy = Quantity { title: "Accuracy, %", value: |m| 100.0 * m.accuracy, empty: (0.0, 50.0) };
        self.panel(&left, &loss)?;
        self.panel(&right, &accuracy)?;
        self.legend(&legend)
    }

    fn histories(&self) -> impl Iterator<Item = &History> {
        self.curves.iter().map(|curve| &curve.history)
    }

    /// Whether a recipe changes the learning rate.
    fn has_rates(&self) -> bool {
        self.histories().any(|history| history.recipe.varies_rate())
    }

    /// Height of everything but the legend, in nominal pixels.
    fn plots(&self) -> u32 {
        CURVES + if self.has_rates() { RATES } else { 0 }
    }

    /// The learning rate of each step so far, on the epoch axis of the curves above.
    fn rates(&self, area: &Area) -> Drawn {
        // The rate of steps from the first on, evenly spread, up to so many epochs.
        let line = |Curve { history, learning_rate, .. }: &Curve, epochs: f64| {
            let per_epoch = history.steps_per_epoch.max(1) as f64;
            let last = ((epochs * per_epoch).round() - 1.0).max(0.0);
            let points = (last as usize + 1).clamp(2, POINTS);
            let epoch = |i: usize| (last * i as f64 / (points - 1) as f64).round() / per_epoch;
            let point = |i| (epoch(i), history.learning_rate(epoch(i), *learning_rate));
            (0..points).map(point).filter(|(_, rate)| rate.is_finite()).collect::<Vec<_>>()
        };
        // The axis has room for the rates of the whole run.
        let planned = self.curves.iter().flat_map(|curve| line(curve, curve.history.epochs as f64));
        let (_, highest) = range(planned.map(|(_, rate)| rate));
        let top = 1.15 * if highest > 0.0 { highest } else { 1.0 };
        let mut chart = chart(area, ("Learning rate", 12), [MARGIN, MARGIN / 2], [16, 52])
            .build_cartesian_2d(self.from..self.epochs() + 0.2, 0.0..top)?;
        let mut mesh = chart.configure_mesh();
        let epochs = self.epochs().min(12.0) as usize;
        mesh.x_labels(epochs).x_label_formatter(&whole).y_labels(3).y_label_formatter(&|rate| short(*rate));
        styled(&mut mesh).draw()?;
        for (i, curve) in self.curves.iter().enumerate() {
            let done = curve.running.map_or(curve.history.records.len() as f64, |(epoch, _)| epoch);
            chart.draw_series(LineSeries::new(line(curve, done), stroke(color(i), 2)))?;
        }
        Ok(())
    }

    fn epochs(&self) -> f64 {
        self.histories().map(|h| h.epochs).max().unwrap_or(1).max(2) as f64
    }

    /// All changes, each with a label that neither overlaps another one nor leaves the plot. `plot` is the width of the
    /// plot, `width` that of a text, in nominal pixels.
    fn marks(&self, plot: f64, width: &dyn Fn(&str) -> f64) -> Vec<Mark> {
        let scale = plot / (self.epochs() + 0.2 - self.from);
        let mut near = 4.0 / scale;
        loop {
            let mut marks = self.merged(near);
            for i in 0..marks.len() {
                let (placed, rest) = marks.split_at_mut(i);
                let mark = &mut rest[0];
                let (at, wide) = ((mark.change.epoch - self.from) * scale, width(&mark.text));
                // To the right of its line, or to the left where it would leave the plot.
                mark.x = if at + 4.0 + wide < plot { at + 4.0 } else { (at - 4.0 - wide).max(0.0) };
                let apart = |other: &Mark| other.x > mark.x + wide + 6.0 || other.x + width(&other.text) + 6.0 < mark.x;
                // The vertical line ends at its label, so it may not cross a label above that.
                let crosses = |other: &Mark| other.x <= at && at <= other.x + width(&other.text);
                let free = |line: &usize| {
                    placed.iter().all(|o| (o.line != *line || apart(o)) && (o.line < *line || !crosses(o)))
                };
                mark.line = (0..).find(free).unwrap_or(0);
            }
            // With too many lines of labels, more changes share a label.
            if marks.iter().all(|mark| mark.line < LINES) || near > self.epochs() {
                return marks;
            }
            near *= 1.5;
        }
    }

    /// The changes of each run, those within `near` epochs of the first of them merged into one.
    fn merged(&self, near: f64) -> Vec<Mark> {
        let mut marks: Vec<Mark> = Vec::new();
        for (run, history) in self.histories().enumerate() {
            for &change in &history.changes {
                match marks.last_mut().filter(|m| m.run == run && change.epoch - m.change.epoch < near) {
                    Some(mark) => mark.change.after = change.after,
                    None => marks.push(Mark { run, change, text: String::new(), x: 0.0, line: 0 }),
                }
            }
        }
        marks.iter_mut().for_each(|mark| mark.text = mark.change.to_string());
        marks.sort_by(|a, b| a.change.epoch.total_cmp(&b.change.epoch));
        marks
    }

    fn panel(&self, area: &Area, shown: &Quantity) -> Drawn {
        let records = || self.histories().flat_map(|h| &h.records);
        let values = records().flat_map(|r| [(shown.value)(&r.train), (shown.value)(&r.validation)]);
        let values = values
            .chain(self.curves.iter().filter_map(|c| Some((shown.value)(&c.running?.1))))
            .filter(|v| v.is_finite());
        let (low, high) = range(values);
        let (low, high) = if low > high { shown.empty } else { (low, high) };
        let small = text(11);
        let width = |text: &str| {
            let (wide, _) = area.estimate_text_size(text, &small).unwrap_or_default();
            f64::from(wide) / f64::from(px(1))
        };
        let plot = f64::from(PANEL - LEFT - MARGIN);
        let marks = self.marks(plot, &width);
        let labels = || marks.iter().filter(|mark| mark.line < LINES && !mark.text.is_empty());
        let lines = labels().map(|mark| mark.line + 1).max().unwrap_or(0) as f64;
        let margin = ((high - low) * 0.06).max(high.abs() * 0.01).max(1e-3);
        // Room above the curves for the labels.
        let share = lines * f64::from(LINE) / PLOT;
        let top = high + margin + (high - low + 2.0 * margin) * share / (1.0 - share);
        let mut chart = chart(area, (shown.title, 16), [MARGIN, MARGIN], [38, 48])
            .build_cartesian_2d(self.from..self.epochs() + 0.2, low - margin..top)?;
        let number = |y: &f64| match high - low {
            0.0..0.1 => format!("{y:.3}"),
            0.1..2.0 => format!("{y:.2}"),
            2.0..12.0 => format!("{y:.1}"),
            _ => format!("{y:.0}"),
        };
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("epoch")
            .x_labels((self.epochs() + 1.0 - self.from.ceil()).min(12.0) as usize)
            .x_label_formatter(&whole)
            .y_label_formatter(&number);
        styled(&mut mesh).draw()?;
        for mark in &marks {
            let end = top - (top - low + margin) * (mark.line.min(LINES) as u32 * LINE) as f64 / PLOT;
            let upright = [(mark.change.epoch, low - margin), (mark.change.epoch, end)];
            chart.draw_series([PathElement::new(upright, stroke(color(mark.run).mix(0.6), 1))])?;
        }
        for (i, Curve { history, running, .. }) in self.curves.iter().enumerate() {
            let point = |r: &EpochRecord, m: &Metrics| (r.epoch as f64, (shown.value)(m));
            let mut train: Vec<_> = history.records.iter().map(|r| point(r, &r.train)).collect();
            let validation: Vec<_> = history.records.iter().map(|r| point(r, &r.validation)).collect();
            if let Some((epoch, metrics)) = running {
                let now = (*epoch, (shown.value)(metrics));
                train.push(now);
                chart.draw_series([Circle::new(now, px(3), stroke(color(i), 1))])?;
            }
            chart.draw_series(dashed(train, color(i)))?;
            chart.draw_series(LineSeries::new(validation.iter().copied(), stroke(color(i), 2)))?;
            chart.draw_series(validation.iter().map(|&p| Circle::new(p, px(2), color(i).filled())))?;
            let ring = history.best().map(|best| point(best, &best.validation));
            chart.draw_series(ring.map(|at| Circle::new(at, px(6), stroke(color(i), 2))))?;
        }
        // The plot's corner from that of the figure, and this panel's corner.
        let ((x0, y0), corner) = (chart.backend_coord(&(self.from, top)), area.get_base_pixel());
        for mark in labels() {
            let device = |nominal: f64| (nominal * f64::from(px(1))) as i32;
            let (x, y) = (x0 - corner.0 + device(mark.x), y0 - corner.1 + px(2 + LINE * mark.line as u32));
            let ink = if self.curves.len() > 1 { text_color(mark.run) } else { INK };
            let style = anchored(11, HPos::Left, VPos::Top).color(&ink);
            let (right, below) = (x + device(width(&mark.text)), y + px(LINE - 2));
            area.draw(&Rectangle::new([(x, y), (right, below)], WHITE.filled()))?;
            area.draw(&Text::new(mark.text.clone(), (x, y), style))?;
        }
        Ok(())
    }

    fn legend(&self, area: &Area) -> Drawn {
        for (i, history) in self.histories().enumerate() {
            let (x, y) = (px(LEFT), px(2 + 18 * i as u32));
            let sample = [(x, y + px(6)), (x + px(24), y + px(6))];
            area.draw(&PathElement::new(sample, stroke(color(i), 2)))?;
            let best = history.best().map_or(String::new(), |b| {
                format!(": best {} % in epoch {}", percent(b.validation.accuracy, 1), b.epoch)
            });
            let note = if i == 0 { "   (solid validation, dashed training, ring = kept weights)" } else { "" };
            area.draw_text(&format!("{}{best}{note}", history.name), &text(13), (x + px(32), y))?;
        }
        Ok(())
    }
}
