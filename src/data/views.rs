//! Augmentation by a fixed list of views: each augmented view of an image has a number, so that the teacher's logits of
//! it can be cached.

use super::augment::{Augment, MOST_SHIFT, View, seen, size_of};
use super::sampling::{Purpose, draws, generator};
use crate::{Error, Result};
use std::fmt;
use tch::Tensor;

/// The augmented views of an image: shifted, and mirrored or not, or drawn from an [`Augment`]. View 0 is the image as
/// it is. A view is the same augmentation for every image.
#[derive(Clone, Debug, PartialEq)]
pub struct Views(List);

#[derive(Clone, Debug, PartialEq)]
enum List {
    Shifts {
        flip: bool,
        /// In pixels of the stored image, to the right and down.
        shifts: Vec<(i64, i64)>,
    },
    Drawn {
        augment: Augment,
        count: usize,
        seed: u64,
    },
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
            if all.contains(&(x, y)) || x.abs().max(y.abs()) > MOST_SHIFT {
                return Err(Error::Input(format!(
                    "shift ({x}, {y}): shifts must differ from each other and from (0, 0), and be {MOST_SHIFT} pixels \
                     at most"
                )));
            }
            all.push((x, y));
        }
        Ok(Self(List::Shifts { flip, shifts: all }))
    }

    /// Makes 10 views: the image as it is and shifted by `pixels` to the left, right, up and down, each also mirrored.
    ///
    /// # Errors
    /// When `pixels` is 0 or more than 64.
    pub fn cross(pixels: i64) -> Result<Self> {
        Self::new(true, &[(pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)])
    }

    /// Draws `count` views from `augment`, the same for the same `seed`; the first is the image as it is. 10 to 100 are
    /// usual: a teacher judges each view of each image once.
    ///
    /// # Errors
    /// When `count` is not 2 to 1000, `augment` changes nothing or mixes images: an image mixed with others has no
    /// number.
    pub fn drawn(augment: &Augment, count: usize, seed: u64) -> Result<Self> {
        let wrong = |what: String| Err(Error::Input(what));
        if !(2..=1000).contains(&count) {
            return wrong(format!("{count} views were asked for: draw 2 to 1000"));
        }
        if augment.mixup.is_some() {
            return wrong(
                "mixup mixes the images of a batch, so no numbered view can show it: leave mixup out of the views, or \
                 give it to Examples::augmented with a teacher that judges each batch (taught_by)"
                    .into(),
            );
        }
        if augment.original {
            return wrong(
                "a numbered view is the same part of every image, and originals differ in size: leave original out of \
                 the views, or give it to Examples::augmented"
                    .into(),
            );
        }
        if *augment == Augment::default() {
            return wrong("these views would all show the image as it is: set a field of Augment, such as flip".into());
        }
        Ok(Self(List::Drawn { augment: augment.clone(), count, seed }))
    }

    /// Returns the number of views, at least 1.
    pub fn count(&self) -> usize {
        match &self.0 {
            List::Shifts { flip, shifts } => shifts.len() * if *flip { 2 } else { 1 },
            List::Drawn { count, .. } => *count,
        }
    }

    /// Refuses what images of `size` (height, width) are too small for.
    pub(crate) fn check(&self, size: (i64, i64)) -> Result<()> {
        match &self.0 {
            List::Shifts { .. } => Ok(()),
            List::Drawn { augment, .. } => augment.check(size),
        }
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
        let size = size_of(images)?;
        self.check(size)?;
        seen(images, &views.iter().map(|&view| self.view(view as usize, size)).collect::<Vec<_>>())
    }

    /// The view of this number, of images of `size` (height, width).
    fn view(&self, number: usize, size: (i64, i64)) -> View {
        match &self.0 {
            List::Shifts { flip, shifts } => {
                let (mirrored, (right, down)) =
                    if *flip { (number % 2 == 1, shifts[number / 2]) } else { (false, shifts[number]) };
                View { mirrored, shift: [right, down], ..View::default() }
            }
            List::Drawn { .. } if number == 0 => View::default(),
            List::Drawn { augment, seed, .. } => {
                augment.draw(size, &mut generator(Purpose::NumberedView, *seed, number as u64, 0))
            }
        }
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
        match &self.0 {
            // As files of logits and checkpoints had it before views could be drawn.
            List::Shifts { flip, shifts } => format!("Views {{ flip: {flip:?}, shifts: {shifts:?} }}"),
            // Of one drawn in squares, as it was before there were crops of originals.
            drawn => format!("{drawn:?}").replace(", original: false", ""),
        }
    }
}

impl fmt::Display for Views {
    /// Writes `10 views: flips and shifts`, or what they are drawn from: `16 views: flip, crop 0.5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} views: ", self.count())?;
        match &self.0 {
            List::Shifts { .. } => f.write_str("flips and shifts"),
            List::Drawn { augment, .. } => augment.fmt(f),
        }
    }
}
