//! Answers as strips: a row for each class, shaded by its probability, over the temperature or over the training.

use super::canvas::{Area, Drawn, Figure, INK, anchored, color, px, stroke, text};
use super::gallery::{class_name, fitting, rgb, scaled};
use super::heatmap::{fill, ink};
use super::words::{counted, percent, short, short_name};
use crate::data::{Dataset, Split};
use crate::train::soft_targets;
use crate::{Error, Result};
use image::RgbImage;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use tch::{Kind, Tensor};

/// Upper estimate of a letter's width at size 12, in nominal pixels, as all sizes here.
const LETTER: u32 = 7;
/// Height of the rows together, at most.
const ROWS: u32 = 220;
const GAP: u32 = 22;
/// More images or columns do not fit on a screen, and more classes have no row of a pixel.
const IMAGES: usize = 4;
const COLUMNS: usize = 8;
const CLASSES: usize = ROWS as usize;
/// Height of the largest entropy's bar.
const BAR: u32 = 40;

/// One image, and its answers: a column of probabilities for each temperature or step.
struct Strip {
    image: RgbImage,
    class: String,
    /// The true class; `None` without a label.
    label: Option<usize>,
    columns: Vec<Vec<f64>>,
}

impl Strip {
    fn new(split: &Split, classes: &[String], index: i64, columns: Vec<Vec<f64>>) -> Result<Self> {
        let label = split.label(index)?;
        let class = class_name(classes, label)?;
        Ok(Self { image: rgb(split, index)?, class, label: usize::try_from(label).ok(), columns })
    }

    /// Draws the image, its longer side `side` long.
    fn draw_image(&self, area: &Area, (x, y): (u32, u32), side: u32) -> Drawn {
        let (size, pixels) = scaled(&self.image, px(side) as u32);
        let picture = BitMapElement::with_owned_buffer((px(x), px(y)), size, pixels);
        Ok(area.draw(&picture.ok_or("an image without pixels")?)?)
    }

    /// Draws the columns side by side, `width` in all and `row` the height of a class, and frames the row of the label.
    /// With `said`, cells hold their probability in percent.
    fn draw_cells(&self, area: &Area, (x, y): (u32, u32), width: u32, row: u32, said: bool) -> Drawn {
        let edge = |c: usize| px(x) + px(width) * c as i32 / self.columns.len() as i32;
        let top = |class: usize| px(y) + px(row) * class as i32;
        for (c, column) in self.columns.iter().enumerate() {
            for (class, &p) in column.iter().enumerate() {
                let (corner, shade) = ((edge(c), top(class)), fill(p));
                area.draw(&Rectangle::new([corner, (edge(c + 1), top(class + 1))], shade.filled()))?;
                if said {
                    let ink = ink(shade);
                    let style = anchored(12, HPos::Center, VPos::Center).color(&ink);
                    let middle = ((edge(c) + edge(c + 1)) / 2, corner.1 + px(row) / 2);
                    area.draw(&Text::new(percent(p, 0), middle, style))?;
                }
            }
        }
        let rows = self.columns.first().map_or(0, Vec::len);
        let (left, right) = (edge(0), edge(self.columns.len()));
        area.draw(&Rectangle::new([(left, top(0)), (right, top(rows))], stroke(INK, 1)))?;
        if let Some(label) = self.label {
            area.draw(&Rectangle::new([(left, top(label)), (right, top(label + 1))], stroke(color(1), 2)))?;
        }
        Ok(())
    }
}

