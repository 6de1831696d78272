//! Labelled images in a grid.

use super::figure::{Area, Drawing, Figure, Pen, text_color};
use crate::data::{Dataset, Split};
use crate::train::{Evaluation, soft_targets};
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use tch::{Kind, Tensor};

const TILE: u32 = 96;
const LINE: u32 = 15;
/// More would be a picture of many screens, and of gigabytes.
const MOST: usize = 400;

/// What stands below an image.
pub struct Caption {
    pub text: String,
    /// Further lines, each in a colour of its own.
    pub notes: Vec<String>,
}

pub(super) struct Gallery {
    columns: u32,
    /// Height of a tile with its caption and the gap below.
    pitch: u32,
    tiles: Vec<(Tile, Caption)>,
}

struct Tile {
    width: usize,
    height: usize,
    rgb: Vec<u8>, // [H, W, 3]
}

/// The images of `split` at `indices`, eight to a row, each with its class name.
pub fn gallery(split: &Split, classes: &[String], indices: &[i64]) -> Result<Figure> {
    let caption = |i| Ok(Caption { text: class_name(classes, split.label(i)?)?, notes: Vec::new() });
    captioned(split, indices, caption)
}

/// The first `count` images that `evaluation` got wrong, or, where it got none wrong, those it was least sure of: the true
/// class, and the class it took them for with its confidence.
pub fn mistakes(split: &Split, dataset: &Dataset, evaluation: &Evaluation, count: usize) -> Result<Figure> {
    let labels = split.labels()?;
    if evaluation.labels.size() != labels.size() || !evaluation.labels.f_equal(&labels)? {
        return Err(Error::Input(format!(
            "the evaluation is of {} labelled images and the {} split has {}: evaluate on that split, with all its labels",
            evaluation.total,
            split.name,
            split.len()
        )));
    }
    let (confidence, predicted) = evaluation.logits.f_softmax(-1, None::<Kind>)?.f_max_dim(-1, false)?;
    let wrong = predicted.f_ne_tensor(&evaluation.labels)?.f_nonzero()?.f_reshape(-1)?;
    let chosen = if wrong.numel() > 0 { wrong } else { confidence.f_argsort(0, false)? };
    let indices: Vec<i64> = Vec::<i64>::try_from(chosen)?.into_iter().take(count).collect();
    captioned(split, &indices, |i| {
        let class = class_name(&dataset.classes, i64::try_from(predicted.f_get(i)?)?)?;
        let sure = 100.0 * f64::try_from(confidence.f_get(i)?)?;
        let notes = vec![format!("{class} {sure:.0} %")];
        Ok(Caption { text: class_name(&dataset.classes, split.label(i)?)?, notes })
    })
}

