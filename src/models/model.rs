//! A network with its variables: built once, initialised from a seed, saved and loaded whole.

use super::inference::{Inference, is_finite};
use super::layers::{Layers, Mode};
use super::summary::Summary;
use super::weights::{self, LoadReport};
use super::{ModelCard, Precision};
use crate::store::tensors;
use crate::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::HashMap;
use std::path::Path;
use tch::nn::{self, VarStore};
use tch::{Device, Kind, Tensor};

/// A network and its variables, owned and `Send`: keep it from cell to cell, move it into a thread.
pub struct Model {
    pub name: String,
    /// Of [`Model::forward`]: f32, if nobody changes it. A fit computes in that of its options.
    pub precision: Precision,
    layers: Layers,
    vs: VarStore,
}

impl Model {
    /// Builds a network on `device` and draws its weights from `seed`.
    ///
    /// The weights are PyTorch's defaults, whatever initialisation `build` asked tch for: weight and bias of
    /// convolutions and linear layers U(-1/sqrt(fan_in), 1/sqrt(fan_in)), BatchNorm 1 and 0. They are drawn on the CPU
    /// in the order of the variables' names, so one seed gives the same weights on every device.
    ///
    /// # Errors
    /// When the device is absent, or when two layers share a variable name.
    pub fn new(name: &str, device: Device, seed: u64, build: &dyn Fn(&nn::Path) -> Layers) -> Result<Self> {
        check_device(device)?;
        let vs = VarStore::new(device);
        let layers = build(&vs.root());
        let model = Model { name: name.to_owned(), precision: Precision::F32, layers, vs };
        let state = model.state();
        if let Some((double, _)) = state.iter().find(|(name, _)| is_double(name, &state)) {
            return Err(Error::Input(format!(
                "network {name}: two layers share the variable {}; give each layer a path of its own, like vs / \"conv1\"",
                double.rsplit_once("__").map_or(double.as_str(), |(base, _)| base)
            )));
        }
        initialise(&state, seed)?;
        if device != Device::Mps {
            channels_innermost(&state)?;
        }
        Ok(model)
    }