/// Draws `softmax(logits / T)` of one to four images of `split`, at `indices`: a column for each temperature T > 0 and
/// a row for each class, with its probability in percent. Below each column stands the entropy of the soft target in
/// bits. `logits` are `[N, C]`, in split order.
///
/// # Errors
/// When the shape of the logits does not fit split and dataset, an index is outside the split, or there are no images,
/// temperatures or classes, or more than fit on a screen.
pub fn soft_target_strips(
    split: &Split,
    dataset: &Dataset,
    logits: &Tensor,
    indices: &[i64],
    temperatures: &[f64],
) -> Result<Figure> {
    let classes = &dataset.classes;
    fitting(split, classes, logits)?;
    check("images", indices.len(), IMAGES)?;
    check("temperatures", temperatures.len(), COLUMNS)?;
    check("classes", classes.len(), CLASSES)?;
    let strip = |&index: &i64| {
        split.label(index)?; // refuses an index outside the split in our words
        let logits = logits.f_get(index)?;
        let columns = temperatures.iter().map(|&t| probabilities(&soft_targets(&logits, t)?)).collect::<Result<_>>()?;
        Strip::new(split, classes, index, columns)
    };
    let strips = indices.iter().map(strip).collect::<Result<Vec<_>>>()?;
    let bits: Vec<Vec<f64>> = strips.iter().map(|strip| strip.columns.iter().map(|p| entropy(p)).collect()).collect();
    let names: Vec<String> = classes.iter().map(|class| short_name(class)).collect();
    let temperatures: Vec<String> = temperatures.iter().map(|&t| short(t)).collect();
    let of_image = |(strip, bits): (&Strip, &Vec<f64>)| {
        format!(
            "{}, entropy {} bits",
            strip.class,
            bits.iter().map(|&b| format!("{b:.1}")).collect::<Vec<_>>().join(", ")
        )
    };
    let alt = format!(
        "soft targets at T = {}: {}",
        temperatures.join(", "),
        strips.iter().zip(&bits).map(of_image).collect::<Vec<_>>().join("; ")
    );
    let (row, width) = ((ROWS / classes.len() as u32).min(22), 42 * temperatures.len() as u32);
    let left = label_width(&names, "entropy, bits");
    // As wide as the cells, or as the image with its label.
    let block = GAP + width.max(96 + LETTER * 15);
    let (image, top) = (34, 146);
    let bottom = top + row * classes.len() as u32;
    let size = [left + block * strips.len() as u32, bottom + BAR + 44];
    Ok(Figure::new(size.map(|side| side.max(430)), alt, move |area| {
        let title = "Soft targets at temperature T: probability of each class, %";
        area.draw(&Text::new(title, (px(12), px(8)), text(15)))?;
        draw_names(area, &names, (left - 8, top), row)?;
        let right = |y: u32| ((px(left - 8), px(y)), anchored(12, HPos::Right, VPos::Center));
        for (said, y) in [("temperature T", top - 11), ("entropy, bits", bottom + BAR + 17)] {
            let (place, style) = right(y);
            area.draw(&Text::new(said, place, style))?;
        }
        let most = (names.len() as f64).log2().max(0.1);
        for (i, (strip, bits)) in strips.iter().zip(&bits).enumerate() {
            let x = left + block * i as u32;
            strip.draw_image(area, (x, image), 84)?;
            area.draw(&Text::new("label (framed):", (px(x + 92), px(image + 8)), text(12)))?;
            area.draw(&Text::new(short_name(&strip.class), (px(x + 92), px(image + 26)), text(13)))?;
            strip.draw_cells(area, (x, top), width, row, row >= 14)?;
            for (c, (bits, temperature)) in bits.iter().zip(&temperatures).enumerate() {
                let middle = x + 42 * c as u32 + 21;
                let centred = |y: u32| ((px(middle), px(y)), anchored(12, HPos::Center, VPos::Center));
                let (place, style) = centred(top - 11);
                area.draw(&Text::new(temperature.clone(), place, style))?;
                let base = px(bottom + BAR + 6);
                let height = (f64::from(px(BAR)) * bits / most) as i32;
                let corners = [(px(middle - 12), base - height), (px(middle + 12), base)];
                area.draw(&Rectangle::new(corners, color(2).filled()))?;
                let (place, style) = centred(bottom + BAR + 17);
                area.draw(&Text::new(format!("{bits:.1}"), place, style))?;
            }
        }
        Ok(())
    }))
}

