//! Reliability diagrams: how often a model is right where it is so sure.

use super::figure::{Area, Drawing, Figure, INK, Pen, color, styled};
use crate::study::ReportCard;
use crate::train::Calibration;
use crate::{Error, Result};
use plotters::prelude::*;

/// One panel per model.
pub(super) struct Reliability(Vec<(String, Calibration)>);

const WIDTH: u32 = 290;
const PLOT: u32 = 265;
const SHARES: u32 = 110;

/// A panel for each model of the card. Above, accuracy over confidence: on the dashed line confidence can be believed; orange
/// is what a bin lacks in accuracy, green what it has more than it says. Below, the share of images in each bin.
pub fn reliability_diagram(card: &ReportCard) -> Result<Figure> {
    if card.rows.is_empty() {
        return Err(Error::Input("a report card without a model has no reliability diagram".into()));
    }
    let panels: Vec<_> = card.rows.iter().map(|r| (r.model.clone(), r.calibration.clone())).collect();
    let columns = panels.len().min(3) as u32;
    let rows = (panels.len() as u32).div_ceil(columns);
    Ok(Figure::new(columns * WIDTH, rows * (PLOT + SHARES), Drawing::Reliability(Reliability(panels))))
}

impl Reliability {
    pub(super) fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, pen: Pen) -> std::result::Result<(), String> {
        let columns = self.0.len().min(3);
        for ((name, calibration), cell) in
            self.0.iter().zip(area.split_evenly((self.0.len().div_ceil(columns), columns)))
        {
            panel(&cell, pen, name, calibration).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

fn panel<DB: DrawingBackend>(
    area: &Area<DB>,
    pen: Pen,
    name: &str,
    calibration: &Calibration,
) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let (above, below) = area.split_vertically(pen.px(PLOT));
    let bins = &calibration.bins;
    let step = 1.0 / bins.len() as f64;
    let bar = |m: usize, from: f64, to: f64, fill: ShapeStyle| {
        Rectangle::new([((m as f64 + 0.08) * step, from), ((m as f64 + 0.92) * step, to)], fill)
    };
    let filled = || bins.iter().enumerate().filter(|(_, bin)| bin.samples > 0);

    let mut chart = ChartBuilder::on(&above)
        .caption(format!("{name}: ECE {:.1} %", 100.0 * calibration.ece), pen.text(14))
        .margin(pen.px(8))
        .margin_right(pen.px(16))
        .x_label_area_size(pen.px(20))
        .y_label_area_size(pen.px(50))
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    let tenths = |v: &f64| format!("{v:.1}");
    let mut mesh = chart.configure_mesh();
    mesh.y_desc("accuracy").x_labels(6).y_labels(6).x_label_formatter(&tenths).y_label_formatter(&tenths);
    styled(&mut mesh, pen).draw()?;
    // What can be believed, then the gap between what it says and what is true.
    let (sure, unsure) = (color(1).mix(0.5).filled(), color(2).mix(0.6).filled());
    chart.draw_series(filled().map(|(m, b)| bar(m, 0.0, b.accuracy.min(b.confidence), color(0).filled())))?;
    chart.draw_series(filled().map(|(m, b)| {
        let style = if b.confidence > b.accuracy { sure } else { unsure };
        bar(m, b.accuracy.min(b.confidence), b.accuracy.max(b.confidence), style)
    }))?;
    let (dash, gap) = (pen.px(5), pen.px(4));
    chart.draw_series(DashedLineSeries::new([(0.0, 0.0), (1.0, 1.0)], dash, gap, INK.stroke_width(pen.px(1))))?;
    for (line, (text, style)) in [("too sure", sure), ("not sure enough", unsure)].into_iter().enumerate() {
        let (x, y) = (pen.px(68) as i32, pen.px(40 + 16 * line as u32) as i32);
        let side = pen.px(10) as i32;
        above.draw(&Rectangle::new([(x, y), (x + side, y + side)], style))?;
        above.draw(&Text::new(text, (x + pen.px(15) as i32, y - pen.px(2) as i32), pen.text(12)))?;
    }

    let total = bins.iter().map(|bin| bin.samples).sum::<usize>().max(1) as f64;
    let share = |samples: usize| 100.0 * samples as f64 / total;
    let top = bins.iter().map(|bin| share(bin.samples)).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&below)
        .margin(pen.px(8))
        .margin_right(pen.px(16))
        .x_label_area_size(pen.px(36))
        .y_label_area_size(pen.px(50))
        .build_cartesian_2d(0.0..1.0, 0.0..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("confidence")
        .y_desc("images, %")
        .x_labels(6)
        .y_labels(3)
        .x_label_formatter(&tenths)
        .y_label_formatter(&|v| format!("{v:.0}"));
    styled(&mut mesh, pen).draw()?;
    chart.draw_series(filled().map(|(m, bin)| bar(m, 0.0, share(bin.samples), color(6).filled())))?;
    Ok(())
}
