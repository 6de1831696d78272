//! Heat maps: a shaded cell for each row and column, such as the confusion matrix.

use super::figure::{Area, Drawing, Figure, GRID, INK, Pen, contrast};
use crate::train::Evaluation;
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(super) struct Heatmap {
    /// Its first line is large, further ones are small.
    pub title: String,
    pub rows: Axis,
    pub columns: Axis,
    /// An empty cell has only its outline.
    pub cells: Vec<Vec<Option<Cell>>>,
    /// Nominal pixels.
    pub cell: (u32, u32),
    /// Shades with what they stand for, for a bar that runs from the first to the last. May be empty.
    pub key: Vec<(f64, String)>,
}

/// A title, which may be empty, and a label for each row or column.
pub(super) struct Axis {
    pub title: String,
    pub labels: Vec<String>,
}

impl Axis {
    pub fn new(title: &str, labels: &[String]) -> Self {
        Self { title: title.to_owned(), labels: labels.iter().map(|label| short_name(label)).collect() }
    }

    fn longest(&self) -> u32 {
        self.labels.iter().map(|label| label.chars().count() as u32).max().unwrap_or(0)
    }
}

pub(super) struct Cell {
    pub text: String,
    /// From -1, all orange, over 0, white, to 1, all blue; none is set back in grey.
    pub shade: Option<f64>,
}

/// Rows are true classes, columns predicted ones; a cell's shade is its share of the row.
pub fn confusion_matrix(evaluation: &Evaluation, classes: &[String]) -> Result<Figure> {
    let counts = evaluation.confusion()?;
    if counts.len() != classes.len() {
        return Err(Error::Input(format!("{} classes were evaluated but {} names given", counts.len(), classes.len())));
    }
    fits(counts.len(), counts.len())?;
    let row = |row: &Vec<usize>| {
        let total = row.iter().sum::<usize>().max(1) as f64;
        let cell = |&n: &usize| Some(Cell { text: n.to_string(), shade: Some(n as f64 / total) });
        row.iter().map(cell).collect()
    };
    let title = "Confusion: true class (rows), predicted class (columns)".to_owned();
    let axis = || Axis::new("", classes);
    let cells = counts.iter().map(row).collect();
    Ok(Heatmap { title, rows: axis(), columns: axis(), cells, cell: square(classes.len()), key: Vec::new() }.figure())
}

/// Differences, such as gains over temperature and alpha: blue above zero, orange below, white at zero. `rows` and `columns`
/// are an axis title and its labels; `values[row][column]` is in `unit`, which may be empty, and none leaves its cell empty.
///
/// # Errors
/// When there is not a value, or none, for each row and column, or there are no rows or columns.
pub fn parameter_map(
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
            "{height} row labels and {width} column labels for rows of {lengths:?} values: give one label each for at least \
             one row and one column, and None where there is no value"
        )));
    }
    fits(height, width)?;
    let finite = values.iter().flatten().flatten().filter(|v| v.is_finite());
    let highest = finite.map(|v| v.abs()).fold(0.0, f64::max);
    // Nothing but zeros is all white.
    let full = if highest > 0.0 { highest } else { 1.0 };
    let cell = |v: f64| Cell { text: signed(v), shade: Some(v / full).filter(|share| share.is_finite()) };
    let key = [1.0, 0.0, -1.0].map(|shade| (shade, format!("{} {unit}", signed(shade * full))));
    Ok(Heatmap {
        title: title.to_owned(),
        rows: Axis::new(rows.0, rows.1),
        columns: Axis::new(columns.0, columns.1),
        cells: values.iter().map(|row| row.iter().map(|v| v.map(cell)).collect()).collect(),
        cell: (side(1100, width, 62), side(740, height, 34)),
        key: key.into(),
    }
    .figure())
}

fn signed(value: f64) -> String {
    let text = format!("{value:+.1}");
    // A sign says that there is a difference.
    if text.ends_with("0.0") && text.len() == 4 { "0.0".into() } else { text }
}

/// Names of any length: the figure need not grow with them.
pub(super) fn short_name(name: &str) -> String {
    const LONGEST: usize = 18;
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    name.chars().take(LONGEST - 2).chain("..".chars()).collect()
}

