//! A figure holds what it shows and draws it when asked, as PNG or SVG.

use super::softening::Softening;
use super::{bars::Bars, curves::Curves, gallery::Gallery, heatmap::Heatmap, reliability::Reliability};
use crate::{Error, Result, files};
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
}

impl Figure {
    pub(super) fn new(width: u32, height: u32, drawing: Drawing) -> Self {
        Self { width, height, drawing }
    }

    /// Nominal width and height in pixels.
    pub(super) fn size(&self) -> (u32, u32) {
        (self.width, self.height)
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
        files::write_bytes(path.as_ref(), &self.png()?)
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

/// Okabe and Ito's palette: told apart with any colour vision, dark enough on white.
pub(super) fn color(i: usize) -> RGBColor {
    const COLORS: [RGBColor; 7] = [
        RGBColor(0, 114, 178),
        RGBColor(213, 94, 0),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(230, 159, 0),
        RGBColor(86, 180, 233),
        RGBColor(90, 90, 90),
    ];
    COLORS[i % COLORS.len()]
}