/// The `count` images on which `student` is farthest from `teacher`, by `KL(teacher || student)` of their answers at T = 1:
/// the true class, and the class each of the two says with its confidence.
///
/// # Errors
/// When the two were not evaluated on `split`, or `count` is 0.
pub fn disagreements(
    split: &Split,
    dataset: &Dataset,
    teacher: &Evaluation,
    student: &Evaluation,
    count: usize,
) -> Result<Figure> {
    let logs = [teacher, student].map(|e| e.logits.f_log_softmax(-1, Kind::Float)); // [N, C] each
    let [teacher_log, student_log] = logs;
    let (teacher_log, student_log) = (teacher_log?, student_log?);
    let labels = split.labels()?;
    let fits = |e: &Evaluation| -> Result<bool> { Ok(e.labels.size() == labels.size() && e.labels.f_equal(&labels)?) };
    if teacher_log.size() != student_log.size() || !fits(teacher)? || !fits(student)? {
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
    captioned(split, &indices, |i| {
        let says = |log: &Tensor| -> Result<String> {
            let (sure, class) = log.f_get(i)?.f_exp()?.f_max_dim(-1, false)?;
            let class = class_name(&dataset.classes, i64::try_from(class)?)?;
            Ok(format!("{class} {:.0} %", 100.0 * f64::try_from(sure)?))
        };
        let notes = vec![says(&teacher_log)?, says(&student_log)?];
        Ok(Caption { text: class_name(&dataset.classes, split.label(i)?)?, notes })
    })
}

/// The images of `split` at `indices`, each with its class and the two most likely classes of its soft target
/// `softmax(logits / T)`. `logits` are `[N, C]`, in split order; `temperature` > 0.
///
/// # Errors
/// When the logits are not the split's and the dataset's by their shape, or an index is outside the split.
pub fn soft_target_gallery(
    split: &Split,
    dataset: &Dataset,
    logits: &Tensor,
    indices: &[i64],
    temperature: f64,
) -> Result<Figure> {
    let classes = &dataset.classes;
    if logits.size() != [split.len() as i64, classes.len() as i64] {
        return Err(Error::Input(format!(
            "logits are {:?}, but the {} split has {} images and there are {} classes: take the teacher's logits of this split",
            logits.size(),
            split.name,
            split.len(),
            classes.len()
        )));
    }
    let soft = soft_targets(logits, temperature)?;
    captioned(split, indices, |i| {
        let label = class_name(classes, split.label(i)?)?;
        let (shares, likely) = soft.f_get(i)?.f_topk(classes.len().min(2) as i64, 0, true, true)?;
        let likely =
            Vec::<i64>::try_from(likely)?.into_iter().zip(Vec::<f64>::try_from(shares.f_to_kind(Kind::Double)?)?);
        let note = |(class, share): (i64, f64)| Ok(format!("{} {:.0} %", class_name(classes, class)?, 100.0 * share));
        Ok(Caption { text: label, notes: likely.map(note).collect::<Result<_>>()? })
    })
}

fn class_name(classes: &[String], label: i64) -> Result<String> {
    let name = usize::try_from(label).ok().and_then(|l| classes.get(l));
    name.cloned().ok_or_else(|| Error::Input(format!("label {label} has no name among {} classes", classes.len())))
}

fn captioned(split: &Split, indices: &[i64], caption: impl Fn(i64) -> Result<Caption>) -> Result<Figure> {
    if indices.is_empty() {
        return Err(Error::Input("a gallery of no images; give at least one index".into()));
    }
    if indices.len() > MOST {
        return Err(Error::Input(format!(
            "a gallery of {} images; at most {MOST} fit into one figure, so give fewer, such as the first {MOST}",
            indices.len()
        )));
    }
    let tile = |&i: &i64| Ok((Tile::of(&split.image(i)?)?, caption(i)?));
    let tiles = indices.iter().map(tile).collect::<Result<Vec<_>>>()?;
    let columns = tiles.len().min(8) as u32;
    let rows = (tiles.len() as u32).div_ceil(columns);
    let lines = tiles.iter().map(|(_, caption)| 1 + caption.notes.len()).max().unwrap_or(1).max(2) as u32;
    let pitch = TILE + 4 + LINE * lines + 8;
    Ok(Figure::new(columns * (TILE + 8) + 8, rows * pitch + 8, Drawing::Gallery(Gallery { columns, pitch, tiles })))
}

impl Tile {
    /// From u8 `[3, H, W]`.
    fn of(image: &Tensor) -> Result<Self> {
        let (_, height, width) = image.size3()?;
        let pixels = image.f_permute([1, 2, 0])?.f_contiguous()?.f_reshape(-1)?;
        Ok(Self { width: width as usize, height: height as usize, rgb: Vec::try_from(pixels)? })
    }
}

impl Gallery {
    pub(super) fn alt(&self) -> String {
        const NAMED: usize = 8;
        let words = |(_, c): &(Tile, Caption)| {
            std::iter::once(c.text.as_str()).chain(c.notes.iter().map(String::as_str)).collect::<Vec<_>>().join(", ")
        };
        let named: Vec<_> = self.tiles.iter().take(NAMED).map(words).collect();
        let more = if self.tiles.len() > NAMED { "; ..." } else { "" };
        format!(
            "{} {}: {}{more}",
            self.tiles.len(),
            if self.tiles.len() == 1 { "image" } else { "images" },
            named.join("; ")
        )
    }

    pub(super) fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, pen: Pen) -> std::result::Result<(), String> {
        for (i, (tile, caption)) in self.tiles.iter().enumerate() {
            let (column, row) = (i as u32 % self.columns, i as u32 / self.columns);
            let corner = (pen.px(8 + column * (TILE + 8)) as i32, pen.px(8 + row * self.pitch) as i32);
            self.tile(area, pen, corner, tile, caption).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn tile<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
        (x, y): (i32, i32),
        tile: &Tile,
        caption: &Caption,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        // Nearest neighbour, the longer side filling the tile: a 32-pixel image shows its own pixels.
        let side = pen.px(TILE) as usize;
        let longest = tile.width.max(tile.height).max(1);
        let (width, height) = (tile.width * side / longest, tile.height * side / longest);
        for v in 0..height {
            for u in 0..width {
                let at = 3
                    * ((v * longest / side).min(tile.height - 1) * tile.width
                        + (u * longest / side).min(tile.width - 1));
                let fill = RGBColor(tile.rgb[at], tile.rgb[at + 1], tile.rgb[at + 2]);
                area.draw_pixel((x + u as i32, y + v as i32), &fill)?;
            }
        }
        let middle = x + side as i32 / 2;
        let style = pen.text(12).pos(Pos::new(HPos::Center, VPos::Top));
        let below = y + side as i32 + pen.px(3) as i32;
        area.draw(&Text::new(caption.text.clone(), (middle, below), style.clone()))?;
        for (i, note) in caption.notes.iter().enumerate() {
            let below = below + pen.px(LINE * (i as u32 + 1)) as i32;
            area.draw(&Text::new(note.clone(), (middle, below), style.clone().color(&text_color([1, 0][i % 2]))))?;
        }
        Ok(())
    }
}
