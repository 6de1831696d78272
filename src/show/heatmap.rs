//! Heat maps: a shaded cell for each row and column, such as the confusion matrix.

use super::canvas::{Area, Drawn, Figure, GRID, INK, anchored, contrast, px, stroke, text};
use super::words::short_name;
use crate::train::Evaluation;
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

/// Upper estimate of a letter's width at size 12, in nominal pixels.
const LETTER: u32 = 7;
/// Height of an axis title.
const AXIS: u32 = 20;
/// Width of the colour bar, and of the space before it.
const BAR: u32 = 16;
/// Text sizes of the title's first line and of further ones.
const TITLES: [u32; 2] = [15, 12];

/// What a heat map shows.
pub(super) struct Heatmap {
    /// Its first line is large, further ones are small.
    pub title: String,
    pub rows: Axis,
    pub columns: Axis,
    /// An empty cell has only its outline.
    pub cells: Vec<Vec<Option<Cell>>>,
    /// Width and height of a cell in nominal pixels.
    pub cell: (u32, u32),
    /// The labels of the colour bar, which runs from the first of these shades to the last; without labels there is no
    /// bar.
    pub bar: Vec<(f64, String)>,
}

/// A title, which may be empty, and a label for each row or column.
pub(super) struct Axis {
    title: String,
    labels: Vec<String>,
}

impl Axis {
    pub fn new(title: &str, labels: &[String]) -> Self {
        Self { title: title.to_owned(), labels: labels.iter().map(|label| short_name(label)).collect() }
    }

    /// Returns the length of the longest label.
    fn longest(&self) -> u32 {
        LETTER * self.labels.iter().map(|label| label.chars().count() as u32).max().unwrap_or(0)
    }

    /// Returns the height of the title.
    fn height(&self) -> u32 {
        if self.title.is_empty() { 0 } else { AXIS }
    }
}

/// A cell's text and colour.
pub(super) struct Cell {
    pub text: String,
    /// In [-1, 1]: -1 is orange, 0 white, 1 blue; `None` is grey.
    pub shade: Option<f64>,
}

/// Draws how many images of each true class (rows) were predicted as each class (columns). The shade of a cell is its
/// share of the row.
///
/// # Errors
/// When there is not a name for each class, or there are more classes than fit on a screen.
pub fn confusion_matrix(evaluation: &Evaluation, classes: &[String]) -> Result<Figure> {
    let counts = evaluation.confusion()?;
    if counts.len() != classes.len() {
        return Err(Error::Input(format!("{} classes were evaluated but {} names given", counts.len(), classes.len())));
    }
    check_size(counts.len(), counts.len())?;
    let row = |row: &Vec<usize>| {
        let total = row.iter().sum::<usize>().max(1) as f64;
        let cell = |&n: &usize| Some(Cell { text: n.to_string(), shade: Some(n as f64 / total) });
        row.iter().map(cell).collect()
    };
    let title = "Confusion: true class (rows), predicted class (columns)".to_owned();
    let [rows, columns] = [(); 2].map(|()| Axis::new("", classes));
    let (cells, cell) = (counts.iter().map(row).collect(), square(classes.len()));
    Ok(Heatmap { title, rows, columns, cells, cell, bar: Vec::new() }.figure())
}

/// Draws differences, such as gains over temperature and alpha: blue above zero, orange below, white at zero. `rows`
/// and `columns` are an axis title and its labels; `values[row][column]` is in `unit`, which may be empty, and `None`
/// leaves its cell empty.
///
/// # Errors
/// When `values` does not fit the labels, or there are no rows or columns, or more than fit on a screen.
pub(super) fn parameter_map(
    title: &str,
    rows: (&str, &[String]),
    columns: (&str, &[String]),
    values: &[Vec<Option<f64>>],
    unit: &str,
) -> Result<Figure> {
    let (height, width) = (rows.1.len(), columns.1.len());
    if height == 0 || width == 0 || values.len() != height || values.iter().any(|row| row.len() != width) {
        let lengths: Vec<_> = values.iter().map(Vec::len).collect();
        return Err(Error::Input(format!(
            "{height} row labels and {width} column labels for rows of {lengths:?} values: give one label each for at \
             least one row and one column, and None where there is no value"
        )));
    }
    check_size(height, width)?;
    let finite = values.iter().flatten().flatten().filter(|v| v.is_finite());
    let highest = finite.map(|v| v.abs()).fold(0.0, f64::max);
    // Nothing but zeros is all white.
    let full = if highest > 0.0 { highest } else { 1.0 };
    let cell = |v: f64| Cell { text: signed(v), shade: Some(v / full).filter(|share| share.is_finite()) };
    let bar = [1.0, 0.0, -1.0].map(|shade| (shade, format!("{} {unit}", signed(shade * full))));
    Ok(Heatmap {
        title: title.to_owned(),
        rows: Axis::new(rows.0, rows.1),
        columns: Axis::new(columns.0, columns.1),
        cells: values.iter().map(|row| row.iter().map(|v| v.map(cell)).collect()).collect(),
        cell: (side(1100, width, 62), side(740, height, 34)),
        bar: bar.into(),
    }
    .figure())
}

