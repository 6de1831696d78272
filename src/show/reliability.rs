//! Reliability diagrams: accuracy over confidence.

use super::canvas::{Area, Drawn, Figure, INK, chart, color, dashed, px, styled, text};
use super::words::percent;
use crate::study::ReportCard;
use crate::train::Calibration;
use crate::{Error, Result};
use plotters::prelude::*;

const WIDTH: u32 = 290;
const PLOT: u32 = 265;
const SHARES: u32 = 110;

/// Draws a panel for each model of the card. Its upper part shows accuracy over confidence, which are equal on the
/// dashed line: orange marks the gap of a bin whose confidence is too high, green of one whose confidence is too low.
/// The lower part shows the share of images in each bin. Source: Guo et al., "On Calibration of Modern Neural
/// Networks", 2017.
///
/// # Errors
/// When the card has no model.
pub fn reliability_diagram(card: &ReportCard) -> Result<Figure> {
    if card.rows.is_empty() {
        return Err(Error::Input("a report card without a model has no reliability diagram".into()));
    }
    let panels: Vec<_> = card.rows.iter().map(|r| (r.model.clone(), r.calibration.clone())).collect();
    let columns = panels.len().min(3);
    let rows = panels.len().div_ceil(columns);
    let size = [columns as u32 * WIDTH, rows as u32 * (PLOT + SHARES)];
    Ok(Figure::new(size, "reliability diagram: accuracy over confidence".into(), move |area| {
        let places = area.split_evenly((rows, columns));
        panels.iter().zip(places).try_for_each(|((name, calibration), place)| panel(&place, name, calibration))
    }))
}

fn panel(area: &Area, name: &str, calibration: &Calibration) -> Drawn {
    let (above, below) = area.split_vertically(px(PLOT));
    let bins = &calibration.bins;
    let step = 1.0 / bins.len() as f64;
    let bar = |m: usize, from: f64, to: f64, fill: ShapeStyle| {
        Rectangle::new([((m as f64 + 0.08) * step, from), ((m as f64 + 0.92) * step, to)], fill)
    };
    let filled = || bins.iter().enumerate().filter(|(_, bin)| bin.samples > 0);

    let title = format!("{name}: ECE {} %", percent(calibration.ece, 1));
    let mut plot = chart(&above, (&title, 14), [16, 8], [20, 50]).build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    let tenths = |v: &f64| format!("{v:.1}");
    let mut mesh = plot.configure_mesh();
    mesh.y_desc("accuracy").x_labels(6).y_labels(6).x_label_formatter(&tenths).y_label_formatter(&tenths);
    styled(&mut mesh).draw()?;
    // The lower of accuracy and confidence, then the gap between them.
    let (sure, unsure) = (color(1).mix(0.5).filled(), color(2).mix(0.6).filled());
    plot.draw_series(filled().map(|(m, b)| bar(m, 0.0, b.accuracy.min(b.confidence), color(0).filled())))?;
    plot.draw_series(filled().map(|(m, b)| {
        let style = if b.confidence > b.accuracy { sure } else { unsure };
        bar(m, b.accuracy.min(b.confidence), b.accuracy.max(b.confidence), style)
    }))?;
    plot.draw_series(dashed(vec![(0.0, 0.0), (1.0, 1.0)], INK))?;
    for (line, (label, style)) in [("too sure", sure), ("not sure enough", unsure)].into_iter().enumerate() {
        let (x, y, side) = (px(68), px(40 + 16 * line as u32), px(10));
        above.draw(&Rectangle::new([(x, y), (x + side, y + side)], style))?;
        above.draw(&Text::new(label, (x + px(15), y - px(2)), text(12)))?;
    }

    let total = bins.iter().map(|bin| bin.samples).sum::<usize>().max(1) as f64;
    let share = |samples: usize| 100.0 * samples as f64 / total;
    let top = bins.iter().map(|bin| share(bin.samples)).fold(1.0, f64::max) * 1.1;
    let mut plot = chart(&below, ("", 0), [16, 8], [36, 50]).build_cartesian_2d(0.0..1.0, 0.0..top)?;
    let whole = |v: &f64| format!("{v:.0}");
    let mut mesh = plot.configure_mesh();
    mesh.x_desc("confidence").y_desc("images, %").x_labels(6).y_labels(3);
    mesh.x_label_formatter(&tenths).y_label_formatter(&whole);
    styled(&mut mesh).draw()?;
    plot.draw_series(filled().map(|(m, bin)| bar(m, 0.0, share(bin.samples), color(6).filled())))?;
    Ok(())
}