/// A cell's sides where rows and columns are `classes`: large enough for a number, smaller where they are too many for that.
pub(super) fn square(classes: usize) -> (u32, u32) {
    let side = side(740, classes, 42);
    (side, side)
}

/// The side that lets `count` cells fit into `room`, up to `most`.
fn side(room: u32, count: usize, most: u32) -> u32 {
    (room / u32::try_from(count).unwrap_or(room).max(1)).clamp(1, most)
}

/// So many rows or columns have a pixel each.
const MOST: usize = 740;

/// Refuses what no screen can show.
pub(super) fn fits(rows: usize, columns: usize) -> Result<()> {
    if rows.max(columns) > MOST {
        return Err(Error::Input(format!(
            "a heat map of {rows} rows and {columns} columns; at most {MOST} of each fit on a screen, so show a part"
        )));
    }
    Ok(())
}

fn fill(shade: f64) -> RGBColor {
    let (r, g, b) = if shade < 0.0 { (190, 80, 0) } else { (0, 90, 150) };
    let tint = |full: u8| (255.0 - shade.abs().min(1.0) * (255.0 - f64::from(full))) as u8;
    RGBColor(tint(r), tint(g), tint(b))
}

/// What can be read on it.
fn ink(fill: RGBColor) -> RGBColor {
    // On a middle shade neither white nor the softer ink reaches 4.5:1; black does.
    [INK, WHITE].into_iter().find(|&ink| contrast(ink, fill) >= 4.5).unwrap_or(BLACK)
}

/// Nominal pixels.
struct Layout {
    left: u32,
    top: u32,
    /// Ends of the cells.
    right: u32,
    bottom: u32,
    /// Column labels stand upright.
    upright: bool,
    /// Size of row and column labels.
    text: u32,
    width: u32,
    height: u32,
}

/// A letter's width at size 12, amply.
const LETTER: u32 = 7;
const AXIS: u32 = 20;
/// Side of the colour key, and of the space before it.
const KEY: u32 = 16;
const TITLES: [u32; 2] = [15, 12];

impl Heatmap {
    pub(super) fn alt(&self) -> String {
        let title = self.title.lines().collect::<Vec<_>>().join("; ");
        format!("heat map, {} by {}: {title}", self.rows.labels.len(), self.columns.labels.len())
    }

    pub(super) fn figure(self) -> Figure {
        let Layout { width, height, .. } = self.layout();
        Figure::new(width, height, Drawing::Heatmap(self))
    }

    fn layout(&self) -> Layout {
        let axis = |axis: &Axis| if axis.title.is_empty() { 0 } else { AXIS };
        let left = 14 + axis(&self.rows) + LETTER * self.rows.longest();
        let top = 18 + 18 * self.title.lines().count() as u32;
        let right = left + self.cell.0 * self.columns.labels.len() as u32;
        let bottom = top + self.cell.1 * self.rows.labels.len() as u32;
        let upright = LETTER * self.columns.longest() > self.cell.0;
        let labels = if upright { LETTER * self.columns.longest() } else { 16 };
        let key =
            self.key.iter().map(|(_, text)| 2 * KEY + 8 + LETTER * text.chars().count() as u32).max().unwrap_or(0);
        let line = |(i, line): (usize, &str)| 24 + (TITLES[i.min(1)] * line.chars().count() as u32) * 11 / 20;
        let titles = self.title.lines().enumerate().map(line).max().unwrap_or(0);
        let (width, height) = ((right + key + 16).max(titles), bottom + labels + axis(&self.columns) + 16);
        Layout { left, top, right, bottom, upright, text: self.cell.0.min(self.cell.1).clamp(9, 12), width, height }
    }