    /// Logits `[N, classes]` (or whatever the last layer gives) for `x` on the model's device.
    ///
    /// `train` makes BatchNorm use and update batch statistics; one that is frozen keeps to its stored statistics.
    /// Gradients are recorded unless the caller is in `tch::no_grad`.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_in(x, Mode::of(train), self.precision)
    }

    pub(crate) fn forward_in(&self, x: &Tensor, mode: Mode, precision: Precision) -> Result<Tensor> {
        precision.run(self.device(), || self.layers.walk(x, mode, None, &mut |_, _, _| ()))
    }

    /// [`Model::forward`] for many batches, in evaluation mode and without gradients, while nobody changes the weights.
    pub(crate) fn pass(&self) -> Result<impl Fn(&Tensor) -> Result<Tensor>> {
        let inference = tch::no_grad(|| {
            let fused = self.device() != Device::Mps && self.is_finite()?;
            Inference::new(&self.layers, self.precision, fused)
        })?;
        Ok(move |x: &Tensor| {
            let forward = |x: &Tensor| self.precision.run(self.device(), || inference.run(x));
            tch::no_grad(|| match &cache_sized(x, self.device())?[..] {
                [whole] => forward(whole),
                parts => Ok(Tensor::f_cat(&parts.iter().map(forward).collect::<Result<Vec<_>>>()?, 0)?),
            })
        })
    }

    /// Whether it may give numbers: one NaN among the weights, and it gives nothing else.
    fn is_finite(&self) -> Result<bool> {
        let sums = self
            .state()
            .iter()
            .map(|(_, v)| Ok(v.f_sum(None)?.f_to_kind(Kind::Double)?))
            .collect::<Result<Vec<_>>>()?;
        // One look for all of them: it waits for a GPU.
        Ok(sums.is_empty() || is_finite(&Tensor::f_stack(&sums, 0)?)?)
    }

    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    pub fn device(&self) -> Device {
        self.vs.device()
    }

    /// How many numbers training could change, frozen or not.
    pub fn parameters(&self) -> i64 {
        self.vs.trainable_variables().iter().map(|t| t.numel() as i64).sum()
    }

    /// The variables that gradients reach now, sorted by name. Empty while frozen.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        self.state().into_iter().filter(|(_, t)| t.requires_grad()).collect()
    }

    /// Every variable, BatchNorm's running statistics included, sorted by name. The tensors share the model's memory.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state: Vec<_> = self.vs.variables().into_iter().collect();
        state.sort_by(|a, b| a.0.cmp(&b.0));
        state
    }

    /// The variable store, for `nn::Adam::default().build(model.var_store(), lr)`.
    pub fn var_store(&self) -> &VarStore {
        &self.vs
    }

    /// Keeps gradients away from every variable.
    pub fn freeze(&mut self) {
        self.vs.freeze();
    }

    /// Keeps gradients away from every variable but those whose name begins with `part`, such as `fc.`.
    ///
    /// # Errors
    /// When no variable is named so; nothing is changed then.
    pub fn freeze_except(&mut self, part: &str) -> Result<()> {
        let state = self.state();
        if !state.iter().any(|(name, _)| name.starts_with(part)) {
            return Err(Error::Input(format!(
                "{}: no variable begins with {part:?}; the last one is {}",
                self.name,
                state.last().map_or("missing", |(name, _)| name)
            )));
        }
        self.vs.unfreeze();
        for (_, variable) in self.trainable().iter().filter(|(name, _)| !name.starts_with(part)) {
            let _ = variable.set_requires_grad(false);
        }
        Ok(())
    }

    /// Whether gradients are kept away from the weight of a BatchNorm.
    pub(crate) fn has_frozen_norm(&self) -> bool {
        let state = self.state();
        let frozen =
            |norm: &str| state.iter().any(|(name, t)| name.strip_suffix("weight") == Some(norm) && !t.requires_grad());
        state.iter().filter_map(|(name, _)| name.strip_suffix("running_mean")).any(frozen)
    }

    /// Undoes [`Model::freeze`].
    pub fn unfreeze(&mut self) {
        self.vs.unfreeze();
    }

    /// Writes every variable to a safetensors file, which is whole or absent.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        tensors::save_tensors(path.as_ref(), &self.state(), HashMap::new())
    }

    /// [`Model::save`] with what a user of the file must know written into it; [`ModelCard::read`] finds it there.
    pub fn save_with(&self, path: impl AsRef<Path>, card: &ModelCard) -> Result<()> {
        tensors::save_tensors(path.as_ref(), &self.state(), card.entries()?)
    }

    /// Bytes of the file that [`Model::save`] writes.
    pub fn file_size(&self) -> Result<usize> {
        Ok(tensors::tensor_file(&self.state(), HashMap::new())?.len())
    }

    /// Loads a weight file by name: safetensors, or PyTorch's `.pth` in its zip and its older format.
    ///
    /// # Errors
    /// When the file lacks a variable or has one of another shape; the model is then left as it was.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport> {
        let path = path.as_ref();
        let (tensors, notes) = weights::read_weights_for(path, &self.state())?;
        let mut report = weights::load(&self.name, &self.state(), tensors, path)?;
        report.notes.splice(0..0, notes);
        Ok(report)
    }

    /// Shapes, parameters and multiply-adds for one image of shape `[C, H, W]`.
    pub fn summary(&self, input: [i64; 3]) -> Result<Summary> {
        Summary::of(&self.layers, &self.name, input, self.device(), self.parameters())
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} parameters on {:?})", self.name, self.parameters(), self.device())
    }
}

/// A linear layer from a backbone's features f32 `[N, features]` to logits `[N, classes]`; its variables are `fc.*`.
pub fn head(features: i64, classes: i64, device: Device, seed: u64) -> Result<Model> {
    if features < 1 || classes < 2 {
        return Err(Error::Input(format!(
            "a head from {features} features to {classes} classes cannot be built; it needs at least 1 feature and 2 classes"
        )));
    }
    Model::new("head", device, seed, &|vs| {
        Layers::new().add("fc", nn::linear(vs / "fc", features, classes, Default::default()))
    })
}

