//! Frozen feature extractors: which ones there are, and where their weights come from.

use super::weights::{self, LoadReport};
use super::{Layers, Model, efficientnet_lite0, resnet18, resnet50};
use crate::store::digest;
use crate::{Error, Result};
use sha2::Sha256;
use std::fmt;
use std::path::Path;
use tch::nn;
use tch::{Device, Tensor};

/// A teacher's architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    ResNet50,
    ResNet18,
    EfficientNetLite0,
}

impl Arch {
    pub const ALL: [Arch; 3] = [Arch::ResNet50, Arch::ResNet18, Arch::EfficientNetLite0];

    /// `resnet50`, `resnet18` or `efficientnet-lite0`; case, `-` and `_` do not matter.
    pub fn parse(name: &str) -> Result<Self> {
        let plain = |s: &str| s.to_lowercase().replace(['-', '_'], "");
        Self::ALL.into_iter().find(|arch| plain(arch.name()) == plain(name)).ok_or_else(|| {
            Error::Input(format!("there is no architecture {name:?}; choose {}", Self::ALL.map(Arch::name).join(", ")))
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Arch::ResNet50 => "resnet50",
            Arch::ResNet18 => "resnet18",
            Arch::EfficientNetLite0 => "efficientnet-lite0",
        }
    }

    /// Numbers per image that the backbone gives.
    pub fn features(self) -> i64 {
        match self {
            Arch::ResNet50 => 2048,
            Arch::ResNet18 => 512,
            Arch::EfficientNetLite0 => 1280,
        }
    }

    /// The network itself: with `classes` its own last layer too, without it stops at the features.
    pub fn layers(self, vs: &nn::Path, classes: Option<i64>) -> Layers {
        match self {
            Arch::ResNet50 => resnet50(vs, classes),
            Arch::ResNet18 => resnet18(vs, classes),
            Arch::EfficientNetLite0 => efficientnet_lite0(vs, classes),
        }
    }

    /// Mean and deviation (of pixels in 0..1, red green blue) that its ImageNet weights were trained with.
    ///
    /// Lite0 is TensorFlow's: `(pixel - 127) / 128`. With torchvision's numbers instead its features tell CIFAR-10's
    /// classes apart visibly worse (nearest class mean at 96 px: 55 % against 64 %).
    pub fn normalisation(self) -> ([f64; 3], [f64; 3]) {
        match self {
            Arch::ResNet50 | Arch::ResNet18 => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            Arch::EfficientNetLite0 => ([127.0 / 255.0; 3], [128.0 / 255.0; 3]),
        }
    }

    /// The official ImageNet weight file: its name and SHA-256.
    pub fn weight_file(self) -> (&'static str, &'static str) {
        match self {
            Arch::ResNet50 => {
                ("resnet50-0676ba61.pth", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a")
            }
            Arch::ResNet18 => {
                ("resnet18-f37072fd.pth", "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec")
            }
            Arch::EfficientNetLite0 => {
                ("efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")
            }
        }
    }

    /// Variables of its ImageNet classifier, which a backbone leaves out.
    fn classifier(self) -> &'static str {
        match self {
            Arch::EfficientNetLite0 => "_fc.",
            _ => "fc.",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A frozen network that turns images into features.
#[derive(Debug)]
pub struct Backbone {
    pub arch: Arch,
    pub model: Model,
}

impl Backbone {
    /// Random weights, PyTorch's default initialisation.
    pub fn untrained(arch: Arch, device: Device, seed: u64) -> Result<Self> {
        let mut model = Model::new(arch.name(), device, seed, &|vs| arch.layers(vs, None))?;
        model.freeze();
        Ok(Backbone { arch, model })
    }

    /// ImageNet weights: from `<cache>/weights/`, else downloaded into it. The official file is checked by SHA-256;
    /// a `<architecture>.safetensors` put there by hand is loaded by name.
    ///
    /// # Errors
    /// When the weights cannot be had: the message says which file to put where.
    pub fn pretrained(arch: Arch, device: Device, cache: &Path) -> Result<Self> {
        let folder = cache.join("weights");
        let (name, sha256) = arch.weight_file();
        let (official, own) = (folder.join(name), folder.join(format!("{arch}.safetensors")));
        if !official.is_file() && own.is_file() {
            return Ok(Self::from_file(arch, device, &own)?.0);
        }
        if !official.is_file() {
            super::fetch::fetch(arch, &official).map_err(|e| {
                Error::Network(format!("{e}; to go on without the network put {name} into {}", folder.display()))
            })?;
        }
        let found = digest::file_digest::<Sha256>(&official)?;
        if found != sha256 {
            return Err(Error::Data(format!(
                "{} has SHA-256 {found} instead of {sha256}; delete it, it will be downloaded again",
                official.display()
            )));
        }
        Ok(Self::from_file(arch, device, &official)?.0)
    }

    /// Weights from a file of the same architecture, safetensors or `.pth`; its ImageNet classifier is left out.
    pub fn from_file(arch: Arch, device: Device, path: &Path) -> Result<(Self, LoadReport)> {
        let backbone = Self::untrained(arch, device, 0)?;
        let (mut tensors, notes) = weights::read_weights_for(path, &backbone.model.state())?;
        tensors.retain(|(name, _)| !name.starts_with(arch.classifier()));
        let mut report = weights::load(arch.name(), &backbone.model.state(), tensors, path)?;
        report.notes.splice(0..0, notes);
        Ok((backbone, report))
    }

    /// The classifier of a weight file of this architecture, as a head on its features: of a teacher that was
    /// fine-tuned elsewhere. None where the file has no classifier, or one of other than `classes` classes.
    ///
    /// # Errors
    /// When the file cannot be read or lacks the classifier's bias.
    pub fn head_from_file(&self, path: &Path, classes: i64) -> Result<Option<Model>> {
        let (fc, wanted) = (self.arch.classifier(), [classes, self.arch.features()]);
        let (mut tensors, _) = weights::read_weights_for(path, &self.model.state())?;
        tensors.retain(|(name, _)| name.starts_with(fc));
        for (name, _) in &mut tensors {
            *name = name.replacen(fc, "fc.", 1);
        }
        if !tensors.iter().any(|(name, t)| name == "fc.weight" && t.size() == wanted) {
            return Ok(None);
        }
        let head = super::head(self.arch.features(), classes, self.model.device(), 0)?;
        weights::load("head", &head.state(), tensors, path)?;
        Ok(Some(head))
    }

    /// The same network with weights of its own.
    pub fn copy(&self) -> Result<Self> {
        let mut copy = Self::untrained(self.arch, self.model.device(), 0)?;
        copy.model.precision = self.model.precision;
        weights::load(self.arch.name(), &copy.model.state(), self.model.state(), Path::new("a backbone"))?;
        Ok(copy)
    }

    /// Backbone and head as one network from images to logits, under the published names (torchvision's `fc.weight`):
    /// to save, to measure, or to train the article's way. It has weights of its own, and only the head's learn.
    ///
    /// # Errors
    /// When `head` is not a linear layer on this backbone's features, as [`super::head`] makes it.
    pub fn with_head(&self, head: &Model) -> Result<Model> {
        let (fc, mut tensors, state) = (self.arch.classifier(), self.model.state(), head.state());
        let shapes: Vec<(&str, Vec<i64>)> = state.iter().map(|(name, t)| (name.as_str(), t.size())).collect();
        let classes = state.first().map_or(0, |(_, bias)| bias.numel() as i64);
        if shapes != [("fc.bias", vec![classes]), ("fc.weight", vec![classes, self.arch.features()])] {
            return Err(Error::Input(format!(
                "{} is no head for {}: it holds {shapes:?}, and fc.bias [classes] and fc.weight [classes, {}] are \
                 needed; make it with head({}, classes, ...)",
                head.name,
                self.arch,
                self.arch.features(),
                self.arch.features()
            )));
        }
        tensors.extend(state.into_iter().map(|(name, t)| (name.replacen("fc.", fc, 1), t)));
        let build = |vs: &nn::Path| self.arch.layers(vs, Some(classes));
        let mut whole = Model::new(self.arch.name(), self.model.device(), 0, &build)?;
        weights::load(self.arch.name(), &whole.state(), tensors, Path::new("the head"))?;
        whole.freeze_except(fc)?;
        whole.precision = self.model.precision;
        Ok(whole)
    }

    /// Features f32 `[N, arch.features()]` of images f32 `[N, 3, S, S]` (normalised by [`Arch::normalisation`]), on the
    /// model's device. Always with BatchNorm's stored statistics and without gradients.
    pub fn features(&self, x: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.model.forward(x, false))
    }
}
