//! The course's teacher, with what it computes once for every image.

use crate::Result;
use crate::data::{Split, Transform};
use crate::models::{Backbone, Model};
use crate::show::{debug_as_display, print_progress, show_as_text};
use crate::train::{CachedTensor, Examples, Group, features_in, teacher_logits};
use std::fmt;
use std::path::PathBuf;

/// A frozen backbone and its trained head. What they compute for an image is computed once and kept on disk.
pub struct Teacher {
    /// From images to features, frozen.
    pub backbone: Backbone,
    /// From features to logits, trained.
    pub head: Model,
    /// Prepares the teacher's images.
    pub transform: Transform,
    pub(crate) batch_size: usize,
    /// Folder of features and logits.
    pub(crate) cache: PathBuf,
    /// The processes that train together.
    pub(crate) group: Option<Group>,
}

impl Teacher {
    /// Returns the backbone's features f32 `[N, D]` of a split.
    ///
    /// # Errors
    /// As [`backbone_features`](crate::train::backbone_features).
    pub fn features(&self, split: &Split) -> Result<CachedTensor> {
        let listener = print_progress();
        let (group, cache) = (self.group.as_ref(), Some(&*self.cache));
        features_in(group, &self.backbone, split, &self.transform, self.batch_size, cache, &listener)
    }

    /// Returns the teacher's logits f32 `[N, C]` of a split.
    ///
    /// # Errors
    /// As [`Teacher::features`].
    pub fn logits(&self, split: &Split) -> Result<CachedTensor> {
        teacher_logits(&self.head, split, &self.features(split)?, Some(&self.cache))
    }

    /// Returns a split's images for a student, each with its label and the teacher's logits. `transform` prepares the
    /// student's images.
    ///
    /// # Errors
    /// As [`Teacher::features`].
    pub fn examples(&self, split: &Split, transform: &Transform) -> Result<Examples> {
        Examples::images(split, transform)?.with_teacher(&self.logits(split)?)
    }
}

debug_as_display!(Teacher);
show_as_text!(Teacher);

impl fmt::Display for Teacher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} px, with a head that was trained here", self.backbone.arch, self.transform.size)
    }
}