/// For people: `CPU, 2 threads`, `Cuda(0)`.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => format!("CPU, {} threads", tch::get_num_threads()),
        other => format!("{other:?}"),
    }
}

/// A batch in parts that a CPU computes quickest: what a layer gives the next is then still in its cache. Measured with
/// EfficientNet-Lite0 at 128 and 224 px and ResNet-50 at 224.
fn cache_sized(x: &Tensor, device: Device) -> Result<Vec<Tensor>> {
    const PIXELS: i64 = 1 << 20;
    match x.size()[..] {
        [images, _, height, width] if device == Device::Cpu && images > 1 => {
            Ok(x.f_chunk(((images * height * width - 1) / PIXELS + 1).min(images), 0)?)
        }
        _ => Ok(vec![x.shallow_clone()]),
    }
}

/// libtorch would panic inside a layer's constructor.
fn check_device(device: Device) -> Result<()> {
    match device {
        Device::Cuda(i) if !tch::Cuda::is_available() => Err(Error::Input(format!(
            "CUDA device {i} was asked for, but this libtorch sees no CUDA GPU; use Device::cuda_if_available(), or check with `cargo lab doctor`"
        ))),
        Device::Cuda(i) if i as i64 >= tch::Cuda::device_count() => Err(Error::Input(format!(
            "CUDA device {i} was asked for, but there are only {}; they count from 0",
            tch::Cuda::device_count()
        ))),
        Device::Mps if !tch::utils::has_mps() => {
            Err(Error::Input("the Metal device was asked for, but this libtorch has none; use Device::Cpu".to_owned()))
        }
        _ => Ok(()),
    }
}

/// tch renames the second variable of a name to `name__<count>`.
fn is_double(name: &str, state: &[(String, Tensor)]) -> bool {
    name.rsplit_once("__")
        .is_some_and(|(base, count)| count.parse::<usize>().is_ok() && state.iter().any(|(other, _)| other == base))
}

/// Weights of convolutions in the layout of the images that [`crate::data::Transform`] gives: else each step lays
/// them out anew.
fn channels_innermost(state: &[(String, Tensor)]) -> Result<()> {
    for (_, tensor) in state.iter().filter(|(_, t)| t.dim() == 4) {
        let laid_out = tensor.f_detach()?.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?;
        tensor.shallow_clone().f_set_data(&laid_out)?;
    }
    Ok(())
}

/// PyTorch's defaults, by name: `weight` of two and more dimensions and the `bias` beside it are drawn, a `weight` of
/// one dimension (a normalisation) becomes 1 and its bias 0. Other variables keep what their layer gave them.
fn initialise(state: &[(String, Tensor)], seed: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    tch::no_grad(|| {
        for (name, tensor) in state {
            let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
            let mut tensor = tensor.shallow_clone();
            let weight = match last {
                "weight" => Some(tensor.size()),
                "bias" => {
                    let beside = if path.is_empty() { "weight".to_owned() } else { format!("{path}.weight") };
                    state.iter().find(|(other, _)| *other == beside).map(|(_, w)| w.size())
                }
                _ => None,
            };
            match weight {
                Some(size) if size.len() >= 2 => {
                    let fan_in: i64 = size[1..].iter().product();
                    let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
                    let drawn: Vec<f32> = (0..tensor.numel()).map(|_| bound * uniform(&mut rng)).collect();
                    tensor.f_copy_(&Tensor::f_from_slice(&drawn)?.f_view(tensor.size().as_slice())?)?;
                }
                Some(_) => drop(tensor.f_fill_(if last == "weight" { 1.0 } else { 0.0 })?),
                None => {}
            }
        }
        Ok(())
    })
}

/// Uniform in [-1, 1): 24 random bits are what an f32 can hold evenly.
fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 23) as f32 - 1.0
}
