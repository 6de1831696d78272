//! Diagram of distillation: teacher, student, two losses, and the way that gradients take.

use super::canvas::{Area, Drawn, Figure, INK, anchored, color, px, stroke, text_color};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

/// Nominal pixels, as all lengths here.
const SIZE: [u32; 2] = [868, 356];
const BOX: [i32; 2] = [124, 52];
/// Length of an arrow's head.
const HEAD: i32 = 9;

/// A box: its centre, its lines of text, and its colour in the palette; `None` is an outline.
struct Part(i32, i32, &'static [&'static str], Option<usize>);

const IMAGE: Part = Part(70, 156, &["image"], None);
const TEACHER: Part = Part(242, 46, &["teacher", "frozen"], Some(6));
const STUDENT: Part = Part(242, 216, &["student", "learns"], Some(0));
const SOFT_TEACHER: Part = Part(422, 46, &["softmax(z / T)", "soft targets"], Some(6));
const SOFT_STUDENT: Part = Part(422, 156, &["softmax(z / T)"], Some(0));
const HARD_STUDENT: Part = Part(422, 260, &["softmax(z)"], Some(0));
const LABEL: Part = Part(422, 326, &["label"], None);
const KL: Part = Part(612, 100, &["KL divergence", "weight α T²"], None);
const CE: Part = Part(612, 290, &["cross-entropy", "weight 1 − α"], None);
const LOSS: Part = Part(790, 196, &["loss"], Some(1));

/// Draws what distillation computes: teacher and student see the same image, two losses compare the student with the
/// teacher's soft targets and with the label, and the gradient (dashed) reaches the student only.
pub fn distillation_diagram() -> Figure {
    let alt = "distillation: teacher and student see the same image; KL divergence, times T² and weighted by alpha, \
               compares their softened outputs, cross-entropy, weighted by 1 - alpha, compares the student with the \
               label; the gradient reaches the student only";
    Figure::new(SIZE, alt.to_owned(), |area| {
        let flows = [
            (&IMAGE, &TEACHER),
            (&IMAGE, &STUDENT),
            (&TEACHER, &SOFT_TEACHER),
            (&STUDENT, &SOFT_STUDENT),
            (&STUDENT, &HARD_STUDENT),
            (&SOFT_TEACHER, &KL),
            (&SOFT_STUDENT, &KL),
            (&HARD_STUDENT, &CE),
            (&LABEL, &CE),
            (&KL, &LOSS),
            (&CE, &LOSS),
        ];
        for (from, to) in flows {
            arrow(area, from.side(1, 0), to.side(-1, 0), INK, false)?;
        }
        // Back from the loss to the student, below and beside the arrows forward.
        let back = [
            (&LOSS, &KL),
            (&KL, &SOFT_STUDENT),
            (&SOFT_STUDENT, &STUDENT),
            (&LOSS, &CE),
            (&CE, &HARD_STUDENT),
            (&HARD_STUDENT, &STUDENT),
        ];
        for (from, to) in back {
            arrow(area, from.side(-1, 14), to.side(1, 14), color(1), true)?;
        }
        for part in [IMAGE, TEACHER, STUDENT, SOFT_TEACHER, SOFT_STUDENT, HARD_STUDENT, LABEL, KL, CE, LOSS] {
            part.draw(area)?;
        }
        let notes = [((242, 86), "no gradient", text_color(6)), ((242, 256), "gradient", text_color(1))];
        for ((x, y), note, ink) in notes {
            let style = anchored(13, HPos::Center, VPos::Center).color(&ink);
            area.draw(&Text::new(note, (scaled(x), scaled(y)), style))?;
        }
        Ok(())
    })
}

fn scaled(length: i32) -> i32 {
    px(length.unsigned_abs()) * length.signum()
}

impl Part {
    /// A place on the left (-1) or right (1) side of the box, so far below its middle.
    fn side(&self, side: i32, below: i32) -> (i32, i32) {
        (self.0 + side * BOX[0] / 2, self.1 + below)
    }

    fn draw(&self, area: &Area) -> Drawn {
        let Self(x, y, lines, filled) = *self;
        let [half_width, half_height] = [BOX[0] / 2, if lines.len() > 1 { BOX[1] / 2 } else { 19 }];
        let corners =
            [(-half_width, -half_height), (half_width, half_height)].map(|(dx, dy)| (scaled(x + dx), scaled(y + dy)));
        let fill = filled.map_or(WHITE.mix(1.0), |i| color(i).mix(0.14));
        area.draw(&Rectangle::new(corners, WHITE.filled()))?;
        area.draw(&Rectangle::new(corners, fill.filled()))?;
        area.draw(&Rectangle::new(corners, stroke(filled.map_or(INK, color), 1)))?;
        let top = y - 9 * (lines.len() as i32 - 1);
        for (line, text) in (0..).zip(lines) {
            let style = anchored(if line == 0 { 15 } else { 12 }, HPos::Center, VPos::Center);
            area.draw(&Text::new(*text, (scaled(x), scaled(top + 19 * line)), style))?;
        }
        Ok(())
    }
}

fn arrow(area: &Area, from: (i32, i32), to: (i32, i32), ink: RGBColor, dashed: bool) -> Drawn {
    let [a, b] = [from, to].map(|(x, y)| (scaled(x), scaled(y)));
    let (dx, dy) = (f64::from(b.0 - a.0), f64::from(b.1 - a.1));
    let (ux, uy) = (dx / dx.hypot(dy), dy / dx.hypot(dy));
    let at = |back: f64, aside: f64| {
        (b.0 - (ux * back - uy * aside).round() as i32, b.1 - (uy * back + ux * aside).round() as i32)
    };
    let head = f64::from(scaled(HEAD));
    let line = vec![a, at(head * 0.8, 0.0)];
    match dashed {
        true => area.draw(&DashedPathElement::new(line, px(5), px(4), stroke(ink, 1)))?,
        false => area.draw(&PathElement::new(line, stroke(ink, 1)))?,
    }
    Ok(area.draw(&Polygon::new(vec![b, at(head, head * 0.45), at(head, -head * 0.45)], ink.filled()))?)
}
