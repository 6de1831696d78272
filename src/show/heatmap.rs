//! The confusion matrix.

use super::figure::{Area, Drawing, Figure, INK, Pen};
use crate::distill::Evaluation;
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(super) struct Heatmap {
    classes: Vec<String>,
    counts: Vec<Vec<usize>>,
}

/// Rows are true classes, columns predicted ones; a cell's shade is its share of the row.
pub fn confusion_matrix(evaluation: &Evaluation, classes: &[String]) -> Result<Figure> {
    let counts = evaluation.confusion()?;
    if counts.len() != classes.len() {
        return Err(Error::Input(format!("{} classes were evaluated but {} names given", counts.len(), classes.len())));
    }
    let size = 170 + 40 * counts.len().clamp(4, 20) as u32;
    Ok(Figure::new(size + 20, size, Drawing::Heatmap(Heatmap { classes: classes.to_vec(), counts })))
}

impl Heatmap {
    pub(super) fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, pen: Pen) -> std::result::Result<(), String> {
        self.cells(area, pen).map_err(|e| e.to_string())
    }

    fn cells<DB: DrawingBackend>(
        &self,
        area: &Area<DB>,
        pen: Pen,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let n = self.counts.len() as i32;
        let (left, top) = (pen.px(130) as i32, pen.px(36) as i32);
        let (width, height) = area.dim_in_pixel();
        let cell = ((width as i32 - left - pen.px(20) as i32) / n).min((height as i32 - top - pen.px(110) as i32) / n);
        let at = |h, v| Pos::new(h, v);
        let title = "Confusion: true class (rows), predicted class (columns)";
        area.draw(&Text::new(title, (pen.px(12) as i32, pen.px(10) as i32), pen.text(15)))?;
        for (r, row) in self.counts.iter().enumerate() {
            let total = row.iter().sum::<usize>().max(1) as f64;
            let y = top + r as i32 * cell;
            let name = pen.text(12).pos(at(HPos::Right, VPos::Center));
            area.draw(&Text::new(self.classes[r].clone(), (left - pen.px(6) as i32, y + cell / 2), name))?;
            for (c, &count) in row.iter().enumerate() {
                let x = left + c as i32 * cell;
                let share = count as f64 / total;
                let tint = |full: u8| (255.0 - share * (255.0 - f64::from(full))) as u8;
                let fill = RGBColor(tint(0), tint(90), tint(150));
                area.draw(&Rectangle::new([(x, y), (x + cell - 1, y + cell - 1)], fill.filled()))?;
                let ink = if share > 0.5 { WHITE } else { INK };
                let text = pen.text(12).color(&ink).pos(at(HPos::Center, VPos::Center));
                area.draw(&Text::new(count.to_string(), (x + cell / 2, y + cell / 2), text))?;
            }
        }
        let bottom = top + n * cell + pen.px(6) as i32;
        let upright = pen.text(12).transform(FontTransform::Rotate270).pos(at(HPos::Right, VPos::Center));
        for (c, class) in self.classes.iter().enumerate() {
            let x = left + c as i32 * cell + cell / 2;
            area.draw(&Text::new(class.clone(), (x, bottom), upright.clone()))?;
        }
        Ok(())
    }
}
