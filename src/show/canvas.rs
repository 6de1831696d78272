//! The type of all figures, and the colours, fonts and axes that they share. A figure holds what it shows, and draws it
//! when asked.

use super::output::{emit, picture};
use crate::store::atomic;
use crate::{Error, Result};
use kdlab_client::Bundle;
use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};
use std::fmt;
use std::path::Path;

/// A bitmap; in tests, one that also records what is drawn.
#[cfg(test)]
pub(super) type Backend<'a> = super::tests::Recorder<'a>;
#[cfg(not(test))]
pub(super) type Backend<'a> = BitMapBackend<'a>;
pub(super) type Area<'a> = DrawingArea<Backend<'a>, Shift>;
pub(super) type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// PNG pixels per nominal pixel. All sizes in this module are nominal.
const SCALE: u32 = 2;

/// A picture, for the end of a cell. It is dark on white, which reads the same in light and dark themes.
pub struct Figure {
    width: u32,
    height: u32,
    pub(super) alt: String,
    draw: Box<dyn Fn(&Area) -> Drawn + Send + Sync>,
}

/// Describes the figure, for a cell that shows a value only by `{:?}`.
impl fmt::Debug for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "figure: {}; end the cell with the variable, without `?`, to see it", self.alt)
    }
}

impl Figure {
    /// Creates a figure. `size` is its width and height in nominal pixels; `alt` describes it in a line, for readers
    /// who do not see it; `draw` draws it.
    pub(super) fn new(size: [u32; 2], alt: String, draw: impl Fn(&Area) -> Drawn + Send + Sync + 'static) -> Self {
        let [width, height] = size;
        Self { width, height, alt, draw: Box::new(draw) }
    }

    /// Draws the figure as PNG, at twice its nominal size.
    pub(super) fn png(&self) -> Result<Vec<u8>> {
        let (width, height) = (self.width * SCALE, self.height * SCALE);
        let mut pixels = vec![255u8; (width * height * 3) as usize];
        self.draw_on(&Backend::with_buffer(&mut pixels, (width, height)).into_drawing_area())
            .map_err(|e| Error::Input(format!("drawing: {e}")))?;
        let image = image::RgbImage::from_raw(width, height, pixels)
            .ok_or_else(|| Error::Input(format!("no picture of {width} x {height} pixels")))?;
        let mut png = std::io::Cursor::new(Vec::new());
        image.write_to(&mut png, image::ImageFormat::Png).map_err(|e| Error::Input(format!("PNG: {e}")))?;
        Ok(png.into_inner())
    }

    fn draw_on(&self, area: &Area) -> Drawn {
        // Each cell may link its own copy of plotters, with an empty font registry, so every drawing registers them.
        register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
            .map_err(|_| "the built-in font is not readable")?;
        area.fill(&WHITE)?;
        (self.draw)(area)?;
        Ok(area.present()?)
    }

    /// Returns the figure for a cell or a display: the picture and its description.
    pub(super) fn bundle(&self) -> Result<Bundle> {
        let text = format!("figure: {}", self.alt);
        Ok(picture(&self.png()?, [self.width, self.height], &self.alt, &text))
    }

    /// Writes the figure as a PNG file, at twice its nominal size.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        atomic::write_bytes(path.as_ref(), &self.png()?)
    }

    /// Shows the figure below the cell, as PNG: JupyterLab fits it to its column and shows it in a notebook that
    /// somebody else ran, and GitHub renders it.
    pub fn evcxr_display(&self) {
        match self.bundle() {
            Ok(bundle) => emit(&bundle),
            Err(e) => eprintln!("{e}"),
        }
    }
}

/// What a display of `kdlab_client` shows: in a loop, `display.show(&plot(&steps, &losses, ["step", "loss"])?)?` draws
/// the figure anew in its place.
impl From<&Figure> for Bundle {
    fn from(figure: &Figure) -> Self {
        figure.bundle().unwrap_or_else(|e| Self::text(format!("this figure cannot be drawn: {e}")))
    }
}

/// Returns the pixels of the PNG for a nominal length.
pub(super) fn px(nominal: u32) -> i32 {
    (nominal * SCALE) as i32
}

/// Returns the style of text of this nominal size.
pub(super) fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size * SCALE).into_font().color(&INK)
}

/// Returns the style of text of this size, anchored at its place.
pub(super) fn anchored(size: u32, across: HPos, up: VPos) -> TextStyle<'static> {
    text(size).pos(Pos::new(across, up))
}

/// Returns the style of a line of this width in nominal pixels.
pub(super) fn stroke(color: impl Color, width: u32) -> ShapeStyle {
    color.stroke_width(width * SCALE)
}

/// Returns a thin dashed line through the points.
pub(super) fn dashed(
    points: Vec<(f64, f64)>,
    color: RGBColor,
) -> DashedLineSeries<std::vec::IntoIter<(f64, f64)>, i32> {
    DashedLineSeries::new(points, px(5), px(4), stroke(color, 1))
}

/// Begins a chart under a title of this size, which may be empty. `right` and `margin` are the margins on the right and
/// on all other sides, `labels` the space for the labels of the x and the y axis, in nominal pixels.
pub(super) fn chart<'a, 'b>(
    area: &'a Area<'b>,
    (title, size): (&str, u32),
    [right, margin]: [u32; 2],
    labels: [u32; 2],
) -> ChartBuilder<'a, 'b, Backend<'b>> {
    let mut chart = ChartBuilder::on(area);
    chart.margin(px(margin)).margin_right(px(right));
    chart.x_label_area_size(px(labels[0])).y_label_area_size(px(labels[1]));
    if !title.is_empty() {
        chart.caption(title, text(size));
    }
    chart
}

/// Gives axes the look that all figures share.
pub(super) fn styled<'a, 'm, 'b, 'c, X: Ranged, Y: Ranged>(
    mesh: &'a mut MeshStyle<'m, 'b, X, Y, Backend<'c>>,
) -> &'a mut MeshStyle<'m, 'b, X, Y, Backend<'c>> {
    mesh.label_style(text(12)).axis_desc_style(text(13)).axis_style(INK).bold_line_style(GRID).light_line_style(WHITE)
}

/// Returns the lowest and the highest value; `(f64::MAX, f64::MIN)` if there is none.
pub(super) fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)))
}

/// The colour of text and axes.
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
/// The colour of grid lines.
pub(super) const GRID: RGBColor = RGBColor(225, 225, 225);

/// Okabe and Ito's palette, whose colours differ for people with any colour vision. Amber and sky blue are darkened,
/// because a line needs a contrast of 3:1 on white.
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
