//! Bars over classes: class balance, soft targets at several temperatures.

use super::canvas::{Area, Drawn, Figure, anchored, chart, color, px, styled};
use super::words::short;
use crate::data::{Dataset, Split};
use crate::train::soft_targets;
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use tch::{Device, Kind, Tensor};

/// Draws how many images of each class the three splits hold.
pub fn class_balance(dataset: &Dataset) -> Figure {
    let panel = |split: &Split| {
        let counts = split.class_counts().iter().map(|&n| n as f64).collect();
        (format!("{}: {} images", split.name, split.len()), counts)
    };
    let panels = [&dataset.train, &dataset.validation, &dataset.test].map(panel).into();
    bars(&dataset.classes, panels, "images", None, None)
}

/// Draws `softmax(logits / T)` of one image's logits `[C]`, of any float kind, a panel for each temperature T > 0.
/// The true class `label`, in [0, C), has a colour of its own.
///
/// # Errors
/// When there are not as many logits as classes, no temperature, or the label is not among the classes.
pub(super) fn soft_target_bars(
    logits: &Tensor,
    classes: &[String],
    label: Option<i64>,
    temperatures: &[f64],
) -> Result<Figure> {
    let logits = one_image(logits, classes, label)?;
    if temperatures.is_empty() {
        return Err(Error::Input("no temperature to draw; give at least one, such as 4.0".into()));
    }
    let panel = |&t: &f64| -> Result<(String, Vec<f64>)> {
        let probabilities = soft_targets(&logits, t)?;
        Ok((format!("T = {}", short(t)), Vec::try_from(probabilities)?))
    };
    let panels = temperatures.iter().map(panel).collect::<Result<_>>()?;
    let mark = label.and_then(|l| usize::try_from(l).ok());
    Ok(bars(classes, panels, "probability", Some(1.0), mark))
}

/// One image's logits `[C]` as f64 on the CPU, if they fit the classes and the label is one of these.
pub(super) fn one_image(logits: &Tensor, classes: &[String], label: Option<i64>) -> Result<Tensor> {
    let count = classes.len();
    if logits.numel() != count || count == 0 {
        return Err(Error::Input(format!(
            "logits {:?} and {count} class names: one image's logits [classes] are needed, such as `logits.get(index)`",
            logits.size()
        )));
    }
    if let Some(label) = label.filter(|label| !(0..count as i64).contains(label)) {
        return Err(Error::Input(format!("label {label} is none of the {count} classes, 0 to {}", count - 1)));
    }
    Ok(logits.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_reshape(-1)?)
}

/// A panel for each series, with the same classes on every x axis. `top` is the upper end of the y axis; `None` is for
/// counts, and fits each panel. `mark` is a class with a colour of its own, such as the true one.
fn bars(
    classes: &[String],
    panels: Vec<(String, Vec<f64>)>,
    y: &'static str,
    top: Option<f64>,
    mark: Option<usize>,
) -> Figure {
    let classes = classes.to_vec();
    let in_words = |(title, values): &(String, Vec<f64>)| {
        let top = (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]));
        let class = top.and_then(|i| Some(format!(" ({} {})", classes.get(i)?, short(values[i]))));
        format!("{title}, highest{}", class.unwrap_or_default())
    };
    let alt = format!("{y} of each class: {}", panels.iter().map(in_words).collect::<Vec<_>>().join("; "));
    let width = (300 * panels.len() as u32).clamp(420, 880);
    Figure::new([width, 300], alt, move |area| {
        let places = area.split_evenly((1, panels.len()));
        panels.iter().zip(places).try_for_each(|((title, values), place)| {
            let counts = top.is_none();
            let top = top.unwrap_or_else(|| values.iter().copied().fold(1.0, f64::max) * 1.1);
            panel(area, &place, &classes, (title, values), (y, top, counts), mark)
        })
    })
}

fn panel(
    whole: &Area,
    area: &Area,
    classes: &[String],
    (title, values): (&str, &[f64]),
    (y, top, counts): (&str, f64, bool),
    mark: Option<usize>,
) -> Drawn {
    let longest = classes.iter().map(|c| c.chars().count()).max().unwrap_or(0) as u32;
    let mut chart = chart(area, (title, 15), [8, 8], [(7 * longest).clamp(30, 90), 52])
        .build_cartesian_2d(-0.5..values.len() as f64 - 0.5, 0.0..top)?;
    // Counts are whole, also at the labels of few.
    let (labels, digits) = if counts { ((top as usize + 1).min(6), 0) } else { (6, 1) };
    let number = |y: &f64| format!("{y:.digits$}");
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().disable_x_axis().y_desc(y).y_labels(labels).y_label_formatter(&number);
    styled(&mut mesh).draw()?;
    chart.draw_series(values.iter().enumerate().map(|(i, &v)| {
        let fill = if mark == Some(i) { color(1) } else { color(0) };
        Rectangle::new([(i as f64 - 0.38, 0.0), (i as f64 + 0.38, v)], fill.filled())
    }))?;
    // Class names stand upright below their bars: ten of them never fit side by side.
    let names = anchored(12, HPos::Right, VPos::Center).transform(FontTransform::Rotate270);
    for (i, class) in classes.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(i as f64, 0.0)); // counted from the whole figure's corner
        whole.draw(&Text::new(class.clone(), (x, y + px(5)), names.clone()))?;
    }
    Ok(())
}
