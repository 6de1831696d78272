//! Augmentation as a list: every way in which an image may be seen has a number, so that what a teacher says of one
//! can be kept.

use super::split::{Purpose, draws};
use crate::{Error, Result};
use tch::Tensor;

/// The views of an image: as it is or mirrored, times some shifts. View 0 is the image as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Views {
    flip: bool,
    /// Pixels to the right and down, of the stored image.
    shifts: Vec<(i64, i64)>,
}

/// The view in which each sample of a split is seen in one epoch.
pub(crate) struct Drawn {
    pub student: Vec<i64>,
    pub teacher: Vec<i64>,
}

impl Views {
    /// Each shift alone and, with `flip`, mirrored. (0, 0) is always the first; give the others, in pixels right and down.
    /// What a shift moves in repeats the border.
    ///
    /// # Errors
    /// When a shift is given twice, or is more than 64 pixels.
    pub fn new(flip: bool, shifts: &[(i64, i64)]) -> Result<Self> {
        let mut all = vec![(0, 0)];
        for &(x, y) in shifts {
            if all.contains(&(x, y)) || x.abs().max(y.abs()) > 64 {
                return Err(Error::Input(format!(
                    "shift ({x}, {y}): each must be another one, within 64 pixels; (0, 0) is there already"
                )));
            }
            all.push((x, y));
        }
        Ok(Self { flip, shifts: all })
    }

    /// As it is, and `pixels` to the left, right, up and down, each also mirrored: 10 views.
    pub fn cross(pixels: i64) -> Result<Self> {
        Self::new(true, &[(pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)])
    }

    pub fn len(&self) -> usize {
        self.shifts.len() * if self.flip { 2 } else { 1 }
    }

    /// Never: there is always the image as it is.
    pub fn is_empty(&self) -> bool {
        self.shifts.is_empty()
    }

    /// `images` u8 `[B, 3, H, W]`, each in the view of its number in `views`, `B` of `0..len()`; same shape.
    ///
    /// # Errors
    /// When there are not as many numbers as images, or one is out of range.
    pub fn apply(&self, images: &Tensor, views: &[i64]) -> Result<Tensor> {
        let size = images.size();
        let known = views.iter().all(|v| (0..self.len() as i64).contains(v));
        if size.len() != 4 || size[0] != views.len() as i64 || !known {
            return Err(Error::Input(format!(
                "{} views for images {size:?}: images must be [B, 3, H, W], with a view of 0 to {} for each",
                views.len(),
                self.len() - 1
            )));
        }
        let mut seen = images.f_empty_like()?;
        for view in 0..self.len() as i64 {
            let rows: Vec<i64> = (0..).zip(views).filter(|(_, v)| **v == view).map(|(row, _)| row).collect();
            if !rows.is_empty() {
                let rows = crate::store::tensors::upload(&rows, images.device())?;
                let _ = seen.f_index_copy_(0, &rows, &self.one(&images.f_index_select(0, &rows)?, view)?)?;
            }
        }
        Ok(seen)
    }

    /// All of `images` `[B, 3, H, W]` in one view.
    fn one(&self, images: &Tensor, view: i64) -> Result<Tensor> {
        let (mirrored, (right, down)) = match (self.flip, view) {
            (true, v) => (v % 2 == 1, self.shifts[v as usize / 2]),
            (false, v) => (false, self.shifts[v as usize]),
        };
        let from =
            |length: i64, shift: i64| -> Vec<i64> { (0..length).map(|i| (i - shift).clamp(0, length - 1)).collect() };
        let mut columns = from(images.size()[3], right);
        if mirrored {
            columns.reverse();
        }
        let pick = |t: &Tensor, dim: i64, index: &[i64]| -> Result<Tensor> {
            Ok(t.f_index_select(dim, &crate::store::tensors::upload(index, t.device())?)?)
        };
        pick(&pick(images, 2, &from(images.size()[2], down))?, 3, &columns)
    }

    /// The views of `samples` in an epoch. The teacher's are the student's, or with `apart` drawn for themselves.
    pub(crate) fn draw(&self, samples: usize, apart: bool, seed: u64, epoch: u64) -> Drawn {
        let student = draws(samples, self.len(), Purpose::View, seed, epoch);
        let teacher =
            if apart { draws(samples, self.len(), Purpose::TeacherView, seed, epoch) } else { student.clone() };
        Drawn { student, teacher }
    }

    /// A short text that differs whenever views do.
    pub(crate) fn key(&self) -> String {
        format!("{self:?}")
    }
}