/// Draws how a student's answers to a few images of `split`, at `indices`, change while it learns: a row for each
/// class, shaded by its probability, over the steps. `answers` are the number of the training step and the student's
/// logits `[K, C]` of the `K` images then. `teacher` are the teacher's logits `[K, C]`, which stand beside the strip.
///
/// # Errors
/// When the logits do not fit images and classes, an index is outside the split, or there is no answer, or more images
/// or classes than fit on a screen.
pub fn answers_over_steps(
    split: &Split,
    dataset: &Dataset,
    indices: &[i64],
    answers: &[(usize, Tensor)],
    teacher: &Tensor,
) -> Result<Figure> {
    const MOST: usize = 48;
    const ACROSS: u32 = 3;
    const WIDTH: u32 = 168;
    let classes = &dataset.classes;
    check("images", indices.len(), MOST)?;
    check("classes", classes.len(), CLASSES)?;
    check("answers", answers.len(), px(WIDTH) as usize)?;
    let expected = [indices.len() as i64, classes.len() as i64];
    let all = || answers.iter().map(|(_, logits)| logits).chain([teacher]);
    if let Some(odd) = all().find(|logits| logits.size() != expected) {
        return Err(Error::Input(format!(
            "logits are {:?}, expected {expected:?}: a row for each of the {} images, a column for each class",
            odd.size(),
            indices.len()
        )));
    }
    let soft = |logits: &Tensor, i: usize| probabilities(&soft_targets(&logits.f_get(i as i64)?, 1.0)?);
    let strips_of = |(i, &index): (usize, &i64)| {
        let columns = answers.iter().map(|(_, logits)| soft(logits, i)).collect::<Result<Vec<_>>>()?;
        let of_teacher = Strip::new(split, classes, index, vec![soft(teacher, i)?])?;
        Ok((Strip::new(split, classes, index, columns)?, of_teacher))
    };
    let strips = indices.iter().enumerate().map(strips_of).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = classes.iter().map(|class| short_name(class)).collect();
    let steps = [0, answers.len() - 1].map(|i| answers[i].0);
    let share = |strip: &Strip| strip.columns.last().zip(strip.label).map_or(0.0, |(last, label)| last[label]);
    let said: Vec<String> = strips.iter().map(|(s, _)| format!("{} {} %", s.class, percent(share(s), 0))).collect();
    let alt = format!(
        "a student's answers to {} from step {} to {}; probability of the label at the end: {}",
        counted(strips.len(), "image"),
        steps[0],
        steps[1],
        said.join(", ")
    );
    let row = (ROWS / 2 / classes.len() as u32).clamp(1, 10);
    let (left, image, top) = (label_width(&names, ""), 60, 62);
    let height = (row * classes.len() as u32).max(image + 18);
    let block = image + 10 + WIDTH + 8 + 18;
    let rows = (strips.len() as u32).div_ceil(ACROSS);
    let size = [left + (block + GAP) * ACROSS.min(strips.len() as u32), top + (height + 16) * rows + 26];
    Ok(Figure::new([size[0].max(560), size[1]], alt, move |area| {
        let title = "A student's answers while it learns, beside the teacher's";
        area.draw(&Text::new(title, (px(12), px(8)), text(15)))?;
        draw_scale(area, (12, 32))?;
        for (i, (student, teacher)) in strips.iter().enumerate() {
            let (across, down) = (i as u32 % ACROSS, i as u32 / ACROSS);
            let (x, y) = (left + (block + GAP) * across, top + (height + 16) * down);
            let strip = x + image + 10;
            if across == 0 {
                draw_names(area, &names, (left - 8, y), row)?;
            }
            student.draw_image(area, (x, y), image)?;
            let below = anchored(12, HPos::Center, VPos::Top);
            area.draw(&Text::new(short_name(&student.class), (px(x + image / 2), px(y + image + 3)), below.clone()))?;
            student.draw_cells(area, (strip, y), WIDTH, row, false)?;
            teacher.draw_cells(area, (strip + WIDTH + 8, y), 18, row, false)?;
            // The axis stands below the last image of each column.
            if i + ACROSS as usize >= strips.len() {
                let under = y + row * names.len() as u32 + 3;
                let at = |x: u32, said: String, across| -> Drawn {
                    Ok(area.draw(&Text::new(said, (px(x), px(under)), anchored(12, across, VPos::Top)))?)
                };
                at(strip, steps[0].to_string(), HPos::Left)?;
                at(strip + WIDTH / 2, "training step".into(), HPos::Center)?;
                at(strip + WIDTH, steps[1].to_string(), HPos::Right)?;
                let teacher = (px(strip + WIDTH + 17), px(under + 13));
                area.draw(&Text::new("teacher", teacher, anchored(12, HPos::Center, VPos::Top)))?;
            }
        }
        Ok(())
    }))
}

