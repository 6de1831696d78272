//! How one image's soft targets change with the temperature.

use super::bars::one_image;
use super::canvas::{Area, Drawn, Figure, INK, anchored, chart, color, dashed, px, stroke, styled, text};
use super::similarity::finite;
use super::words::short_name;
use crate::Result;
use crate::train::soft_targets;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use tch::Tensor;

struct Softening {
    /// The most likely class first; the temperature does not change the order.
    lines: Vec<Line>,
    /// Bits, over T.
    entropy: Vec<(f64, f64)>,
}

struct Line {
    /// `None` for a class that is drawn in grey.
    name: Option<String>,
    is_label: bool,
    /// Probability over T.
    points: Vec<(f64, f64)>,
}

/// The range of T, as the explorer's.
const TEMPERATURES: [f64; 2] = [0.5, 20.0];
const TICKS: [f64; 6] = [0.5, 1.0, 2.0, 4.0, 10.0, 20.0];
const POINTS: usize = 120;
/// More names are hard to tell apart.
const NAMED: usize = 5;
/// Nominal pixels: both panels end at the same height.
const HEIGHT: u32 = 310;
const PANEL: u32 = 430;
const LEGEND: u32 = 170;
const ENTROPY: u32 = 280;
const OTHERS: RGBColor = RGBColor(185, 185, 185);

/// Draws `softmax(logits / T)` of one image's logits `[C]`, of any float kind, over T from 0.5 to 20: a line for each
/// class. The legend names the most likely five and the true one, `label` in [0, C). Beside it stands the entropy of
/// the soft targets in bits.
///
/// # Errors
/// When there are not as many logits as classes, one is not finite, or the label is not among the classes.
pub fn soft_targets_over_temperature(logits: &Tensor, classes: &[String], label: Option<i64>) -> Result<Figure> {
    let logits = finite(&one_image(logits, classes, label)?)?;
    let [low, high] = TEMPERATURES;
    let step = |i: usize| low * (high / low).powf(i as f64 / (POINTS - 1) as f64);
    let soft = |t: f64| Ok((t, Vec::<f64>::try_from(soft_targets(&logits, t)?)?));
    let columns = (0..POINTS).map(|i| soft(step(i))).collect::<Result<Vec<_>>>()?;
    let bits = |soft: &[f64]| -> f64 { soft.iter().filter(|&&p| p > 0.0).map(|p| -p * p.log2()).sum() };
    let mut order = (0..classes.len()).collect::<Vec<_>>();
    let scores = Vec::<f64>::try_from(&logits)?;
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let line = |(rank, &class): (usize, &usize)| {
        let is_label = label == Some(class as i64);
        let name = (rank < NAMED || is_label).then(|| short_name(&classes[class]));
        Line { name, is_label, points: columns.iter().map(|(t, soft)| (*t, soft[class])).collect() }
    };
    let lines = order.iter().enumerate().map(line).collect();
    let entropy = columns.iter().map(|(t, soft)| (*t, bits(soft))).collect();
    let softening = Softening { lines, entropy };
    let alt = "probability of each class over the temperature".to_owned();
    Ok(Figure::new([PANEL + LEGEND + ENTROPY, HEIGHT], alt, move |area| softening.draw(area)))
}

impl Softening {
    fn draw(&self, area: &Area) -> Drawn {
        let (soft, rest) = area.split_horizontally(px(PANEL));
        let (legend, entropy) = rest.split_horizontally(px(LEGEND));
        let mut lines: Vec<_> =
            self.lines.iter().enumerate().map(|(i, line)| (line.points.clone(), self.style(i))).collect();
        // The most likely ones last, over the others.
        lines.reverse();
        panel(&soft, "Soft targets: probability of each class", 1.0, &lines, Vec::new())?;
        self.legend(&legend)?;
        let most = (self.lines.len() as f64).log2();
        let uniform = TEMPERATURES.map(|t| (t, most)).to_vec();
        let title = format!("Entropy, bits (dashed: all {} alike)", self.lines.len());
        panel(&entropy, &title, most.max(0.5) * 1.06, &[(self.entropy.clone(), stroke(color(0), 2))], uniform)
    }

    /// Named lines have the colours of the palette in their order.
    fn style(&self, place: usize) -> ShapeStyle {
        let line = &self.lines[place];
        let named = self.lines[..place].iter().filter(|other| other.name.is_some()).count();
        match line.name {
            None => stroke(OTHERS, 1),
            Some(_) if line.is_label => stroke(color(named), 4),
            Some(_) => stroke(color(named), 2),
        }
    }

    fn legend(&self, area: &Area) -> Drawn {
        let others = self.lines.iter().filter(|line| line.name.is_none()).count();
        let named = self.lines.iter().enumerate().filter_map(|(i, line)| {
            let name = line.name.as_ref()?;
            Some((if line.is_label { format!("{name} (label)") } else { name.clone() }, self.style(i)))
        });
        let others = (others > 0).then(|| (format!("{others} others"), stroke(OTHERS, 1)));
        area.draw(&Text::new("from top to bottom", (px(4), px(34)), text(12)))?;
        for (i, (name, style)) in named.chain(others).enumerate() {
            let (x, y) = (px(4), px(60 + 20 * i as u32));
            area.draw(&PathElement::new([(x, y), (x + px(22), y)], style))?;
            area.draw(&Text::new(name, (x + px(28), y), anchored(13, HPos::Left, VPos::Center)))?;
        }
        Ok(())
    }
}

/// Lines over T, on a log axis, from 0 to `top`, and a dashed one.
fn panel(
    area: &Area,
    title: &str,
    top: f64,
    lines: &[(Vec<(f64, f64)>, ShapeStyle)],
    dashed_line: Vec<(f64, f64)>,
) -> Drawn {
    let [low, high] = TEMPERATURES;
    let mut chart = chart(area, (title, 15), [14, 8], [38, 44])
        .build_cartesian_2d((low..high).log_scale().with_key_points(TICKS.to_vec()), 0.0..top)?;
    let (plain, tenths) = (|t: &f64| t.to_string(), |y: &f64| format!("{y:.1}"));
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("temperature T").x_label_formatter(&plain).y_labels(6).y_label_formatter(&tenths);
    styled(&mut mesh).draw()?;
    chart.draw_series(dashed(dashed_line, INK))?;
    for (points, style) in lines {
        chart.draw_series(LineSeries::new(points.iter().copied(), *style))?;
    }
    Ok(())
}
