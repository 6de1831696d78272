//! Which classes a teacher finds similar: the mean of its soft targets over the images of each class.

use super::canvas::Figure;
use super::heatmap::{Axis, Cell, Heatmap, check_size, square};
use super::table::Table;
use super::words::{percent, short};
use crate::train::soft_targets;
use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// The number of a class's images, and the mean of their soft targets.
struct ClassMean {
    images: i64,
    /// By class, in [0, 1]; NaN without images.
    soft: Vec<f64>,
}

fn class_means(logits: &Tensor, labels: &Tensor, classes: &[String], temperature: f64) -> Result<Vec<ClassMean>> {
    let (l, y, n) = (logits.size(), labels.size(), classes.len() as i64);
    if l.len() != 2 || l[0] == 0 || l[1] != n || y != l[..1] || labels.kind() != Kind::Int64 {
        return Err(Error::Input(format!(
            "logits are {l:?}, labels {:?} {y:?}, and there are {n} class names: expected [images, {n}], i64 [images] \
             and at least one image; take the teacher's logits and the labels of the same split",
            labels.kind()
        )));
    }
    let labels = labels.f_to_device(Device::Cpu)?;
    let (lowest, highest) = (i64::try_from(labels.f_min()?)?, i64::try_from(labels.f_max()?)?);
    if lowest < 0 || highest >= n {
        return Err(Error::Input(format!(
            "labels go from {lowest} to {highest}, but there are {n} classes, from 0: leave out images without a label"
        )));
    }
    let logits = finite(logits)?;
    let zeros = Tensor::f_zeros([n, n], (Kind::Double, Device::Cpu))?;
    let sums = zeros.f_index_add(0, &labels, &soft_targets(&logits, temperature)?)?; // [C, C], row = true class
    let (sums, counts) = (Vec::<f64>::try_from(sums.f_reshape(-1)?)?, labels.f_bincount(None::<&Tensor>, n)?);
    let mean = |(sums, images): (&[f64], i64)| ClassMean {
        images,
        soft: sums.iter().map(|sum| sum / images as f64).collect(),
    };
    Ok(sums.chunks(classes.len()).zip(Vec::<i64>::try_from(counts)?).map(mean).collect())
}

/// The logits as f64 on the CPU.
pub(super) fn finite(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
    if bool::try_from(logits.f_isfinite()?.f_all()?)? {
        return Ok(logits);
    }
    Err(Error::Input(format!(
        "some of the logits {:?} are NaN or infinite: the teacher's training has failed, or these are not its logits",
        logits.size()
    )))
}

/// Draws which classes the teacher finds similar: row = true class, column = the mean of `softmax(logits / T)` over its
/// images for each class, in percent. Shades run from the lowest to the highest mean of a wrong class; a class without
/// images has an empty row. `logits` are `[N, C]` of any float kind, `labels` i64 `[N]`, in [0, C); `temperature` > 0.
///
/// # Errors
/// When shapes, labels and classes do not fit each other, a logit is not finite, or the temperature is not above 0.
pub fn class_similarity(logits: &Tensor, labels: &Tensor, classes: &[String], temperature: f64) -> Result<Figure> {
    check_size(classes.len(), classes.len())?;
    let means = class_means(logits, labels, classes, temperature)?;
    let others = means.iter().enumerate().filter(|(_, mean)| mean.images > 0).flat_map(|(own, mean)| {
        mean.soft.iter().enumerate().filter_map(move |(class, &p)| (class != own).then_some(p))
    });
    let (low, high) = others.fold((1.0, 0.0), |(l, h), p| (f64::min(l, p), f64::max(h, p)));
    let (low, span) = match high - low {
        span if span > 0.0 => (low, span),
        // All means are equal, or there is a single class: shades begin at 0.
        _ => (0.0, if high > 0.0 { high } else { 1.0 }),
    };
    let cell = |own: usize, class: usize, p: f64| {
        let shade = (class != own).then_some((p - low) / span);
        Cell { text: two_digits(p), shade }
    };
    let row = |(own, mean): (usize, &ClassMean)| {
        let cells = mean.soft.iter().enumerate();
        cells.map(|(class, &p)| (mean.images > 0).then(|| cell(own, class, p))).collect()
    };
    Ok(Heatmap {
        title: format!(
            "Class similarity: mean soft target at T = {}, in %\neach row: all images of a class; \
             the class itself in grey",
            short(temperature)
        ),
        rows: Axis::new("true class", classes),
        columns: Axis::new("class in the teacher's answer", classes),
        cells: means.iter().enumerate().map(row).collect(),
        cell: square(classes.len()),
        bar: [1.0, 0.0].map(|shade| (shade, format!("{} %", two_digits(low + shade * span)))).into(),
    }
    .figure())
}

/// A share in percent with two digits, which fit into a cell.
fn two_digits(share: f64) -> String {
    percent(share, if 100.0 * share < 9.95 { 1 } else { 0 })
}

/// Returns a table of the wrong classes that the teacher finds likely: for each class, the `n` wrong classes with the
/// highest mean soft target over its images (all if there are fewer), the most likely first. Each has a row with its
/// share of the probability of all wrong classes; a class without images has none. The other arguments are those of
/// [`class_similarity`].
///
/// # Errors
/// As [`class_similarity`], and when `n` is 0.
pub fn likely_confusions(
    logits: &Tensor,
    labels: &Tensor,
    classes: &[String],
    temperature: f64,
    n: usize,
) -> Result<Table> {
    let means = class_means(logits, labels, classes, temperature)?;
    if n == 0 {
        return Err(Error::Input("no wrong class asked for; give at least 1".into()));
    }
    let names = ["class", "images", "all wrong classes (%)", "likely wrong class"];
    let mut table = Table::new(&[&names[..], &["soft target (%)", "of the wrong (%)"]].concat());
    for (own, mean) in means.iter().enumerate().filter(|(_, mean)| mean.images > 0) {
        let mut wrong: Vec<usize> = (0..classes.len()).filter(|&class| class != own).collect();
        wrong.sort_by(|&a, &b| mean.soft[b].total_cmp(&mean.soft[a]));
        let mass: f64 = wrong.iter().map(|&class| mean.soft[class]).sum();
        for &class in wrong.iter().take(n) {
            let p = mean.soft[class];
            table = table.row(&[
                classes[own].clone(),
                mean.images.to_string(),
                percent(mass, 1),
                classes[class].clone(),
                percent(p, 1),
                if mass > 0.0 { percent(p / mass, 0) } else { String::new() },
            ]);
        }
    }
    Ok(table)
}
