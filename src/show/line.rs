//! One line through given points, with labelled axes.

use super::canvas::{Figure, chart, color, px, range, stroke, styled};
use super::words::short;
use crate::{Error, Result};
use num_traits::AsPrimitive;
use plotters::prelude::*;

/// Up to this many points are marked with a dot each.
const DOTS: usize = 40;

/// Draws `y` over `x` as one line, in the order given: `plot(&epochs, &losses, ["epoch", "loss"])`. Both are slices,
/// arrays or `Vec`s of any number type. A NaN or an infinite value leaves a gap in the line. `names` stand at the two
/// axes.
///
/// # Errors
/// When the lengths differ, no point has two finite values, or an axis would leave the range of 1e-290 to 1e290.
pub fn plot<X: AsPrimitive<f64>, Y: AsPrimitive<f64>>(x: &[X], y: &[Y], names: [&str; 2]) -> Result<Figure> {
    line(x.iter().map(|v| v.as_()).collect(), y.iter().map(|v| v.as_()).collect(), names.map(str::to_owned))
}

fn line(x: Vec<f64>, y: Vec<f64>, names: [String; 2]) -> Result<Figure> {
    let count = x.len();
    if count != y.len() {
        return Err(Error::Input(format!(
            "x has {count} values and y has {}; give one y for each x, such as plot(&epochs, &losses, [\"epoch\", \
             \"loss\"])",
            y.len()
        )));
    }
    if x.is_empty() {
        return Err(Error::Input("x and y are empty; give at least one point".into()));
    }
    let points: Vec<(f64, f64)> = x.into_iter().zip(y).collect();
    let pieces = points.split(|(x, y)| !x.is_finite() || !y.is_finite()).filter(|piece| !piece.is_empty());
    let pieces: Vec<Vec<_>> = pieces.map(<[_]>::to_vec).collect();
    if pieces.is_empty() {
        return Err(Error::Input(format!(
            "none of the {count} points has a finite x and a finite y; look for a division by zero or a NaN before \
             plotting"
        )));
    }
    let (xs, ys) = (pieces.iter().flatten().map(|p| p.0), pieces.iter().flatten().map(|p| p.1));
    let [x_name, y_name] = names;
    let (x, y) = (axis(&x_name, xs.clone())?, axis(&y_name, ys.clone())?);
    let (count, (left, right), (low, high)) = (xs.clone().count(), range(xs), range(ys));
    let [left, right, low, high] = [left, right, low, high].map(short);
    let alt = format!("line through {count} points, {x_name} from {left} to {right}, {y_name} from {low} to {high}");
    Ok(Figure::new([640, 360], alt, move |area| {
        let mut chart = chart(area, ("", 0), [48, 14], [40, 78]).build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        let (across, up) = (|v: &f64| tick(*v, x), |v: &f64| tick(*v, y));
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(&x_name).y_desc(&y_name).x_labels(6).y_labels(7).x_label_formatter(&across).y_label_formatter(&up);
        styled(&mut mesh).draw()?;
        for piece in &pieces {
            chart.draw_series(LineSeries::new(piece.iter().copied(), stroke(color(0), 2)))?;
            // A point without neighbours has no line.
            let dots = piece.iter().filter(|_| count <= DOTS || piece.len() == 1);
            chart.draw_series(dots.map(|&p| Circle::new(p, px(3), color(0).filled())))?;
        }
        Ok(())
    }))
}

/// The range of an axis for these values, with a margin even if all are equal.
fn axis(name: &str, values: impl Iterator<Item = f64>) -> Result<(f64, f64)> {
    let (low, high) = range(values);
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

/// A tick's label: with as many decimals as neighbours need to differ, or as a power of ten if that is too many.
pub(super) fn tick(value: f64, (low, high): (f64, f64)) -> String {
    let (span, largest) = (high - low, low.abs().max(high.abs()));
    let value = if value.abs() < span * 1e-9 { 0.0 } else { value };
    if largest >= 1e6 || span < 1e-3 {
        // A value that differs later than in its eighth digit is as good as constant; `axis` leaves no narrower range.
        let digits = ((largest / span).log10().ceil() + 1.0).clamp(1.0, 8.0) as usize;
        return if value == 0.0 { "0".into() } else { format!("{value:.digits$e}") };
    }
    let decimals = (1.0 - span.log10().floor()).clamp(0.0, 5.0) as usize;
    format!("{value:.decimals$}")
}