/// Returns a value with its sign and one decimal.
fn signed(value: f64) -> String {
    let text = format!("{value:+.1}");
    // A zero has no sign, because a sign stands for a difference.
    if text.ends_with("0.0") && text.len() == 4 { "0.0".into() } else { text }
}

/// Returns the sides of a cell where rows and columns are `classes`: large enough for a number, unless there are too
/// many classes for that.
pub(super) fn square(classes: usize) -> (u32, u32) {
    let side = side(740, classes, 42);
    (side, side)
}

/// Returns the side of a cell such that `count` cells fit into `room`; at most `most`.
fn side(room: u32, count: usize, most: u32) -> u32 {
    (room / u32::try_from(count).unwrap_or(room).max(1)).clamp(1, most)
}

/// Maximal number of rows and of columns: each then has a pixel.
const MOST: usize = 740;

/// Refuses more rows or columns than a screen has pixels.
pub(super) fn check_size(rows: usize, columns: usize) -> Result<()> {
    if rows.max(columns) > MOST {
        return Err(Error::Input(format!(
            "a heat map of {rows} rows and {columns} columns; at most {MOST} of each fit on a screen, so show a part"
        )));
    }
    Ok(())
}

/// Returns the colour of a shade in [-1, 1].
pub(super) fn fill(shade: f64) -> RGBColor {
    let (r, g, b) = if shade < 0.0 { (190, 80, 0) } else { (0, 90, 150) };
    let tint = |full: u8| (255.0 - shade.abs().min(1.0) * (255.0 - f64::from(full))) as u8;
    RGBColor(tint(r), tint(g), tint(b))
}

/// Returns the text colour that can be read on the colour `fill`.
pub(super) fn ink(fill: RGBColor) -> RGBColor {
    // On a middle shade neither white nor the softer ink reaches 4.5:1; black does.
    [INK, WHITE].into_iter().find(|&ink| contrast(ink, fill) >= 4.5).unwrap_or(BLACK)
}

/// Where the parts of a figure are, in nominal pixels.
struct Layout {
    left: u32,
    top: u32,
    /// Ends of the cells.
    right: u32,
    bottom: u32,
    /// Column labels stand upright.
    upright: bool,
    width: u32,
    height: u32,
}

impl Heatmap {
    pub(super) fn figure(self) -> Figure {
        let title = self.title.lines().collect::<Vec<_>>().join("; ");
        let alt = format!("heat map, {} by {}: {title}", self.rows.labels.len(), self.columns.labels.len());
        let layout = self.layout();
        Figure::new([layout.width, layout.height], alt, move |area| {
            self.draw_names(area, &layout)?;
            self.draw_cells(area, &layout)?;
            self.draw_bar(area, &layout)
        })
    }

    fn layout(&self) -> Layout {
        let left = 14 + self.rows.height() + self.rows.longest();
        let top = 18 + 18 * self.title.lines().count() as u32;
        let right = left + self.cell.0 * self.columns.labels.len() as u32;
        let bottom = top + self.cell.1 * self.rows.labels.len() as u32;
        let upright = self.columns.longest() > self.cell.0;
        let labels = if upright { self.columns.longest() } else { 16 };
        let bar = self.bar.iter().map(|(_, text)| 2 * BAR + 8 + LETTER * text.chars().count() as u32);
        let line = |(i, line): (usize, &str)| 24 + (TITLES[i.min(1)] * line.chars().count() as u32) * 11 / 20;
        let titles = self.title.lines().enumerate().map(line).max().unwrap_or(0);
        let width = (right + bar.max().unwrap_or(0) + 16).max(titles);
        Layout { left, top, right, bottom, upright, width, height: bottom + labels + self.columns.height() + 16 }
    }