    pub(super) fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, pen: Pen) -> std::result::Result<(), String> {
        let layout = self.layout();
        self.names(area, pen, &layout).map_err(|e| e.to_string())?;
        self.cells(area, pen, &layout).map_err(|e| e.to_string())?;
        self.key(area, pen, &layout).map_err(|e| e.to_string())
    }

    /// Title, axes and their labels.
    fn names<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
        at: &Layout,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let put = |text: &str, (x, y): (u32, u32), style: TextStyle| {
            area.draw(&Text::new(text.to_owned(), (pen.px(x) as i32, pen.px(y) as i32), style))
        };
        for (i, line) in self.title.lines().enumerate() {
            put(line, (12, 10 + 20 * i as u32), pen.text(TITLES[i.min(1)]))?;
        }
        let right = pen.text(at.text).pos(Pos::new(HPos::Right, VPos::Center));
        // Where cells are lower than a line of text, only every few of them have their name.
        let every = |side: u32| 9u32.div_ceil(side.max(1)) as usize;
        for (r, label) in self.rows.labels.iter().enumerate().step_by(every(self.cell.1)) {
            put(label, (at.left - 6, at.top + self.cell.1 * r as u32 + self.cell.1 / 2), right.clone())?;
        }
        let below = match at.upright {
            true => right.transform(FontTransform::Rotate270),
            false => pen.text(at.text).pos(Pos::new(HPos::Center, VPos::Top)),
        };
        for (c, label) in self.columns.labels.iter().enumerate().step_by(every(self.cell.0)) {
            put(label, (at.left + self.cell.0 * c as u32 + self.cell.0 / 2, at.bottom + 6), below.clone())?;
        }
        let middle = pen.text(13).pos(Pos::new(HPos::Center, VPos::Bottom));
        put(&self.columns.title, ((at.left + at.right) / 2, at.height - 8), middle.clone())?;
        // A word is turned, so that what was below is to the right; a letter such as T stands.
        let turned = if self.rows.title.chars().count() > 2 { FontTransform::Rotate270 } else { FontTransform::None };
        put(&self.rows.title, (10 + AXIS / 2, (at.top + at.bottom) / 2), middle.transform(turned))
    }

    fn cells<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
        at: &Layout,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let (width, height) = (pen.px(self.cell.0) as i32, pen.px(self.cell.1) as i32);
        let legible = self.cell.0 >= 28 && self.cell.1 >= 16;
        for (r, row) in self.cells.iter().enumerate() {
            for (c, cell) in row.iter().enumerate() {
                let x = pen.px(at.left) as i32 + c as i32 * width;
                let y = pen.px(at.top) as i32 + r as i32 * height;
                let corners = [(x, y), (x + width - 1, y + height - 1)];
                let Some(cell) = cell else {
                    area.draw(&Rectangle::new(corners, GRID.stroke_width(pen.px(1))))?;
                    continue;
                };
                let (back, ink) = match cell.shade {
                    Some(shade) => (fill(shade), ink(fill(shade))),
                    None => (RGBColor(240, 240, 240), RGBColor(100, 100, 100)),
                };
                area.draw(&Rectangle::new(corners, back.filled()))?;
                if legible {
                    let text = pen.text(12).color(&ink).pos(Pos::new(HPos::Center, VPos::Center));
                    area.draw(&Text::new(cell.text.clone(), (x + width / 2, y + height / 2), text))?;
                }
            }
        }
        Ok(())
    }

    /// A bar of all shades to the right of the cells.
    fn key<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
        at: &Layout,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let (Some((first, _)), Some((last, _))) = (self.key.first(), self.key.last()) else { return Ok(()) };
        // As high as the cells, within reason.
        let (top, bottom) = (pen.px(at.top) as i32, pen.px(at.bottom.min(at.top + 220)) as i32);
        let (left, right) = (pen.px(at.right + KEY) as i32, pen.px(at.right + 2 * KEY) as i32);
        for y in top..bottom {
            let shade = first + (last - first) * f64::from(y - top) / f64::from(bottom - top);
            area.draw(&Rectangle::new([(left, y), (right, y + 1)], fill(shade).filled()))?;
        }
        area.draw(&Rectangle::new([(left, top), (right, bottom)], INK.stroke_width(1)))?;
        for (shade, text) in &self.key {
            let share = (shade - first) / (last - first);
            let (edge, room) = (f64::from(pen.px(6)), f64::from(bottom - top));
            let y = top + (share * room).clamp(edge, (room - edge).max(edge)) as i32;
            let style = pen.text(12).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(text.clone(), (right + pen.px(6) as i32, y), style))?;
        }
        Ok(())
    }
}
