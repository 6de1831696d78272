//! Labelled images in a grid.

use super::canvas::{Area, Drawn, Figure, INK, anchored, px, text_color};
use super::words::{counted, percent};
use crate::data::{Dataset, Mixing, Split, UNLABELLED};
use crate::train::{Evaluation, Examples, soft_targets};
use crate::{Error, Result};
use image::RgbImage;
use image::imageops::{FilterType, resize};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use tch::{Kind, Tensor};

const TILE: u32 = 96;
const LINE: u32 = 15;
/// More images would make a picture of many screens and of gigabytes.
const MOST: usize = 400;
/// So many images are named in the figure's description.
const NAMED: usize = 8;

struct Tile {
    image: RgbImage,
    /// The class, and further lines, each in a colour of its own.
    caption: Vec<String>,
}

/// Draws the images of `split` at `indices`, eight to a row, each with its class name.
///
/// # Errors
/// When there is no index or more than 400, or one is outside the split.
pub fn gallery(split: &Split, classes: &[String], indices: &[i64]) -> Result<Figure> {
    captioned(split, classes, indices, |_| Ok(Vec::new()))
}

/// Draws what training sees of the samples at `indices`: a row for each, in epochs 1 to 8 of a fit with this `seed`.
/// With mixup, they are mixed with each other, and the captions give the shares.
///
/// # Errors
/// When there is no index or more than 50, one is outside the split, or the examples are features.
pub fn augmented(examples: &Examples, classes: &[String], indices: &[i64], seed: u64) -> Result<Figure> {
    const EPOCHS: usize = 8;
    check_count(indices.len() * EPOCHS)?;
    let labels = Vec::<i64>::try_from(examples.labels())?;
    let mut rows: Vec<Vec<Tile>> = indices.iter().map(|_| Vec::new()).collect();
    for epoch in 1..=EPOCHS {
        let (images, mixing) = examples.pictures(indices, Some((&examples.draw(seed, epoch), 0)))?;
        for (i, row) in rows.iter_mut().enumerate() {
            let name = |position: usize| class_name(classes, labels[indices[position] as usize]);
            let caption = match &mixing {
                None => vec![name(i)?],
                Some(Mixing { partners, share }) => vec![
                    format!("{} {} %", name(i)?, percent(*share, 0)),
                    format!("{} {} %", name(partners[i] as usize)?, percent(1.0 - share, 0)),
                ],
            };
            row.push(Tile { image: rgb_of(&images.f_get(i as i64)?)?, caption });
        }
    }
    arranged(rows.into_iter().flatten().collect())
}

/// Draws the first `count` images whose predicted class is wrong, or if there are none, those with the lowest
/// confidence. Below each stand the true class, and the predicted class with its confidence.
///
/// # Errors
/// When the evaluation is not of `split`, or `count` is 0 or more than 400.
pub fn mistakes(split: &Split, dataset: &Dataset, evaluation: &Evaluation, count: usize) -> Result<Figure> {
    if !is_of(evaluation, split)? {
        return Err(Error::Input(format!(
            "the evaluation is of {} labelled images and the {} split has {}: evaluate on that split, with all its \
             labels",
            evaluation.total,
            split.name,
            split.len()
        )));
    }
    let soft = evaluation.logits.f_softmax(-1, None::<Kind>)?; // [N, C]
    let (confidence, predicted) = soft.f_max_dim(-1, false)?;
    let wrong = predicted.f_ne_tensor(&evaluation.labels)?.f_nonzero()?.f_reshape(-1)?;
    let chosen = if wrong.numel() > 0 { wrong } else { confidence.f_argsort(0, false)? };
    let indices: Vec<i64> = Vec::<i64>::try_from(chosen)?.into_iter().take(count).collect();
    captioned(split, &dataset.classes, &indices, |i| likely(&soft.f_get(i)?, &dataset.classes, 1))
}

