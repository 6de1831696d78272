//! Loss and accuracy over epochs, any number of fits in one figure.

use super::figure::{Area, Drawing, Figure, Pen, color, styled};
use crate::distill::{EpochRecord, History};
use crate::{Error, Result};
use plotters::prelude::*;

pub(super) struct Curves(Vec<History>);

/// Loss (left) and accuracy (right) over epochs: validation solid, training dashed, the kept epoch marked.
pub fn curves(histories: &[&History]) -> Result<Figure> {
    if histories.iter().all(|h| h.records.is_empty()) {
        return Err(Error::Input("no finished epoch to draw yet".into()));
    }
    let histories: Vec<History> = histories.iter().map(|&h| h.clone()).collect();
    let height = 330 + 18 * histories.len() as u32;
    Ok(Figure::new(880, height, Drawing::Curves(Curves(histories))))
}

struct Panel {
    title: &'static str,
    value: fn(&EpochRecord) -> (f64, f64), // (training, validation)
}

impl Curves {
    pub(super) fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, pen: Pen) -> std::result::Result<(), String> {
        let (plots, legend) = area.split_vertically(pen.px(322));
        let (left, right) = plots.split_horizontally(pen.px(440));
        let loss = Panel { title: "Cross-entropy", value: |r| (r.train.cross_entropy, r.validation.cross_entropy) };
        let accuracy =
            Panel { title: "Accuracy, %", value: |r| (100.0 * r.train.accuracy, 100.0 * r.validation.accuracy) };
        self.panel(&left, pen, &loss).map_err(|e| e.to_string())?;
        self.panel(&right, pen, &accuracy).map_err(|e| e.to_string())?;
        self.legend(&legend, pen).map_err(|e| e.to_string())
    }

    fn panel<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
        panel: &Panel,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let records = || self.0.iter().flat_map(|h| &h.records);
        let values = records().flat_map(|r| [(panel.value)(r).0, (panel.value)(r).1]).filter(|v| v.is_finite());
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let margin = ((high - low) * 0.06).max(high.abs() * 0.01).max(1e-3);
        let epochs = self.0.iter().map(|h| h.epochs).max().unwrap_or(1).max(2) as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(panel.title, pen.text(16))
            .margin(pen.px(8))
            .x_label_area_size(pen.px(38))
            .y_label_area_size(pen.px(48))
            .build_cartesian_2d(0.8..epochs + 0.2, low - margin..high + margin)?;
        let whole = |x: &f64| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() };
        let number = |y: &f64| match high - low {
            0.0..2.0 => format!("{y:.2}"),
            2.0..12.0 => format!("{y:.1}"),
            _ => format!("{y:.0}"),
        };
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("epoch").x_labels(epochs.min(12.0) as usize).x_label_formatter(&whole).y_label_formatter(&number);
        styled(&mut mesh, pen).draw()?;
        for (i, history) in self.0.iter().enumerate() {
            let point = |r: &EpochRecord| (r.epoch as f64, (panel.value)(r));
            let train = history.records.iter().map(|r| (point(r).0, point(r).1.0));
            let validation: Vec<_> = history.records.iter().map(|r| (point(r).0, point(r).1.1)).collect();
            let (dash, gap) = (pen.px(5), pen.px(4));
            chart.draw_series(DashedLineSeries::new(train, dash, gap, color(i).stroke_width(pen.px(1))))?;
            chart.draw_series(LineSeries::new(validation.iter().copied(), pen.line(color(i))))?;
            chart.draw_series(validation.iter().map(|&p| Circle::new(p, pen.px(2), color(i).filled())))?;
            if let Some(best) = history.best() {
                let at = (best.epoch as f64, (panel.value)(best).1);
                chart.draw_series([Circle::new(at, pen.px(6), color(i).stroke_width(pen.px(2)))])?;
            }
        }
        Ok(())
    }

    fn legend<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        for (i, history) in self.0.iter().enumerate() {
            let y = pen.px(2 + 18 * i as u32) as i32;
            let x = pen.px(56) as i32;
            let middle = y + pen.px(6) as i32;
            area.draw(&PathElement::new([(x, middle), (x + pen.px(24) as i32, middle)], pen.line(color(i))))?;
            let best = history.best().map_or(String::new(), |b| {
                format!(": best {:.1} % in epoch {}", 100.0 * b.validation.accuracy, b.epoch)
            });
            let note = if i == 0 { "   (solid validation, dashed training, ring = kept weights)" } else { "" };
            area.draw_text(&format!("{}{best}{note}", history.name), &pen.text(13), (x + pen.px(32) as i32, y))?;
        }
        Ok(())
    }
}
