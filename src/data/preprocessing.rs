//! The input of a network that was trained elsewhere: resized, cropped, and scaled as its own program does it.

use super::Transform;
use crate::{Error, Result};
use tch::{Device, Tensor};

/// How a network that was trained elsewhere expects its images: resized to `resize`, then cropped to `size` around the
/// centre, then normalised.
///
/// torchvision lists these numbers for its weights, and timm has them in `model.pretrained_cfg`: `size` is its
/// `input_size`, and `resize` is `floor(size / crop_pct)`.
///
/// ```
/// use kdlab::data::{Channels, Preprocessing};
///
/// // A network of timm, with crop_pct 0.9.
/// let inception = Preprocessing { resize: 248, mean: [0.5; 3], std: [0.5; 3], ..Preprocessing::imagenet() };
/// // A network of Caffe: blue comes first, the pixels are 0 to 255, and only their mean is subtracted.
/// let (mean, channels) = ([103.939, 116.779, 123.68], Channels::Bgr);
/// let caffe = Preprocessing { mean, std: [1.0; 3], channels, largest: 255.0, ..Preprocessing::imagenet() };
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessing {
    /// Side in pixels to which the square image is resized first, at least `size`.
    pub resize: i64,
    /// Side in pixels of the network's input, which is cropped from the centre of the resized image.
    pub size: i64,
    /// Mean of each channel, in the order of `channels`, on the scale 0 to `largest`.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, in the order of `channels`, on the scale 0 to `largest`; above 0.
    pub std: [f64; 3],
    /// Order of the channels in the network's input.
    pub channels: Channels,
    /// Value of the brightest pixel before the normalisation: 1 for almost all networks of PyTorch, or 255.
    pub largest: f64,
}

/// The order of the colour channels in a network's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Red, green, blue: torchvision, timm, CLIP.
    Rgb,
    /// Blue, green, red: Caffe, and programs that read images by OpenCV.
    Bgr,
}

impl Preprocessing {
    /// Returns what torchvision's ImageNet classifiers were published with: resized to 256 pixels, cropped to 224, red
    /// first, normalised as [`Transform::imagenet`].
    pub fn imagenet() -> Self {
        let Transform { size, mean, std } = Transform::imagenet(224);
        Self { resize: 256, size, mean, std, channels: Channels::Rgb, largest: 1.0 }
    }

    /// The input f32 `[B, 3, size, size]` on `device`, contiguous in memory, for `images` u8 `[B, 3, H, W]`.
    /// Resizing is bilinear and anti-aliased, as in [`Transform::apply`]; the crop is that of torchvision's
    /// `CenterCrop`.
    ///
    /// # Errors
    /// When `size` is not in 1 to `resize`, `largest` is not a positive number, or as [`Transform::apply`].
    pub(crate) fn apply(&self, images: &Tensor, device: Device) -> Result<Tensor> {
        let Self { resize, size, largest, .. } = *self;
        if !(1..=resize).contains(&size) {
            return Err(Error::Input(format!(
                "preprocessing crops {size} pixels from images of {resize}: size must be 1 to resize, such as 224 from \
                 256"
            )));
        }
        if !(largest.is_finite() && largest > 0.0) {
            return Err(Error::Input(format!(
                "preprocessing with {largest} as the largest value of a pixel: give 1 or 255"
            )));
        }
        let [mean, std] = [self.mean, self.std].map(|values| values.map(|value| value / largest));
        let images = match self.channels {
            Channels::Rgb => images.shallow_clone(),
            Channels::Bgr => images.f_flip([1i64])?,
        };
        let x = Transform { size: resize, mean, std }.apply(&images, device)?;
        // torchvision rounds half to even.
        let from = ((resize - size) as f64 / 2.0).round_ties_even() as i64;
        Ok(x.f_narrow(2, from, size)?.f_narrow(3, from, size)?.f_contiguous()?)
    }

    /// A text that differs whenever the result of [`Preprocessing::apply`] may differ.
    pub(crate) fn key(&self) -> String {
        format!("{self:?}")
    }
}
