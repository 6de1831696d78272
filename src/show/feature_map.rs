//! What networks see in the same images: the two main directions of their features, by principal component analysis.

use super::canvas::{Area, Drawn, Figure, INK, anchored, chart, color, px, range, styled};
use super::line::tick;
use super::words::{percent, short_name};
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use tch::{Device, Kind, Tensor};

/// Nominal pixels, as all sizes here.
const PANEL: u32 = 296;
const HEIGHT: u32 = 316;
const LETTER: u32 = 7;
/// More panels do not fit beside each other, more images hide each other, and more classes have no colour of their own.
const PANELS: usize = 3;
const DRAWN: usize = 1_000;
const CLASSES: usize = 10;
/// Colours for the classes that the palette has none for.
const MORE: [RGBColor; 3] = [RGBColor(122, 66, 40), RGBColor(110, 110, 0), RGBColor(110, 40, 150)];

struct Panel {
    title: String,
    /// Shares of the variance that the two directions hold.
    shares: [f64; 2],
    /// The place of each image along the two directions.
    places: [Vec<f64>; 2],
}

/// Draws the same images as one to three networks see them: in each panel the two directions in which the network's
/// features vary most, a dot for each image (1,000 at most) in the colour of its class, and the name of the class at
/// its middle. The axes say which share of the variance they hold. `panels` are a title and features `[N, D]` of any
/// float kind, `D` at least 2; `labels` are i64 `[N]`, in [0, C), with at most ten classes.
///
/// The sign of a direction is arbitrary. It is chosen so that a panel looks as much as possible like the first.
///
/// # Errors
/// When features, labels and classes do not fit each other, a feature is not finite, all images have the same features,
/// or there are more panels or classes than there are places or colours.
pub fn feature_map(panels: &[(&str, &Tensor)], labels: &Tensor, classes: &[String]) -> Result<Figure> {
    if !(1..=PANELS).contains(&panels.len()) || !(1..=CLASSES).contains(&classes.len()) {
        return Err(Error::Input(format!(
            "a map of {} networks and {} classes; give 1 to {PANELS} networks, and at most {CLASSES} classes: more \
             have no colours of their own",
            panels.len(),
            classes.len()
        )));
    }
    let y = Vec::<i64>::try_from(labels.f_to_device(Device::Cpu)?.f_reshape(-1)?)?;
    if y.is_empty() || y.iter().any(|label| !(0..classes.len() as i64).contains(label)) {
        return Err(Error::Input(format!(
            "{} labels for {} classes: give a label for each image, from 0 to {}",
            y.len(),
            classes.len(),
            classes.len() - 1
        )));
    }
    let mut drawn: Vec<Panel> = Vec::new();
    for &(title, features) in panels {
        drawn.push(Panel::new(title, features, y.len(), drawn.first())?);
    }
    let names: Vec<String> = classes.iter().map(|class| short_name(class)).collect();
    let share = |p: &Panel| {
        format!("{} ({} and {} % of the variance)", p.title, percent(p.shares[0], 0), percent(p.shares[1], 0))
    };
    let alt = format!(
        "features of {} images in two dimensions, by class: {}",
        y.len(),
        drawn.iter().map(share).collect::<Vec<_>>().join("; ")
    );
    let legend: u32 = names.iter().map(|name| 30 + LETTER * name.chars().count() as u32).sum();
    let width = (PANEL * drawn.len() as u32).max(legend + 16);
    Ok(Figure::new([width, HEIGHT + 30], alt, move |area| {
        let (plots, below) = area.split_vertically(px(HEIGHT));
        let mut rest = plots;
        for panel in &drawn {
            let (left, right) = rest.split_horizontally(px(PANEL));
            panel.draw(area, &left, &y, &names)?;
            rest = right;
        }
        let mut x = 12;
        for (class, name) in names.iter().enumerate() {
            below.draw(&Circle::new((px(x + 5), px(12)), px(4), class_color(class).filled()))?;
            below.draw(&Text::new(name.clone(), (px(x + 14), px(12)), anchored(12, HPos::Left, VPos::Center)))?;
            x += 30 + LETTER * name.chars().count() as u32;
        }
        Ok(())
    }))
}

