//! How a picture of any shape becomes a square.

use serde::{Deserialize, Serialize};

/// How a picture of any shape becomes a square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Framing {
    /// Squeezes it: the whole picture is seen, and its proportions change.
    #[default]
    Squeeze,
    /// Resizes it until its shorter side fits and crops the square in the centre: torchvision's `Resize(size)` and
    /// `CenterCrop(size)`. The proportions stay, and the ends of the longer side are not seen.
    CentreCrop,
}

impl Framing {
    pub(crate) fn is_squeeze(&self) -> bool {
        *self == Framing::Squeeze
    }
}
