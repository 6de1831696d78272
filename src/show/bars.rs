//! Bars over classes: class balance, soft targets at several temperatures.

use super::figure::{Area, Drawing, Figure, Pen, color, styled};
use super::short;
use crate::data::Dataset;
use crate::train::soft_targets;
use crate::{Error, Result};
use plotters::prelude::*;
use tch::{Kind, Tensor};

/// One panel per series, the same classes on every x axis.
pub(super) struct Bars {
    classes: Vec<String>,
    panels: Vec<(String, Vec<f64>)>,
    y: &'static str,
    /// Upper end of the y axis; none fits each panel.
    top: Option<f64>,
    /// A class to set off, such as the true one.
    mark: Option<usize>,
}

/// How many images of each class the three splits hold.
pub fn class_balance(dataset: &Dataset) -> Result<Figure> {
    let panel = |split: &crate::data::Split| -> Result<(String, Vec<f64>)> {
        let counts = Vec::<i64>::try_from(split.labels()?.f_bincount(None::<&Tensor>, dataset.classes.len() as i64)?)?;
        Ok((format!("{}: {} images", split.name, split.len()), counts.iter().map(|&n| n as f64).collect()))
    };
    let panels = [&dataset.train, &dataset.validation, &dataset.test].map(panel).into_iter().collect::<Result<_>>()?;
    figure(Bars { classes: dataset.classes.clone(), panels, y: "images", top: None, mark: None })
}

/// `softmax(logits / T)` of one image's logits `[C]`, a panel for each T; `label` sets the true class off.
pub fn soft_target_bars(
    logits: &Tensor,
    classes: &[String],
    label: Option<i64>,
    temperatures: &[f64],
) -> Result<Figure> {
    if logits.numel() != classes.len() || temperatures.is_empty() {
        return Err(Error::Input(format!(
            "logits {:?}, {} class names and {} temperatures: one image's logits [classes] and at least one temperature are needed",
            logits.size(),
            classes.len(),
            temperatures.len()
        )));
    }
    if let Some(label) = label.filter(|label| !(0..classes.len() as i64).contains(label)) {
        return Err(Error::Input(format!(
            "label {label} is none of the {} classes, 0 to {}",
            classes.len(),
            classes.len() - 1
        )));
    }
    let panel = |&t: &f64| -> Result<(String, Vec<f64>)> {
        let probabilities = soft_targets(&logits.f_reshape(-1)?.f_to_kind(Kind::Double)?, t)?;
        Ok((format!("T = {}", short(t)), Vec::try_from(probabilities)?))
    };
    let panels = temperatures.iter().map(panel).collect::<Result<_>>()?;
    let mark = label.and_then(|l| usize::try_from(l).ok());
    figure(Bars { classes: classes.to_vec(), panels, y: "probability", top: Some(1.0), mark })
}

fn figure(bars: Bars) -> Result<Figure> {
    let width = (300 * bars.panels.len() as u32).clamp(420, 880);
    Ok(Figure::new(width, 300, Drawing::Bars(bars)))
}

impl Bars {
    pub(super) fn alt(&self) -> String {
        let panel = |(title, values): &(String, Vec<f64>)| {
            let top = (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]));
            let class = top.and_then(|i| Some(format!(" ({} {})", self.classes.get(i)?, short(values[i]))));
            format!("{title}, highest{}", class.unwrap_or_default())
        };
        format!("{} of each class: {}", self.y, self.panels.iter().map(panel).collect::<Vec<_>>().join("; "))
    }

    pub(super) fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, pen: Pen) -> std::result::Result<(), String> {
        for ((title, values), panel) in self.panels.iter().zip(area.split_evenly((1, self.panels.len()))) {
            self.panel(area, &panel, pen, title, values).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn panel<DB: DrawingBackend>(
        &self,
        whole: &Area<DB>,
        area: &Area<DB>,
        pen: Pen,
        title: &str,
        values: &[f64],
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let top = self.top.unwrap_or_else(|| values.iter().copied().fold(1.0, f64::max) * 1.1);
        let longest = self.classes.iter().map(|c| c.chars().count()).max().unwrap_or(0) as u32;
        let n = values.len();
        let mut chart = ChartBuilder::on(area)
            .caption(title, pen.text(15))
            .margin(pen.px(8))
            .x_label_area_size(pen.px((7 * longest).clamp(30, 90)))
            .y_label_area_size(pen.px(52))
            .build_cartesian_2d(-0.5..n as f64 - 0.5, 0.0..top)?;
        let number = |y: &f64| if top <= 2.0 { format!("{y:.1}") } else { format!("{y:.0}") };
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().disable_x_axis().y_desc(self.y).y_labels(6).y_label_formatter(&number);
        styled(&mut mesh, pen).draw()?;
        chart.draw_series(values.iter().enumerate().map(|(i, &v)| {
            let fill = if self.mark == Some(i) { color(1) } else { color(0) };
            Rectangle::new([(i as f64 - 0.38, 0.0), (i as f64 + 0.38, v)], fill.filled())
        }))?;
        // Class names stand upright below their bars: ten of them never fit side by side.
        let names = pen.text(12).transform(FontTransform::Rotate270).pos(plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Right,
            plotters::style::text_anchor::VPos::Center,
        ));
        for (i, class) in self.classes.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(i as f64, 0.0)); // counted from the whole figure's corner
            whole.draw(&Text::new(class.clone(), (x, y + pen.px(5) as i32), names.clone()))?;
        }
        Ok(())
    }
}
