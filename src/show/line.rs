//! One line through points of the reader's own, with labelled axes.

use super::figure::{Area, Drawing, Figure, Pen, color, styled};
use crate::{Error, Result};
use plotters::prelude::*;

/// Up to this many points are marked with a dot each.
const DOTS: usize = 40;

pub(super) struct Line {
    /// Runs of neighbouring points; between two of them the line has a gap.
    pieces: Vec<Vec<(f64, f64)>>,
    x: (f64, f64),
    y: (f64, f64),
}

/// A number that [`plot`] takes.
pub trait Number: Copy {
    fn to_f64(self) -> f64;
}

macro_rules! numbers {
    ($($kind:ty)*) => { $(impl Number for $kind {
        fn to_f64(self) -> f64 {
            self as f64
        }
    })* };
}

numbers!(f64 f32 i8 i16 i32 i64 isize u8 u16 u32 u64 usize);

/// Draws `y` over `x` as one line, in the order given: `plot(&epochs, &losses)`. Both are slices, arrays or `Vec`s of any
/// number type. A NaN or an infinite value leaves a gap in the line.
///
/// # Errors
/// When the lengths differ, or no point has two finite values.
pub fn plot<X: Number, Y: Number>(x: &[X], y: &[Y]) -> Result<Figure> {
    let floats = |x: &[X]| x.iter().map(|&v| v.to_f64()).collect::<Vec<_>>();
    line(&floats(x), &y.iter().map(|&v| v.to_f64()).collect::<Vec<_>>())
}

fn line(x: &[f64], y: &[f64]) -> Result<Figure> {
    if x.len() != y.len() {
        return Err(Error::Input(format!(
            "x has {} values and y has {}; give one y for each x, such as plot(&epochs, &losses)",
            x.len(),
            y.len()
        )));
    }
    if x.is_empty() {
        return Err(Error::Input("x and y are empty; give at least one point".into()));
    }
    let points: Vec<_> = x.iter().copied().zip(y.iter().copied()).collect();
    let finite = |&(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    let pieces: Vec<Vec<_>> =
        points.split(|p| !finite(p)).filter(|piece| !piece.is_empty()).map(<[_]>::to_vec).collect();
    if pieces.is_empty() {
        return Err(Error::Input(format!(
            "none of the {} points has a finite x and a finite y; look for a division by zero or a NaN before plotting",
            x.len()
        )));
    }
    let x = range("x", pieces.iter().flatten().map(|p| p.0))?;
    let y = range("y", pieces.iter().flatten().map(|p| p.1))?;
    Ok(Figure::new(640, 360, Drawing::Line(Line { pieces, x, y })))
}

/// The axis of these values, with a margin, also where all are equal.
fn range(name: &str, values: impl Iterator<Item = f64>) -> Result<(f64, f64)> {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    let largest = low.abs().max(high.abs());
    // plotters counts in steps of the axis, which overflow or vanish in values near the ends of f64.
    if largest > 1e290 || (largest > 0.0 && largest < 1e-290) {
        return Err(Error::Input(format!(
            "{name} runs from {low:e} to {high:e}; an axis takes sizes from 1e-290 to 1e290, so scale it first"
        )));
    }
    let margin = match (high - low) * 0.05 {
        0.0 if largest == 0.0 => 1.0,
        0.0 => largest * 0.05,
        margin => margin.max(largest * 1e-6),
    };
    Ok((low - margin, high + margin))
}

/// A tick's label: as many decimals as tell neighbours apart, powers of ten where they would be many.
fn tick(value: f64, (low, high): (f64, f64)) -> String {
    let (span, largest) = (high - low, low.abs().max(high.abs()));
    let value = if value.abs() < span * 1e-9 { 0.0 } else { value };
    if largest >= 1e6 || span < 1e-3 {
        // A value that differs later than in its eighth digit is as good as constant; `range` leaves no narrower axis.
        let digits = ((largest / span).log10().ceil() + 1.0).clamp(1.0, 8.0) as usize;
        return if value == 0.0 { "0".into() } else { format!("{value:.digits$e}") };
    }
    let decimals = (1.0 - span.log10().floor()).clamp(0.0, 5.0) as usize;
    format!("{value:.decimals$}")
}

impl Line {
    pub(super) fn alt(&self) -> String {
        let points = self.pieces.iter().map(Vec::len).sum::<usize>();
        let ends = |f: fn(&(f64, f64)) -> f64| {
            let values = self.pieces.iter().flatten().map(f);
            let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
            format!("{} to {}", super::short(low), super::short(high))
        };
        format!("line through {points} points, x from {}, y from {}", ends(|p| p.0), ends(|p| p.1))
    }

    pub(super) fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, pen: Pen) -> std::result::Result<(), String> {
        self.chart(area, pen).map_err(|e| e.to_string())
    }

    fn chart<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let mut chart = ChartBuilder::on(area)
            .margin(pen.px(14))
            .margin_right(pen.px(48))
            .x_label_area_size(pen.px(40))
            .y_label_area_size(pen.px(78))
            .build_cartesian_2d(self.x.0..self.x.1, self.y.0..self.y.1)?;
        let (across, up) = (|v: &f64| tick(*v, self.x), |v: &f64| tick(*v, self.y));
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("x").y_desc("y").x_labels(6).y_labels(7).x_label_formatter(&across).y_label_formatter(&up);
        styled(&mut mesh, pen).draw()?;
        let few = self.pieces.iter().map(Vec::len).sum::<usize>() <= DOTS;
        for piece in &self.pieces {
            chart.draw_series(LineSeries::new(piece.iter().copied(), pen.line(color(0))))?;
            // A point without neighbours has no line.
            let dots = piece.iter().filter(|_| few || piece.len() == 1);
            chart.draw_series(dots.map(|&p| Circle::new(p, pen.px(3), color(0).filled())))?;
        }
        Ok(())
    }
}