/// Draws the `count` images on which `student` is farthest from `teacher`, by `KL(teacher || student)` at T = 1. Below
/// each stand the true class, and the predicted class of each of the two with its confidence.
///
/// # Errors
/// When the two were not evaluated on `split`, or `count` is 0 or more than 400.
pub fn disagreements(
    split: &Split,
    dataset: &Dataset,
    teacher: &Evaluation,
    student: &Evaluation,
    count: usize,
) -> Result<Figure> {
    let log = |e: &Evaluation| e.logits.f_log_softmax(-1, Kind::Float);
    let (teacher_log, student_log) = (log(teacher)?, log(student)?); // [N, C] each
    if teacher_log.size() != student_log.size() || !is_of(teacher, split)? || !is_of(student, split)? {
        return Err(Error::Input(format!(
            "teacher {:?} and student {:?} must both be evaluated on the {} split, with its {} images",
            teacher_log.size(),
            student_log.size(),
            split.name,
            split.len()
        )));
    }
    let gap = teacher_log.f_sub(&student_log)?.f_mul(&teacher_log.f_exp()?)?; // [N, C]
    let order = gap.f_sum_dim_intlist([-1].as_slice(), false, Kind::Float)?.f_argsort(0, true)?;
    let indices: Vec<i64> = Vec::<i64>::try_from(order)?.into_iter().take(count).collect();
    captioned(split, &dataset.classes, &indices, |i| {
        let says = |log: &Tensor| likely(&log.f_get(i)?.f_exp()?, &dataset.classes, 1);
        Ok([says(&teacher_log)?, says(&student_log)?].concat())
    })
}

/// Draws the images of `split` at `indices`, each with its class and the two most likely classes of its soft target
/// `softmax(logits / T)`. `logits` are `[N, C]`, in split order; `temperature` > 0.
///
/// # Errors
/// When the shape of the logits does not fit split and dataset, there is no index or more than 400, or one is outside
/// the split.
pub fn soft_target_gallery(
    split: &Split,
    dataset: &Dataset,
    logits: &Tensor,
    indices: &[i64],
    temperature: f64,
) -> Result<Figure> {
    let classes = &dataset.classes;
    fitting(split, classes, logits)?;
    let soft = soft_targets(logits, temperature)?;
    captioned(split, classes, indices, |i| likely(&soft.f_get(i)?, classes, 2))
}

/// Refuses logits that are not `[N, C]` of this split.
pub(super) fn fitting(split: &Split, classes: &[String], logits: &Tensor) -> Result<()> {
    if logits.size() == [split.len() as i64, classes.len() as i64] {
        return Ok(());
    }
    Err(Error::Input(format!(
        "logits are {:?}, but the {} split has {} images and there are {} classes: take the teacher's logits of this \
         split",
        logits.size(),
        split.name,
        split.len(),
        classes.len()
    )))
}

/// Whether the evaluation is of all images of the split, by their labels.
fn is_of(evaluation: &Evaluation, split: &Split) -> Result<bool> {
    let labels = split.labels()?;
    Ok(evaluation.labels.size() == labels.size() && evaluation.labels.f_equal(&labels)?)
}

/// The `n` most likely classes of one image's probabilities `[C]`, such as `cat 71 %`.
fn likely(soft: &Tensor, classes: &[String], n: usize) -> Result<Vec<String>> {
    let soft = Vec::<f64>::try_from(soft.f_to_kind(Kind::Double)?)?;
    let mut order: Vec<usize> = (0..soft.len()).collect();
    order.sort_by(|&a, &b| soft[b].total_cmp(&soft[a]));
    let name = |&c: &usize| Ok(format!("{} {} %", class_name(classes, c as i64)?, percent(soft[c], 0)));
    order.iter().take(n).map(name).collect()
}

pub(super) fn class_name(classes: &[String], label: i64) -> Result<String> {
    if label == UNLABELLED {
        return Ok("no label".to_owned());
    }
    let name = usize::try_from(label).ok().and_then(|l| classes.get(l));
    name.cloned().ok_or_else(|| Error::Input(format!("label {label} has no name among {} classes", classes.len())))
}