impl Panel {
    fn new(title: &str, features: &Tensor, images: usize, first: Option<&Self>) -> Result<Self> {
        let size = features.size();
        if size.len() != 2 || size[0] != images as i64 || size[1] < 2 {
            return Err(Error::Input(format!(
                "the features of {title} are {size:?}, expected [{images}, D] with D at least 2: a row for each label"
            )));
        }
        let x = features.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        let x = x.f_sub(&x.f_mean_dim([0].as_slice(), true, None::<Kind>)?)?; // [N, D]
        let total = f64::try_from(x.f_square()?.f_sum(None::<Kind>)?)?;
        if !total.is_finite() || total <= 0.0 {
            let why = if total == 0.0 { "are the same for all images" } else { "hold NaN or infinite values" };
            return Err(Error::Input(format!("the features of {title} {why}, so they have no main directions")));
        }
        // In ascending order of the variance.
        let (variance, directions) = x.f_tr()?.f_matmul(&x)?.f_linalg_eigh("L")?;
        let mut places = [Vec::new(), Vec::new()];
        let mut shares = [0.0; 2];
        for (axis, share) in shares.iter_mut().enumerate() {
            let column = size[1] - 1 - axis as i64;
            *share = (variance.f_double_value(&[column])? / total).max(0.0);
            places[axis] = Vec::<f64>::try_from(x.f_mv(&directions.f_select(1, column)?)?)?;
            let alike = |other: &Self| other.places[axis].iter().zip(&places[axis]).map(|(a, b)| a * b).sum::<f64>();
            if first.is_some_and(|first| alike(first) < 0.0) {
                places[axis].iter_mut().for_each(|place| *place = -*place);
            }
        }
        Ok(Self { title: title.to_owned(), shares, places })
    }

    fn draw(&self, whole: &Area, area: &Area, labels: &[i64], names: &[String]) -> Drawn {
        let axis = |values: &[f64]| {
            let (low, high) = range(values.iter().copied());
            let margin = 0.06 * (high - low).max(1e-9);
            (low - margin)..(high + margin)
        };
        let mut plot = chart(area, (&self.title, 15), [6, 8], [38, 46])
            .build_cartesian_2d(axis(&self.places[0]), axis(&self.places[1]))?;
        let ends = [0, 1].map(|i| range(self.places[i].iter().copied()));
        let (x, y) = (|v: &f64| tick(*v, ends[0]), |v: &f64| tick(*v, ends[1]));
        let said = |i: usize| format!("direction {}, {} % of the variance", i + 1, percent(self.shares[i], 0));
        let (across, up) = (said(0), said(1));
        let mut mesh = plot.configure_mesh();
        mesh.x_desc(across).y_desc(up).x_labels(5).y_labels(5).x_label_formatter(&x).y_label_formatter(&y);
        styled(&mut mesh).draw()?;
        let place = |i: usize| (self.places[0][i], self.places[1][i]);
        let dots = (0..labels.len()).step_by(labels.len().div_ceil(DRAWN));
        plot.draw_series(
            dots.map(|i| Circle::new(place(i), px(2), class_color(labels[i] as usize).mix(0.55).filled())),
        )?;
        let mut written: Vec<(i32, i32, i32)> = Vec::new(); // place and width of the names so far
        for (class, name) in names.iter().enumerate() {
            let own: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] == class as i64).collect();
            if own.is_empty() {
                continue;
            }
            let mean = |axis: usize| own.iter().map(|&i| self.places[axis][i]).sum::<f64>() / own.len() as f64;
            let (x, mut y) = plot.backend_coord(&(mean(0), mean(1))); // counted from the whole figure's corner
            let width = px(LETTER * name.chars().count() as u32);
            while written.iter().any(|&(a, b, w)| (x - a).abs() < (w + width) / 2 && (y - b).abs() < px(13)) {
                y += 1; // below the name that it would cover
            }
            written.push((x, y, width));
            // A white rim, so that dots do not hide the name.
            for (dx, dy) in [(-2, 0), (2, 0), (0, -2), (0, 2), (0, 0)] {
                let ink = if (dx, dy) == (0, 0) { INK } else { WHITE };
                let style = anchored(12, HPos::Center, VPos::Center).color(&ink);
                whole.draw(&Text::new(name.clone(), (x + dx, y + dy), style))?;
            }
        }
        Ok(())
    }
}

fn class_color(class: usize) -> RGBColor {
    if class < 7 { color(class) } else { MORE[class % MORE.len()] }
}
