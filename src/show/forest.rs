//! Forest plots: the differences of several comparisons, seed by seed, with or without their intervals.

use super::canvas::{Area, Drawn, Figure, INK, anchored, chart, color, px, range, stroke, styled, text_color};
use crate::study::{Decision, Verdict};
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

/// Height of a row, width of a letter at size 13 (an upper estimate), and width of the plot, in nominal pixels.
const ROW: u32 = 42;
const LETTER: u32 = 7;
const PLOT: u32 = 420;

struct Row {
    name: String,
    /// In percentage points, as all numbers here.
    differences: Vec<f64>,
    mean: f64,
    interval: Option<[f64; 2]>,
    said: String,
    color: usize,
}

/// Draws a row for each comparison: a dot for the difference of each seed, the interval of their mean as a line, and
/// the mean as a bar across it, in percentage points. Right of zero, the second of the two is better.
///
/// # Errors
/// When there is no row, or a number of a verdict is not finite.
pub fn forest(rows: &[(&str, &Verdict)]) -> Result<Figure> {
    if rows.is_empty() {
        return Err(Error::Input("no comparison to draw; give at least one name with its verdict".into()));
    }
    Ok(figure(rows.iter().map(|&(name, verdict)| Row::new(name, verdict)).collect::<Result<_>>()?))
}

/// Draws a row for each class: a dot for the difference of each seed, such as that of its recall, and their mean as a
/// bar, in percentage points. `differences` are shares, such as 0.02 for two points. The colour says whether all seeds
/// have the same sign; an interval for each of many classes would need more seeds.
///
/// # Errors
/// When there is no row, a row has no seed, or a difference is not finite.
pub fn class_gains(rows: &[(&str, Vec<f64>)]) -> Result<Figure> {
    if rows.is_empty() {
        return Err(Error::Input("no class to draw; give at least one name with the differences of its seeds".into()));
    }
    Ok(figure(rows.iter().map(|(name, differences)| Row::of_class(name, differences)).collect::<Result<_>>()?))
}

fn figure(rows: Vec<Row>) -> Figure {
    let numbers = || rows.iter().flat_map(|row| row.differences.iter().chain(row.interval.iter().flatten()).copied());
    let (low, high) = range(numbers().chain([0.0]));
    let margin = 0.05 * (high - low).max(1.0);
    let width = |texts: &dyn Fn(&Row) -> usize| 16 + LETTER * rows.iter().map(texts).max().unwrap_or(0) as u32;
    let (left, right) = (width(&|row| row.name.chars().count()), width(&|row| row.said.chars().count()));
    let size = [left + PLOT + right, 58 + ROW * rows.len() as u32];
    let alt = rows.iter().map(|row| format!("{}: {}", row.name, row.said)).collect::<Vec<_>>().join("; ");
    Figure::new(size, format!("differences in percentage points, {alt}"), move |area| {
        draw(area, &rows, (low - margin)..(high + margin), [left, right])
    })
}

impl Row {
    fn new(name: &str, verdict: &Verdict) -> Result<Self> {
        let points = |share: f64| 100.0 * share;
        let (interval, mean) = ([points(verdict.low), points(verdict.high)], points(verdict.mean));
        let differences: Vec<f64> = verdict.differences.iter().copied().map(points).collect();
        if let Some(odd) = differences.iter().chain(&interval).chain([&mean]).find(|value| !value.is_finite()) {
            return Err(Error::Input(format!("the verdict on {name} holds {odd}: compare finite accuracies")));
        }
        let said = format!("{mean:+.1} ({:+.1} to {:+.1})  {}", interval[0], interval[1], verdict.decision);
        let color = match verdict.decision {
            Decision::Better => 0,
            Decision::Worse => 1,
            Decision::NoWorthwhileGain => 4,
            Decision::Undecided => 6,
        };
        Ok(Self { name: name.to_owned(), differences, mean, interval: Some(interval), said, color })
    }

    fn of_class(name: &str, differences: &[f64]) -> Result<Self> {
        let differences: Vec<f64> = differences.iter().map(|share| 100.0 * share).collect();
        let (count, mean) = (differences.len(), differences.iter().sum::<f64>() / differences.len() as f64);
        if !mean.is_finite() {
            return Err(Error::Input(format!(
                "the differences of {name} are {differences:?} points: give at least one seed, and finite shares"
            )));
        }
        let above = differences.iter().filter(|&&points| points > 0.0).count();
        let below = differences.iter().filter(|&&points| points < 0.0).count();
        let color = if above == count {
            0
        } else if below == count {
            1
        } else {
            6
        };
        let shown = (10.0 * mean).round() / 10.0 + 0.0; // 0 for -0
        let said = format!("{shown:+.1}  {above} of {count} seeds above 0");
        Ok(Self { name: name.to_owned(), differences, mean, interval: None, said, color })
    }
}

fn draw(area: &Area, rows: &[Row], across: std::ops::Range<f64>, [left, right]: [u32; 2]) -> Drawn {
    let bottom = rows.len() as f64;
    let mut plot = chart(area, ("", 0), [right, 8], [42, left]).build_cartesian_2d(across, bottom..0.0)?;
    let whole = |x: &f64| format!("{x:+.0}").replace("+0", "0").replace("-0", "0");
    let mut mesh = plot.configure_mesh();
    mesh.disable_y_mesh().disable_y_axis().x_labels(9).x_label_formatter(&whole);
    mesh.x_desc("difference in percentage points; a dot for each seed");
    styled(&mut mesh).draw()?;
    plot.draw_series([PathElement::new([(0.0, 0.0), (0.0, bottom)], stroke(INK, 1))])?;
    for (i, row) in rows.iter().enumerate() {
        let (y, fill) = (i as f64 + 0.5, color(row.color));
        if let Some(interval) = row.interval {
            plot.draw_series([PathElement::new(interval.map(|x| (x, y)), stroke(fill, 2))])?;
            plot.draw_series(interval.map(|x| PathElement::new([(x, y - 0.1), (x, y + 0.1)], stroke(fill, 2))))?;
        }
        plot.draw_series([PathElement::new([(row.mean, y - 0.22), (row.mean, y + 0.22)], stroke(fill, 4))])?;
        // Beside the line, where neither hides the other.
        let dot = |&x: &f64| Circle::new((x, y + 0.37), px(3), fill.mix(0.7).filled());
        plot.draw_series(row.differences.iter().map(dot))?;
        let middle = plot.backend_coord(&(0.0, y)).1;
        let name = anchored(13, HPos::Right, VPos::Center);
        area.draw(&Text::new(row.name.clone(), (px(left), middle), name))?;
        let ink = text_color(row.color);
        let said = anchored(13, HPos::Left, VPos::Center).color(&ink);
        area.draw(&Text::new(row.said.clone(), (px(left + PLOT + 8), middle), said))?;
    }
    Ok(())
}