/// The image at a sample index.
pub(super) fn rgb(split: &Split, index: i64) -> Result<RgbImage> {
    rgb_of(&split.image(index)?)
}

/// An image u8 `[3, H, W]`.
fn rgb_of(image: &Tensor) -> Result<RgbImage> {
    let (_, height, width) = image.size3()?;
    let bytes = Vec::try_from(image.f_permute([1, 2, 0])?.f_contiguous()?.f_reshape(-1)?)?;
    RgbImage::from_raw(width as u32, height as u32, bytes)
        .ok_or_else(|| Error::Input(format!("an image is not {width} by {height} in RGB")))
}

/// The size and the pixels of an image whose longer side is brought to `side`. Nearest neighbour shows the pixels of a
/// small image as they are.
pub(super) fn scaled(image: &RgbImage, side: u32) -> ((u32, u32), Vec<u8>) {
    let (width, height) = image.dimensions();
    let [width, height] = [width, height].map(|n| n * side / width.max(height).max(1));
    ((width, height), resize(image, width, height, FilterType::Nearest).into_raw())
}

/// Refuses a gallery of no images, and of more than fit into a figure.
fn check_count(images: usize) -> Result<()> {
    if images == 0 {
        return Err(Error::Input("a gallery of no images; give at least one index".into()));
    }
    if images > MOST {
        return Err(Error::Input(format!(
            "a gallery of {images} images; at most {MOST} fit into one figure, so give fewer, such as the first {MOST}"
        )));
    }
    Ok(())
}

/// The images at `indices`, each with its class and the notes on it.
fn captioned(
    split: &Split,
    classes: &[String],
    indices: &[i64],
    notes: impl Fn(i64) -> Result<Vec<String>>,
) -> Result<Figure> {
    check_count(indices.len())?;
    let tile = |&i: &i64| {
        Ok(Tile { image: rgb(split, i)?, caption: [vec![class_name(classes, split.label(i)?)?], notes(i)?].concat() })
    };
    arranged(indices.iter().map(tile).collect::<Result<Vec<_>>>()?)
}

/// The tiles, eight to a row.
fn arranged(tiles: Vec<Tile>) -> Result<Figure> {
    let columns = tiles.len().min(8) as u32;
    let rows = (tiles.len() as u32).div_ceil(columns);
    let lines = tiles.iter().map(|tile| tile.caption.len()).max().unwrap_or(1).max(2) as u32;
    // Height of a tile with its caption and the gap below.
    let pitch = TILE + 4 + LINE * lines + 8;
    let named: Vec<_> = tiles.iter().take(NAMED).map(|tile| tile.caption.join(", ")).collect();
    let more = if tiles.len() > NAMED { "; ..." } else { "" };
    let alt = format!("{}: {}{more}", counted(tiles.len(), "image"), named.join("; "));
    Ok(Figure::new([columns * (TILE + 8) + 8, rows * pitch + 8], alt, move |area| {
        tiles
            .iter()
            .zip(0..)
            .try_for_each(|(tile, i)| tile.draw(area, (px(8 + i % columns * (TILE + 8)), px(8 + i / columns * pitch))))
    }))
}

impl Tile {
    fn draw(&self, area: &Area, (x, y): (i32, i32)) -> Drawn {
        let side = px(TILE);
        let (size, pixels) = scaled(&self.image, side as u32);
        area.draw(&BitMapElement::with_owned_buffer((x, y), size, pixels).ok_or("an image without pixels")?)?;
        for (i, line) in self.caption.iter().enumerate() {
            let place = (x + side / 2, y + side + px(3 + LINE * i as u32));
            // The class in the colour of all text, the first note in orange, the second in blue.
            let ink = if i == 0 { INK } else { text_color(i % 2) };
            area.draw(&Text::new(line.clone(), place, anchored(12, HPos::Center, VPos::Top).color(&ink)))?;
        }
        Ok(())
    }
}
