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
/// class. The legend names the five most likely classes and the true one, `label` in [0, C). A second panel shows the
/// entropy of the soft targets in bits.
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
    // The most likely class first; the temperature does not change the order. Named classes have the palette's colours.
    let (mut lines, mut entries) = (Vec::new(), Vec::new());
    for (rank, &class) in order.iter().enumerate() {
        let is_label = label == Some(class as i64);
        let style = match rank < NAMED || is_label {
            true => stroke(color(entries.len()), if is_label { 4 } else { 2 }),
            false => stroke(OTHERS, 1),
        };
        if rank < NAMED || is_label {
            let name = short_name(&classes[class]);
            entries.push((if is_label { format!("{name} (label)") } else { name }, style));
        }
        lines.push((columns.iter().map(|(t, soft)| (*t, soft[class])).collect::<Vec<_>>(), style));
    }
    if lines.len() > entries.len() {
        entries.push((format!("{} others", lines.len() - entries.len()), stroke(OTHERS, 1)));
    }
    // The most likely ones are drawn last, over the others.
    lines.reverse();
    let (count, most) = (lines.len(), (lines.len() as f64).log2());
    let entropy = vec![(columns.iter().map(|(t, soft)| (*t, bits(soft))).collect(), stroke(color(0), 2))];
    let alt = "probability of each class over the temperature".to_owned();
    Ok(Figure::new([PANEL + LEGEND + ENTROPY, HEIGHT], alt, move |area| {
        let (left, rest) = area.split_horizontally(px(PANEL));
        let (middle, right) = rest.split_horizontally(px(LEGEND));
        panel(&left, "Soft targets: probability of each class", 1.0, &lines, Vec::new())?;
        legend(&middle, &entries)?;
        let uniform = TEMPERATURES.map(|t| (t, most)).to_vec();
        let title = format!("Entropy, bits (dashed: all {count} alike)");
        panel(&right, &title, most.max(0.5) * 1.06, &entropy, uniform)
    }))
}

fn legend(area: &Area, entries: &[(String, ShapeStyle)]) -> Drawn {
    area.draw(&Text::new("from top to bottom", (px(4), px(34)), text(12)))?;
    for (i, (name, style)) in entries.iter().enumerate() {
        let (x, y) = (px(4), px(60 + 20 * i as u32));
        area.draw(&PathElement::new([(x, y), (x + px(22), y)], *style))?;
        area.draw(&Text::new(name.clone(), (x + px(28), y), anchored(13, HPos::Left, VPos::Center)))?;
    }
    Ok(())
}

/// Draws lines over T, on a log axis, with a y axis from 0 to `top`; one more line is dashed.
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
