//! A figure holds what it shows and draws it when asked, as PNG or SVG.

use super::softening::Softening;
use super::{bars::Bars, curves::Curves, gallery::Gallery, heatmap::Heatmap, line::Line, reliability::Reliability};
use crate::store::atomic;
use crate::{Error, Result};
use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::path::Path;

/// PNG pixels per SVG pixel.
const PNG_SCALE: u32 = 2;

pub(super) type Area<'a, DB> = DrawingArea<DB, Shift>;

/// A picture that a cell can end with. Always dark on white, so that it reads the same in light and dark themes.
pub struct Figure {
    width: u32,
    height: u32,
    drawing: Drawing,
}

pub(super) enum Drawing {
    Curves(Curves),
    Bars(Bars),
    Heatmap(Heatmap),
    Gallery(Gallery),
    Reliability(Reliability),
    Softening(Softening),
    Line(Line),
}

/// What [`Figure::alt`] says, for a cell that shows a value only by `{:?}`.
impl std::fmt::Debug for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "figure: {}; end the cell with the variable, without `?`, to see it", self.alt())
    }
}

impl Figure {
    pub(super) fn new(width: u32, height: u32, drawing: Drawing) -> Self {
        Self { width, height, drawing }
    }

    /// Nominal width and height in pixels.
    pub(super) fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// What the figure shows, in a line of words, for readers who do not see it.
    pub fn alt(&self) -> String {
        match &self.drawing {
            Drawing::Curves(d) => d.alt(),
            Drawing::Bars(d) => d.alt(),
            Drawing::Heatmap(d) => d.alt(),
            Drawing::Gallery(d) => d.alt(),
            Drawing::Reliability(_) => "reliability diagram: accuracy over confidence".into(),
            Drawing::Softening(_) => "probability of each class over the temperature".into(),
            Drawing::Line(d) => d.alt(),
        }
    }

    /// The figure as an SVG document, for print. A gallery becomes large: each of its pixels is a rectangle.
    pub fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, (self.width, self.height)).into_drawing_area(), 1)?;
        Ok(svg)
    }

    /// The figure as PNG bytes, at twice its nominal size.
    pub fn png(&self) -> Result<Vec<u8>> {
        let (width, height) = (self.width * PNG_SCALE, self.height * PNG_SCALE);
        let mut pixels = vec![255u8; (width * height * 3) as usize];
        self.draw(BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area(), PNG_SCALE)?;
        let image = image::RgbImage::from_raw(width, height, pixels)
            .ok_or_else(|| Error::Input(format!("no picture of {width} x {height} pixels")))?;
        let mut png = std::io::Cursor::new(Vec::new());
        image.write_to(&mut png, image::ImageFormat::Png).map_err(|e| Error::Input(format!("PNG: {e}")))?;
        Ok(png.into_inner())
    }

    /// Writes the figure as a PNG file.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        atomic::write_bytes(path.as_ref(), &self.png()?)
    }

    fn draw<DB: DrawingBackend>(&self, area: DrawingArea<DB, Shift>, scale: u32) -> Result<()> {
        // plotters keeps its fonts in a static, of which each cell may have its own: register every time.
        let font = epaint_default_fonts::UBUNTU_LIGHT;
        register_font("sans-serif", FontStyle::Normal, font)
            .map_err(|_| Error::Input("the built-in font is not readable".into()))?;
        let pen = Pen { scale };
        let drawn = area.fill(&WHITE).map_err(|e| e.to_string()).and_then(|()| match &self.drawing {
            Drawing::Curves(d) => d.draw(&area, pen),
            Drawing::Bars(d) => d.draw(&area, pen),
            Drawing::Heatmap(d) => d.draw(&area, pen),
            Drawing::Gallery(d) => d.draw(&area, pen),
            Drawing::Reliability(d) => d.draw(&area, pen),
            Drawing::Softening(d) => d.draw(&area, pen),
            Drawing::Line(d) => d.draw(&area, pen),
        });
        drawn
            .and_then(|()| area.present().map_err(|e| e.to_string()))
            .map_err(|e| Error::Input(format!("drawing: {e}")))
    }
}

/// Sizes in nominal pixels, whatever the backend's scale.
#[derive(Clone, Copy)]
pub(super) struct Pen {
    scale: u32,
}

impl Pen {
    pub(super) fn px(self, nominal: u32) -> u32 {
        nominal * self.scale
    }

    pub(super) fn text(self, nominal: u32) -> TextStyle<'static> {
        ("sans-serif", self.px(nominal)).into_font().color(&INK)
    }

    pub(super) fn line(self, color: RGBColor) -> ShapeStyle {
        color.stroke_width(self.px(2))
    }
}

/// The look of all axes.
pub(super) fn styled<'a, 'm, 'b, X: Ranged, Y: Ranged, DB: DrawingBackend>(
    mesh: &'a mut MeshStyle<'m, 'b, X, Y, DB>,
    pen: Pen,
) -> &'a mut MeshStyle<'m, 'b, X, Y, DB> {
    mesh.label_style(pen.text(12))
        .axis_desc_style(pen.text(13))
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(WHITE)
}

/// Text and axes.
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
pub(super) const GRID: RGBColor = RGBColor(225, 225, 225);

/// Okabe and Ito's palette, told apart with any colour vision. Amber and sky blue are darkened: a line needs a contrast of 3:1
/// on white.
pub(super) fn color(i: usize) -> RGBColor {
    const COLORS: [RGBColor; 7] = [
        RGBColor(0, 114, 178),
        RGBColor(213, 94, 0),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(196, 133, 0),
        RGBColor(52, 148, 208),
        RGBColor(90, 90, 90),
    ];
    COLORS[i % COLORS.len()]
}

/// The palette for text, darkened where needed to a contrast of 4.5:1 on white.
pub(super) fn text_color(i: usize) -> RGBColor {
    let mut text = color(i);
    while contrast(text, WHITE) < 4.5 {
        let darker = |v: u8| (f64::from(v) * 0.95) as u8;
        text = RGBColor(darker(text.0), darker(text.1), darker(text.2));
    }
    text
}

/// WCAG's contrast ratio of two colours, from 1 to 21.
pub(super) fn contrast(a: RGBColor, b: RGBColor) -> f64 {
    let linear = |v: u8| match f64::from(v) / 255.0 {
        v if v <= 0.04045 => v / 12.92,
        v => ((v + 0.055) / 1.055).powf(2.4),
    };
    let luminance = |c: RGBColor| 0.2126 * linear(c.0) + 0.7152 * linear(c.1) + 0.0722 * linear(c.2);
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_have_the_contrast_that_lines_and_text_need() {
        assert!((contrast(RGBColor(230, 159, 0), WHITE) - 2.25).abs() < 0.02, "the ratio is WCAG's");
        for i in 0..7 {
            assert!(contrast(color(i), WHITE) >= 3.0, "line {i}: {}", contrast(color(i), WHITE));
            assert!(contrast(text_color(i), WHITE) >= 4.5, "text {i}: {}", contrast(text_color(i), WHITE));
        }
    }
}
