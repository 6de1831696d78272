//! From stored bytes to what a network takes: moved to the device, scaled to 0..1, resized, normalised.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Resize and normalise, applied per batch on the device the network lives on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transform {
    /// Height and width of the result, in pixels.
    pub size: i64,
    /// Subtracted from each channel (red, green, blue), on the 0..1 scale.
    pub mean: [f64; 3],
    /// Each channel is divided by this, on the 0..1 scale; above 0.
    pub std: [f64; 3],
}

impl Transform {
    /// What torchvision's ImageNet weights were trained with.
    /// Source: <https://docs.pytorch.org/vision/stable/models.html>.
    pub fn imagenet(size: i64) -> Self {
        Transform { size, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }

    /// Mean and standard deviation over CIFAR-10's 50,000 training images.
    pub fn cifar10(size: i64) -> Self {
        Transform { size, mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] }
    }

    /// `images` u8 `[B, 3, H, W]` on any device -> f32 `[B, 3, size, size]` on `device`, `(x / 255 - mean) / std`.
    ///
    /// Resized bilinearly with `align_corners = false`; anti-aliased where it shrinks, as torchvision does it for
    /// tensors. Images that have the size already are not resampled. No gradient is recorded.
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
            let constants = crate::store::tensors::upload(&constants, device)?.f_view([2, 1, 3, 1, 1])?;
            let x = x.f_sub_(&constants.f_get(0)?)?.f_div_(&constants.f_get(1)?)?;
            if device == Device::Mps {
                return Ok(x);
            }
            // The same numbers with channels innermost in memory: what convolutions are quickest with.
            Ok(x.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
        })
    }

    /// A short text that differs whenever the result of [`Transform::apply`] may differ; fit for a file name.
    pub fn key(&self) -> String {
        let join = |v: [f64; 3]| v.map(|c| c.to_string()).join("_");
        format!("{}px-mean{}-std{}", self.size, join(self.mean), join(self.std))
    }
}
