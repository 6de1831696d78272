//! Frozen feature extractors with ImageNet weights.

use super::weights::{self, LoadReport};
use super::{Arch, Model, fetch};
use crate::store::digest::file_sha256;
use crate::{Error, Result};
use std::path::Path;
use tch::nn;
use tch::{Device, Tensor};

/// A frozen network that turns images into features.
#[derive(Debug)]
pub struct Backbone {
    /// Its architecture.
    pub arch: Arch,
    /// The network up to the features, all of its weights frozen.
    pub model: Model,
}

impl Backbone {
    /// Creates a backbone with random weights, drawn from `seed` by PyTorch's default initialisation.
    ///
    /// # Errors
    /// When the device is absent.
    pub fn untrained(arch: Arch, device: Device, seed: u64) -> Result<Self> {
        let mut model = Model::new(&arch.to_string(), device, seed, &|vs| arch.layers(vs, None))?;
        model.freeze();
        Ok(Backbone { arch, model })
    }

    /// Loads ImageNet weights from `<cache>/weights/`, and downloads them first if they are missing. The official file
    /// is checked by SHA-256. Without the official file, a `<architecture>.safetensors` of your own in that folder is
    /// loaded by name.
    ///
    /// # Errors
    /// When the weights cannot be downloaded or are damaged. The message says which file to put where.
    pub(crate) fn pretrained(arch: Arch, device: Device, cache: &Path) -> Result<Self> {
        let folder = cache.join("weights");
        let published = arch.published();
        let (official, own) = (folder.join(published.name), folder.join(format!("{arch}.safetensors")));
        if !official.is_file() && own.is_file() {
            return Ok(Self::from_file(arch, device, &own)?.0);
        }
        if !official.is_file() {
            fetch::fetch(&published, &official).map_err(|e| {
                let name = published.name;
                Error::Network(format!("{e}; to go on without the network put {name} into {}", folder.display()))
            })?;
        }
        let found = file_sha256(&official)?;
        if found != published.sha256 {
            return Err(Error::Data(format!(
                "{} has SHA-256 {found} instead of {}; delete it, it will be downloaded again",
                official.display(),
                published.sha256
            )));
        }
        Ok(Self::from_file(arch, device, &official)?.0)
    }

    /// Loads weights from a file of the same architecture, safetensors or `.pth`, without its classifier.
    ///
    /// # Errors
    /// When the file cannot be read or holds other weights.
    pub fn from_file(arch: Arch, device: Device, path: &Path) -> Result<(Self, LoadReport)> {
        let backbone = Self::untrained(arch, device, 0)?;
        let mut notes = Vec::new();
        let mut tensors = weights::read_weights_for(path, &backbone.model.state(), &mut notes)?;
        tensors.retain(|(name, _)| !name.starts_with(arch.classifier()));
        let report = weights::load(&backbone.model.name, &backbone.model.state(), tensors, path, notes)?;
        Ok((backbone, report))
    }

    /// Loads the classifier of a weight file of this architecture as a head on the features, such as that of a teacher
    /// that was fine-tuned elsewhere. `None` where the file has no classifier for `classes` classes.
    ///
    /// # Errors
    /// When the file cannot be read or lacks the classifier's bias.
    pub fn head_from_file(&self, path: &Path, classes: i64) -> Result<Option<Model>> {
        let (fc, wanted) = (self.arch.classifier(), [classes, self.arch.features()]);
        let mut tensors = weights::read_weights_for(path, &self.model.state(), &mut vec![])?;
        tensors.retain(|(name, _)| name.starts_with(fc));
        for (name, _) in &mut tensors {
            *name = name.replacen(fc, "fc.", 1);
        }
        if !tensors.iter().any(|(name, t)| name == "fc.weight" && t.size() == wanted) {
            return Ok(None);
        }
        let head = super::head(self.arch.features(), classes, self.model.device(), 0)?;
        weights::load("head", &head.state(), tensors, path, vec![])?;
        Ok(Some(head))
    }

    /// Copies the network and its weights.
    pub(crate) fn copy(&self) -> Result<Self> {
        let mut copy = Self::untrained(self.arch, self.model.device(), 0)?;
        copy.model.precision = self.model.precision;
        weights::load(&copy.model.name, &copy.model.state(), self.model.state(), Path::new("a backbone"), vec![])?;
        Ok(copy)
    }

    /// Copies backbone and head into one network from images to logits, to save, to measure, or to train the article's
    /// way. Its variables have the published names (torchvision's `fc.weight`). Only those of the head are trainable.
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
        let mut whole = Model::new(&self.arch.to_string(), self.model.device(), 0, &build)?;
        weights::load(&whole.name, &whole.state(), tensors, Path::new("the head"), vec![])?;
        whole.freeze_except(fc)?;
        whole.precision = self.model.precision;
        Ok(whole)
    }

    /// Computes features f32 `[N, arch.features()]` of images f32 `[N, 3, S, S]` on the model's device, which must be
    /// normalised by [`Arch::normalisation`]. It uses BatchNorm's stored statistics and records no gradients.
    ///
    /// # Errors
    /// When the images have another shape or are too small.
    pub fn features(&self, x: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.model.forward(x, false))
    }
}
