//! Labelled images in a grid.

use super::figure::{Area, Drawing, Figure, Pen, color};
use crate::data::{Dataset, Split};
use crate::distill::Evaluation;
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use tch::{Kind, Tensor};

const TILE: u32 = 96;
const CAPTION: u32 = 34;

/// What stands below an image.
pub struct Caption {
    pub text: String,
    /// A second line, set off in colour; empty for none.
    pub note: String,
}

pub(super) struct Gallery {
    columns: u32,
    tiles: Vec<(Tile, Caption)>,
}

struct Tile {
    width: usize,
    height: usize,
    rgb: Vec<u8>, // [H, W, 3]
}

/// The images of `split` at `indices`, eight to a row, each with its class name.
pub fn gallery(split: &Split, classes: &[String], indices: &[i64]) -> Result<Figure> {
    let caption = |i| Ok(Caption { text: class_name(classes, split.label(i)?)?, note: String::new() });
    captioned(split, indices, caption)
}

/// The first `count` images that `evaluation` got wrong, or, where it got none wrong, those it was least sure of: the true
/// class, and the class it took them for with its confidence.
pub fn mistakes(split: &Split, dataset: &Dataset, evaluation: &Evaluation, count: usize) -> Result<Figure> {
    let (confidence, predicted) = evaluation.logits.f_softmax(-1, None::<Kind>)?.f_max_dim(-1, false)?;
    let wrong = predicted.f_ne_tensor(&evaluation.labels)?.f_nonzero()?.f_reshape(-1)?;
    let chosen = if wrong.numel() > 0 { wrong } else { confidence.f_argsort(0, false)? };
    let indices: Vec<i64> = Vec::<i64>::try_from(chosen)?.into_iter().take(count).collect();
    captioned(split, &indices, |i| {
        let class = class_name(&dataset.classes, i64::try_from(predicted.f_get(i)?)?)?;
        let sure = 100.0 * f64::try_from(confidence.f_get(i)?)?;
        Ok(Caption { text: class_name(&dataset.classes, split.label(i)?)?, note: format!("{class} {sure:.0} %") })
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
    let tile = |&i: &i64| Ok((Tile::of(&split.image(i)?)?, caption(i)?));
    let tiles = indices.iter().map(tile).collect::<Result<Vec<_>>>()?;
    let columns = tiles.len().min(8) as u32;
    let rows = (tiles.len() as u32).div_ceil(columns);
    Ok(Figure::new(
        columns * (TILE + 8) + 8,
        rows * (TILE + CAPTION + 8) + 8,
        Drawing::Gallery(Gallery { columns, tiles }),
    ))
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
    pub(super) fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, pen: Pen) -> std::result::Result<(), String> {
        for (i, (tile, caption)) in self.tiles.iter().enumerate() {
            let (column, row) = (i as u32 % self.columns, i as u32 / self.columns);
            let corner = (pen.px(8 + column * (TILE + 8)) as i32, pen.px(8 + row * (TILE + CAPTION + 8)) as i32);
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
        area.draw(&Text::new(caption.note.clone(), (middle, below + pen.px(15) as i32), style.color(&color(1))))
    }
}
