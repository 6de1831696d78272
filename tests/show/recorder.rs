//! The backend that figures are drawn on here: plotters' bitmap, which also notes what is drawn.

use super::super::canvas::Figure;
use plotters::prelude::{BitMapBackend, DrawingBackend};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind};
use std::cell::RefCell;

#[derive(Default)]
pub struct Record {
    /// Where each text is anchored, in pixels of the PNG, and what it says; in the order of drawing.
    pub texts: Vec<(i32, i32, String)>,
    pub paths: usize,
    pub circles: usize,
}

thread_local!(static RECORD: RefCell<Record> = RefCell::default());

/// What the figure draws.
pub fn drawn(figure: &Figure) -> Record {
    RECORD.take();
    figure.png().unwrap();
    RECORD.take()
}

/// Every text of the figure, in the order of drawing.
pub fn texts(figure: &Figure) -> Vec<String> {
    drawn(figure).texts.into_iter().map(|(_, _, said)| said).collect()
}

pub struct Recorder<'a>(BitMapBackend<'a>);

type Done = Result<(), DrawingErrorKind<<BitMapBackend<'static> as DrawingBackend>::ErrorType>>;

impl<'a> Recorder<'a> {
    pub fn with_buffer(pixels: &'a mut [u8], size: (u32, u32)) -> Self {
        Self(BitMapBackend::with_buffer(pixels, size))
    }
}

impl DrawingBackend for Recorder<'_> {
    type ErrorType = <BitMapBackend<'static> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        self.0.get_size()
    }

    fn ensure_prepared(&mut self) -> Done {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> Done {
        self.0.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Done {
        self.0.draw_pixel(point, color)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Done {
        self.0.draw_line(from, to, style)
    }

    fn draw_rect<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S, fill: bool) -> Done {
        self.0.draw_rect(from, to, style, fill)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Done {
        RECORD.with_borrow_mut(|record| record.paths += 1);
        self.0.draw_path(path, style)
    }

    fn draw_circle<S: BackendStyle>(&mut self, center: BackendCoord, radius: u32, style: &S, fill: bool) -> Done {
        RECORD.with_borrow_mut(|record| record.circles += 1);
        self.0.draw_circle(center, radius, style, fill)
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Done {
        RECORD.with_borrow_mut(|record| record.texts.push((at.0, at.1, text.to_owned())));
        self.0.draw_text(text, style, at)
    }
}
