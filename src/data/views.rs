//! Augmentation by a fixed list of views: each augmented view of an image has a number, so that the teacher's logits of
//! it can be cached.

use super::sampling::{Purpose, draws};
use crate::store::tensors::upload;
use crate::{Error, Result};
use tch::Tensor;

/// The augmented views of an image: shifted, and mirrored or not. View 0 is the image as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Views {
    flip: bool,
    /// In pixels of the stored image, to the right and down.
    shifts: Vec<(i64, i64)>,
}

/// The number of each sample's view in one epoch, for the student and for the teacher.
pub(crate) struct EpochViews {
    pub student: Vec<i64>,
    pub teacher: Vec<i64>,
}

impl Views {
    /// Makes one view of each shift and, with `flip`, a mirrored one. (0, 0) is always the first shift; `shifts` are
    /// the others, in pixels to the right and down. A shifted image repeats its border.
    ///
    /// # Errors
    /// When a shift occurs twice, or is more than 64 pixels.
    pub fn new(flip: bool, shifts: &[(i64, i64)]) -> Result<Self> {
        let mut all = vec![(0, 0)];
        for &(x, y) in shifts {
            if all.contains(&(x, y)) || x.abs().max(y.abs()) > 64 {
                return Err(Error::Input(format!(
                    "shift ({x}, {y}): shifts must differ from each other and from (0, 0), and be 64 pixels at most"
                )));
            }
            all.push((x, y));
        }
        Ok(Self { flip, shifts: all })
    }

    /// Makes 10 views: the image as it is and shifted by `pixels` to the left, right, up and down, each also mirrored.
    ///
    /// # Errors
    /// When `pixels` is 0 or more than 64.
    pub fn cross(pixels: i64) -> Result<Self> {
        Self::new(true, &[(pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)])
    }

    /// Returns the number of views, at least 1.
    pub fn count(&self) -> usize {
        self.shifts.len() * if self.flip { 2 } else { 1 }
    }

    /// Returns `images` u8 `[B, 3, H, W]` in their views, same shape and device: image i in view `views[i]`, which is
    /// in `0..count()`.
    ///
    /// # Errors
    /// When there are not as many views as images, or one is out of range.
    pub fn apply(&self, images: &Tensor, views: &[i64]) -> Result<Tensor> {
        let size = images.size();
        let known = views.iter().all(|v| (0..self.count() as i64).contains(v));
        if size.len() != 4 || size[0] != views.len() as i64 || !known {
            return Err(Error::Input(format!(
                "{} views for images {size:?}: images must be [B, 3, H, W], with a view of 0 to {} for each",
                views.len(),
                self.count() - 1
            )));
        }
        let mut viewed = images.f_empty_like()?;
        for view in 0..self.count() as i64 {
            let rows: Vec<i64> = (0..).zip(views).filter(|(_, v)| **v == view).map(|(row, _)| row).collect();
            if !rows.is_empty() {
                let rows = upload(&rows, images.device())?;
                let _ = viewed.f_index_copy_(0, &rows, &self.in_view(&images.f_index_select(0, &rows)?, view)?)?;
            }
        }
        Ok(viewed)
    }

    /// Returns all of `images` `[B, 3, H, W]` in the same view.
    fn in_view(&self, images: &Tensor, view: i64) -> Result<Tensor> {
        let (mirrored, (right, down)) = match (self.flip, view) {
            (true, v) => (v % 2 == 1, self.shifts[v as usize / 2]),
            (false, v) => (false, self.shifts[v as usize]),
        };
        // For each row or column of the view, the one of the image that it shows.
        let sources =
            |length: i64, shift: i64| -> Vec<i64> { (0..length).map(|i| (i - shift).clamp(0, length - 1)).collect() };
        let mut columns = sources(images.size()[3], right);
        if mirrored {
            columns.reverse();
        }
        let pick = |t: &Tensor, dim: i64, index: &[i64]| -> Result<Tensor> {
            Ok(t.f_index_select(dim, &upload(index, t.device())?)?)
        };
        pick(&pick(images, 2, &sources(images.size()[2], down))?, 3, &columns)
    }

    /// Draws a view for each of `samples` in an epoch. The teacher's views are the student's, or with `apart`
    /// independent ones.
    pub(crate) fn draw(&self, samples: usize, apart: bool, seed: u64, epoch: u64) -> EpochViews {
        let draw = |purpose| draws(samples, self.count(), purpose, seed, epoch);
        let student = draw(Purpose::StudentView);
        let teacher = if apart { draw(Purpose::TeacherView) } else { student.clone() };
        EpochViews { student, teacher }
    }

    /// Returns a text that differs whenever the views differ.
    pub(crate) fn key(&self) -> String {
        format!("{self:?}")
    }
}