fn check(what: &str, count: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&count) {
        return Ok(());
    }
    Err(Error::Input(format!("{count} {what} for a figure of strips; give 1 to {most}")))
}

/// One image's probabilities `[C]`, which must be finite.
fn probabilities(soft: &Tensor) -> Result<Vec<f64>> {
    let values = Vec::<f64>::try_from(soft.f_to_kind(Kind::Double)?)?;
    if values.iter().all(|p| p.is_finite()) {
        return Ok(values);
    }
    Err(Error::Input(
        "some logits are NaN or infinite, so they have no probabilities; did the training diverge?".into(),
    ))
}

/// The entropy in bits.
fn entropy(probabilities: &[f64]) -> f64 {
    // Without the subtraction, certainty would be -0.
    0.0 - probabilities.iter().filter(|&&p| p > 0.0).map(|p| p * p.log2()).sum::<f64>()
}

/// The space left of the rows for their names, or for another text that stands below them.
fn label_width(names: &[String], other: &str) -> u32 {
    let letters = names.iter().map(String::as_str).chain([other]).map(|name| name.chars().count() as u32);
    20 + LETTER * letters.max().unwrap_or(0)
}

/// Draws the names of the rows, as many as fit, ending at `x`.
fn draw_names(area: &Area, names: &[String], (x, y): (u32, u32), row: u32) -> Drawn {
    let style = anchored(row.clamp(9, 12), HPos::Right, VPos::Center);
    for (i, name) in names.iter().enumerate().step_by(9u32.div_ceil(row) as usize) {
        let place = (px(x), px(y) + px(row) * i as i32 + px(row) / 2);
        area.draw(&Text::new(name.clone(), place, style.clone()))?;
    }
    Ok(())
}

/// Draws what the shades and the frame mean.
fn draw_scale(area: &Area, (x, y): (u32, u32)) -> Drawn {
    const WIDTH: u32 = 100;
    let left = anchored(12, HPos::Left, VPos::Center);
    let middle = px(y + 6);
    area.draw(&Text::new("probability 0 %", (px(x), middle), left.clone()))?;
    let bar = x + 96;
    for step in 0..px(WIDTH) {
        let at = px(bar) + step;
        let shade = fill(f64::from(step) / f64::from(px(WIDTH)));
        area.draw(&Rectangle::new([(at, px(y)), (at + 1, px(y + 12))], shade.filled()))?;
    }
    area.draw(&Rectangle::new([(px(bar), px(y)), (px(bar + WIDTH), px(y + 12))], stroke(INK, 1)))?;
    area.draw(&Text::new("100 %", (px(bar + WIDTH + 8), middle), left.clone()))?;
    let frame = bar + WIDTH + 66;
    area.draw(&Rectangle::new([(px(frame), px(y)), (px(frame + 30), px(y + 12))], stroke(color(1), 2)))?;
    Ok(area.draw(&Text::new("the label's row", (px(frame + 38), middle), left))?)
}
