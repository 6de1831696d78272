//! From stored bytes to a network's input: moved to the device, scaled to [0, 1], resized and normalised.

use crate::store::tensors::upload;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Resizes and normalises batches of images on the network's device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transform {
    /// Height and width of the result, in pixels.
    pub size: i64,
    /// Mean of each channel (red, green, blue) on the scale [0, 1].
    pub mean: [f64; 3],
    /// Standard deviation of each channel on the scale [0, 1]; above 0.
    pub std: [f64; 3],
}

impl Transform {
    /// Returns the normalisation of torchvision's ImageNet weights.
    /// Source: <https://docs.pytorch.org/vision/stable/models.html>.
    pub fn imagenet(size: i64) -> Self {
        Transform { size, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }

    /// Returns `(images / 255 - mean) / std`, f32 `[B, 3, size, size]` on `device`, for `images` u8 `[B, 3, H, W]` on
    /// any device. No gradient is recorded.
    ///
    /// Resizing is bilinear with `align_corners = false`, and anti-aliased when it shrinks, as in torchvision's
    /// `resize` of tensors. Images of the right size are not resampled.
    ///
    /// # Errors
    /// When `images` has another shape or dtype, `size` is below 1, or a `std` is not a positive number.
    pub fn apply(&self, images: &Tensor, device: Device) -> Result<Tensor> {
        let shape = images.size();
        let &[_, 3, height, width] = shape.as_slice() else {
            return Err(Error::Input(format!("a transform takes images u8 [B, 3, H, W], not {shape:?}")));
        };
        if images.kind() != Kind::Uint8 {
            return Err(Error::Input(format!(
                "a transform takes images of dtype u8 (0..255), not {:?}: give it Batch::images as they are",
                images.kind()
            )));
        }
        if self.size < 1 {
            return Err(Error::Input(format!("transform size {}: at least 1 pixel is needed", self.size)));
        }
        if let Some(bad) = self.std.iter().find(|s| !s.is_finite() || **s <= 0.0) {
            return Err(Error::Input(format!("transform std {bad}: each must be a positive number")));
        }
        tch::no_grad(|| {
            let mut x = images.f_to_device(device)?.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?; // [B, 3, H, W]
            let size = [self.size, self.size];
            if height > self.size || width > self.size {
                x = x.f_internal_upsample_bilinear2d_aa(size, false, None, None)?;
            } else if height < self.size || width < self.size {
                x = x.f_upsample_bilinear2d(size, false, None, None)?;
            }
            let constants = [self.mean, self.std].concat().iter().map(|&c| c as f32).collect::<Vec<_>>();
            let constants = upload(&constants, device)?.f_view([2, 1, 3, 1, 1])?;
            let x = x.f_sub_(&constants.f_get(0)?)?.f_div_(&constants.f_get(1)?)?;
            if device == Device::Mps {
                return Ok(x);
            }
            // The same values with channels innermost in memory, the fastest layout for convolutions.
            Ok(x.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
        })
    }

    /// A short text that differs whenever the result of [`Transform::apply`] may differ.
    pub(crate) fn key(&self) -> String {
        let join = |v: [f64; 3]| v.map(|c| c.to_string()).join("_");
        format!("{}px-mean{}-std{}", self.size, join(self.mean), join(self.std))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn what_changes_the_result_changes_the_key() {
        let imagenet = Transform::imagenet(2);
        let mean = Transform { mean: [0.5; 3], ..imagenet.clone() };
        let std = Transform { std: [1.0; 3], ..imagenet.clone() };
        let transforms = [imagenet, Transform::imagenet(3), mean, std];
        assert_eq!(transforms.map(|transform| transform.key()).into_iter().collect::<HashSet<_>>().len(), 4);
    }
}
