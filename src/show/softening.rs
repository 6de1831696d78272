//! How one image's soft targets change with the temperature.

use super::figure::{Area, Drawing, Figure, INK, Pen, color, styled};
use super::heatmap::short_name;
use super::similarity::finite;
use crate::train::soft_targets;
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use tch::Tensor;

pub(super) struct Softening {
    /// The most likely class first: no temperature changes the order.
    lines: Vec<Line>,
    /// Bits, over T.
    entropy: Vec<(f64, f64)>,
}

struct Line {
    /// Other classes are a grey line.
    name: Option<String>,
    is_label: bool,
    /// Probability over T.
    points: Vec<(f64, f64)>,
}

/// The explorer's range.
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

/// `softmax(logits / T)` of one image's logits `[C]`, of any float kind, over T from 0.5 to 20: a line for each class,
/// the most likely five and the true one, `label` in [0, C), by name. Beside it, their entropy in bits.
///
/// # Errors
/// When there are not as many logits as classes, one is not finite, or the label is not among the classes.
pub fn soft_targets_over_temperature(logits: &Tensor, classes: &[String], label: Option<i64>) -> Result<Figure> {
    let count = classes.len();
    if logits.numel() != count || count == 0 {
        return Err(Error::Input(format!(
            "logits {:?} and {count} class names: one image's logits [classes] are needed, such as `logits.get(index)`",
            logits.size()
        )));
    }
    if let Some(label) = label.filter(|label| !(0..count as i64).contains(label)) {
        return Err(Error::Input(format!("label {label}: there are {count} classes, from 0")));
    }
    let logits = finite(logits)?.f_reshape(-1)?;
    let [low, high] = TEMPERATURES;
    let step = |i: usize| low * (high / low).powf(i as f64 / (POINTS - 1) as f64);
    let soft = |t: f64| Ok((t, Vec::<f64>::try_from(soft_targets(&logits, t)?)?));
    let columns = (0..POINTS).map(|i| soft(step(i))).collect::<Result<Vec<_>>>()?;
    let bits = |soft: &[f64]| -> f64 { soft.iter().filter(|&&p| p > 0.0).map(|p| -p * p.log2()).sum() };
    let mut order = (0..count).collect::<Vec<_>>();
    let scores = Vec::<f64>::try_from(&logits)?;
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let line = |(rank, &class): (usize, &usize)| {
        let is_label = label == Some(class as i64);
        let name = (rank < NAMED || is_label).then(|| short_name(&classes[class]));
        Line { name, is_label, points: columns.iter().map(|(t, soft)| (*t, soft[class])).collect() }
    };
    let lines = order.iter().enumerate().map(line).collect();
    let entropy = columns.iter().map(|(t, soft)| (*t, bits(soft))).collect();
    Ok(Figure::new(PANEL + LEGEND + ENTROPY, HEIGHT, Drawing::Softening(Softening { lines, entropy })))
}

impl Softening {
    pub(super) fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, pen: Pen) -> std::result::Result<(), String> {
        let (soft, rest) = area.split_horizontally(pen.px(PANEL));
        let (legend, entropy) = rest.split_horizontally(pen.px(LEGEND));
        self.soft(&soft, pen).map_err(|e| e.to_string())?;
        self.legend(&legend, pen).map_err(|e| e.to_string())?;
        let most = (self.lines.len() as f64).log2();
        let dashed = TEMPERATURES.map(|t| (t, most)).to_vec();
        let title = format!("Entropy, bits (dashed: all {} alike)", self.lines.len());
        let lines = [(self.entropy.clone(), pen.line(color(0)))];
        panel(&entropy, pen, &title, most.max(0.5) * 1.06, &lines, dashed).map_err(|e| e.to_string())
    }

    /// Named lines have colours in their order, with their place among them.
    fn style(&self, place: usize, pen: Pen) -> ShapeStyle {
        let line = &self.lines[place];
        let named = self.lines[..place].iter().filter(|other| other.name.is_some()).count();
        match line.name {
            None => OTHERS.stroke_width(pen.px(1)),
            Some(_) if line.is_label => color(named).stroke_width(pen.px(4)),
            Some(_) => pen.line(color(named)),
        }
    }

    fn soft<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let mut lines: Vec<_> =
            self.lines.iter().enumerate().map(|(i, line)| (line.points.clone(), self.style(i, pen))).collect();
        // The most likely ones last, over the others.
        lines.reverse();
        panel(area, pen, "Soft targets: probability of each class", 1.0, &lines, Vec::new())
    }

    fn legend<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let others = self.lines.iter().filter(|line| line.name.is_none()).count();
        let named = self.lines.iter().enumerate().filter_map(|(i, line)| {
            let name = line.name.as_ref()?;
            Some((if line.is_label { format!("{name} (label)") } else { name.clone() }, self.style(i, pen)))
        });
        let others = (others > 0).then(|| (format!("{others} others"), OTHERS.stroke_width(pen.px(1))));
        area.draw(&Text::new("from top to bottom", (pen.px(4) as i32, pen.px(34) as i32), pen.text(12)))?;
        for (i, (text, style)) in named.chain(others).enumerate() {
            let (x, y) = (pen.px(4) as i32, pen.px(60 + 20 * i as u32) as i32);
            area.draw(&PathElement::new([(x, y), (x + pen.px(22) as i32, y)], style))?;
            let beside = pen.text(13).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(text, (x + pen.px(28) as i32, y), beside))?;
        }
        Ok(())
    }
}

/// Lines over T, on a log axis, from 0 to `top`, and a dashed one.
fn panel<DB: DrawingBackend>(
    area: &Area<DB>,
    pen: Pen,
    title: &str,
    top: f64,
    lines: &[(Vec<(f64, f64)>, ShapeStyle)],
    dashed: Vec<(f64, f64)>,
) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let [low, high] = TEMPERATURES;
    let mut chart = ChartBuilder::on(area)
        .caption(title, pen.text(15))
        .margin(pen.px(8))
        .margin_right(pen.px(14))
        .x_label_area_size(pen.px(38))
        .y_label_area_size(pen.px(44))
        .build_cartesian_2d((low..high).log_scale().with_key_points(TICKS.to_vec()), 0.0..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("temperature T")
        .x_label_formatter(&|t| t.to_string())
        .y_labels(6)
        .y_label_formatter(&|y| format!("{y:.1}"));
    styled(&mut mesh, pen).draw()?;
    let (dash, gap) = (pen.px(5), pen.px(4));
    chart.draw_series(DashedLineSeries::new(dashed, dash, gap, INK.stroke_width(pen.px(1))))?;
    for (points, style) in lines {
        chart.draw_series(LineSeries::new(points.iter().copied(), *style))?;
    }
    Ok(())
}