    /// Draws the title, the axes and their labels.
    fn draw_names(&self, area: &Area, at: &Layout) -> Drawn {
        let put = |name: &str, (x, y): (u32, u32), style: TextStyle| -> Drawn {
            Ok(area.draw(&Text::new(name.to_owned(), (px(x), px(y)), style))?)
        };
        let (width, height) = self.cell;
        for (i, line) in self.title.lines().enumerate() {
            put(line, (12, 10 + 20 * i as u32), text(TITLES[i.min(1)]))?;
        }
        let size = width.min(height).clamp(9, 12);
        let right = anchored(size, HPos::Right, VPos::Center);
        // Where cells are lower than a line of text, only some of them have a label.
        let every = |side: u32| 9u32.div_ceil(side.max(1)) as usize;
        for (r, label) in self.rows.labels.iter().enumerate().step_by(every(height)) {
            put(label, (at.left - 6, at.top + height * r as u32 + height / 2), right.clone())?;
        }
        let below = match at.upright {
            true => right.transform(FontTransform::Rotate270),
            false => anchored(size, HPos::Center, VPos::Top),
        };
        for (c, label) in self.columns.labels.iter().enumerate().step_by(every(width)) {
            put(label, (at.left + width * c as u32 + width / 2, at.bottom + 6), below.clone())?;
        }
        let middle = anchored(13, HPos::Center, VPos::Bottom);
        put(&self.columns.title, ((at.left + at.right) / 2, at.height - 8), middle.clone())?;
        // A word is turned by 270 degrees; a letter such as T is not.
        let turned = if self.rows.title.chars().count() > 2 { FontTransform::Rotate270 } else { FontTransform::None };
        put(&self.rows.title, (10 + AXIS / 2, (at.top + at.bottom) / 2), middle.transform(turned))
    }

    fn draw_cells(&self, area: &Area, at: &Layout) -> Drawn {
        let (width, height) = (px(self.cell.0), px(self.cell.1));
        let legible = self.cell.0 >= 28 && self.cell.1 >= 16;
        for (r, row) in self.cells.iter().enumerate() {
            for (c, cell) in row.iter().enumerate() {
                let (x, y) = (px(at.left) + c as i32 * width, px(at.top) + r as i32 * height);
                let corners = [(x, y), (x + width - 1, y + height - 1)];
                let Some(cell) = cell else {
                    area.draw(&Rectangle::new(corners, stroke(GRID, 1)))?;
                    continue;
                };
                let (back, ink) = match cell.shade {
                    Some(shade) => (fill(shade), ink(fill(shade))),
                    None => (RGBColor(240, 240, 240), RGBColor(100, 100, 100)),
                };
                area.draw(&Rectangle::new(corners, back.filled()))?;
                if legible {
                    let style = anchored(12, HPos::Center, VPos::Center).color(&ink);
                    area.draw(&Text::new(cell.text.clone(), (x + width / 2, y + height / 2), style))?;
                }
            }
        }
        Ok(())
    }

    /// Draws a bar of all shades to the right of the cells.
    fn draw_bar(&self, area: &Area, at: &Layout) -> Drawn {
        let (Some((first, _)), Some((last, _))) = (self.bar.first(), self.bar.last()) else { return Ok(()) };
        // As high as the cells, but at most 220 pixels.
        let (top, bottom) = (px(at.top), px(at.bottom.min(at.top + 220)));
        let (left, right) = (px(at.right + BAR), px(at.right + 2 * BAR));
        for y in top..bottom {
            let shade = first + (last - first) * f64::from(y - top) / f64::from(bottom - top);
            area.draw(&Rectangle::new([(left, y), (right, y + 1)], fill(shade).filled()))?;
        }
        area.draw(&Rectangle::new([(left, top), (right, bottom)], INK.stroke_width(1)))?;
        for (shade, label) in &self.bar {
            let share = (shade - first) / (last - first);
            let (edge, room) = (f64::from(px(6)), f64::from(bottom - top));
            let y = top + (share * room).clamp(edge, (room - edge).max(edge)) as i32;
            area.draw(&Text::new(label.clone(), (right + px(6), y), anchored(12, HPos::Left, VPos::Center)))?;
        }
        Ok(())
    }
}
