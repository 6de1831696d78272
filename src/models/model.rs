//! A network with its variables: it is built once, initialised from a seed, and saved and loaded as a whole.

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

/// A network and its variables. It is owned and `Send`, so you can keep it from cell to cell and move it into a thread.
pub struct Model {
    /// Its name in messages.
    pub name: String,
    /// Precision of [`Model::forward`], by default f32. A fit computes in the precision of its options.
    pub precision: Precision,
    pub(super) layers: Layers,
    vs: VarStore,
}

impl Model {
    /// Builds a network on `device` and draws its weights from `seed`.
    ///
    /// The initialisation is PyTorch's default, whatever `build` asked tch for: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for
    /// weight and bias of convolutions and linear layers, 1 and 0 for BatchNorm. The weights are drawn on the CPU in
    /// the order of the variables' names, so one seed gives the same weights on every device.
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
                "network {name}: two layers share the variable {}; give each layer a path of its own, like \
                 vs / \"conv1\"",
                double.rsplit_once("__").map_or(double.as_str(), |(base, _)| base)
            )));
        }
        initialise(&state, seed)?;
        if device != Device::Mps {
            channels_innermost(&state)?;
        }
        Ok(model)
    }

    /// Computes logits f32 `[N, classes]`, or whatever the last layer gives, for `x` on the model's device.
    ///
    /// `train` makes BatchNorm use and update batch statistics; a frozen one uses its stored statistics. Gradients are
    /// recorded unless the caller is in `tch::no_grad`.
    ///
    /// # Errors
    /// When a layer refuses its input. The message names the layer, the shape and the reason.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_in(x, Mode::of(train), self.precision)
    }

    pub(crate) fn forward_in(&self, x: &Tensor, mode: Mode, precision: Precision) -> Result<Tensor> {
        let pass = || self.layers.walk(x, mode, None, &mut |_, _, _| ());
        precision.run(self.device(), pass).map_err(|error| self.too_small(&x.size(), x.kind(), error))
    }

    /// Returns the error of a pass over images of this size, `[N, C, H, W]`. Where they are too small for the network,
    /// it names the smallest that work.
    pub(super) fn too_small(&self, size: &[i64], kind: Kind, error: Error) -> Error {
        const MOST: i64 = 64;
        let &[_, channels, height, width] = size else { return error };
        let side = height.min(width).max(1);
        let passes = |side: &i64| {
            tch::no_grad(|| {
                let black = Tensor::f_zeros([1, channels, *side, *side], (kind, self.device()))?;
                self.layers.walk(&black, Mode::Evaluation, None, &mut |_, _, _| ())
            })
            .is_ok()
        };
        match (side..=MOST).find(passes).filter(|least| *least > side) {
            Some(least) => Error::Input(format!(
                "{}: images of {height}x{width} pixels are too small for its layers; give images of {least}x{least}, \
                 the smallest that they take",
                self.name
            )),
            None => error,
        }
    }

    /// [`Model::forward_in`], and the output f32 of the layer named `tap` beside it.
    pub(crate) fn forward_to(
        &self,
        x: &Tensor,
        mode: Mode,
        precision: Precision,
        tap: &str,
    ) -> Result<(Tensor, Tensor)> {
        let (mut found, mut names) = (None, Vec::new());
        let logits = precision.run(self.device(), || {
            self.layers.walk(x, mode, None, &mut |place, _, y| {
                let name = place.to_string();
                if name == tap {
                    // A copy, because the layer after it may write over its input.
                    found = Some(y.f_add_scalar(0));
                }
                names.push(name);
            })
        });
        let logits = logits.map_err(|error| self.too_small(&x.size(), x.kind(), error))?;
        match found {
            Some(y) => Ok((logits, y?.f_to_kind(self.kind())?)),
            None => Err(Error::Input(format!("{} has no layer {tap:?}; it has {}", self.name, names.join(", ")))),
        }
    }

    /// The kind of its weights.
    pub(crate) fn kind(&self) -> Kind {
        self.vs.variables().values().next().map_or(Kind::Float, |t| t.kind())
    }

    /// A function that computes [`Model::forward`] for many batches, in evaluation mode and without gradients. It is
    /// valid while nobody changes the weights.
    pub(crate) fn pass(&self) -> Result<impl Fn(&Tensor) -> Result<Tensor>> {
        let inference = tch::no_grad(|| {
            let fused = self.device() != Device::Mps && self.is_finite()?;
            Inference::new(&self.layers, self.precision, fused)
        })?;
        Ok(move |x: &Tensor| {
            let forward = |x: &Tensor| {
                let passed = self.precision.run(self.device(), || inference.run(x));
                passed.map_err(|error| self.too_small(&x.size(), x.kind(), error))
            };
            tch::no_grad(|| match &cache_sized(x, self.device())?[..] {
                [whole] => forward(whole),
                parts => Ok(Tensor::f_cat(&parts.iter().map(forward).collect::<Result<Vec<_>>>()?, 0)?),
            })
        })
    }

    /// Whether all weights are finite.
    fn is_finite(&self) -> Result<bool> {
        let sums = self
            .state()
            .iter()
            .map(|(_, v)| Ok(v.f_sum(None)?.f_to_kind(Kind::Double)?))
            .collect::<Result<Vec<_>>>()?;
        // Reading a value waits for the GPU, so all sums are read at once.
        Ok(sums.is_empty() || is_finite(&Tensor::f_stack(&sums, 0)?)?)
    }

    /// Returns the variable store, for tch's own optimizers: `nn::Adam::default().build(model.var_store(), lr)`.
    pub fn var_store(&self) -> &VarStore {
        &self.vs
    }

    /// Returns the device of the variables.
    pub fn device(&self) -> Device {
        self.vs.device()
    }

    /// Returns the number of trainable parameters, frozen or not.
    pub fn parameters(&self) -> i64 {
        self.vs.trainable_variables().iter().map(|t| t.numel() as i64).sum()
    }

    /// Returns the variables that are not frozen, sorted by name.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        self.state().into_iter().filter(|(_, t)| t.requires_grad()).collect()
    }

    /// Returns every variable, BatchNorm's running statistics included, sorted by name. The tensors share the model's
    /// memory.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state: Vec<_> = self.vs.variables().into_iter().collect();
        state.sort_by(|a, b| a.0.cmp(&b.0));
        state
    }

    /// Freezes every variable: none gets a gradient.
    pub fn freeze(&mut self) {
        self.vs.freeze();
    }

    /// Freezes every variable except those whose name begins with `part`, such as `fc.`.
    ///
    /// # Errors
    /// When no variable has such a name. Nothing is changed then.
    pub fn freeze_except(&mut self, part: &str) -> Result<()> {
        let state = self.state();
        if !state.iter().any(|(name, _)| name.starts_with(part)) {
            let (name, last) = (&self.name, state.last().map_or("", |(name, _)| name));
            let why = format!("{name}: no variable begins with {part:?}; their names look like {last:?}");
            return Err(Error::Input(why));
        }
        self.vs.unfreeze();
        for (_, variable) in self.trainable().iter().filter(|(name, _)| !name.starts_with(part)) {
            let _ = variable.set_requires_grad(false);
        }
        Ok(())
    }

    /// Whether the weight of a BatchNorm is frozen.
    pub(crate) fn has_frozen_norm(&self) -> bool {
        let state = self.state();
        let frozen =
            |norm: &str| state.iter().any(|(name, t)| name.strip_suffix("weight") == Some(norm) && !t.requires_grad());
        state.iter().filter_map(|(name, _)| name.strip_suffix("running_mean")).any(frozen)
    }

    /// The name of a BatchNorm that training changes, if there is one.
    pub(crate) fn learning_norm(&self) -> Option<String> {
        let state = self.state();
        let frozen = |norm: &str| state.iter().any(|(name, t)| *name == format!("{norm}weight") && !t.requires_grad());
        let mut norms = state.iter().filter_map(|(name, _)| name.strip_suffix("running_mean"));
        norms.find(|norm| !frozen(norm)).map(|norm| norm.trim_end_matches('.').to_owned())
    }

    /// Undoes [`Model::freeze`].
    pub fn unfreeze(&mut self) {
        self.vs.unfreeze();
    }

    /// Writes every variable to a safetensors file. The file is whole or absent.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        tensors::save_tensors(path.as_ref(), &self.state(), HashMap::new())
    }

    /// As [`Model::save`], with a card in the file, which [`ModelCard::read`] finds there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_with(&self, path: impl AsRef<Path>, card: &ModelCard) -> Result<()> {
        tensors::save_tensors(path.as_ref(), &self.state(), card.entries()?)
    }

    /// Returns the size in bytes of the file that [`Model::save`] writes.
    ///
    /// # Errors
    /// When a variable has a type that safetensors does not have.
    pub(crate) fn file_size(&self) -> Result<usize> {
        Ok(tensors::tensor_file_bytes(&self.state(), HashMap::new())?.len())
    }

    /// Loads the variables by name from a weight file: safetensors, or PyTorch's `.pth` in its zip or older format.
    ///
    /// # Errors
    /// When the file lacks a variable or has one of another shape. The model stays as it was.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport> {
        let path = path.as_ref();
        let mut notes = Vec::new();
        let tensors = weights::read_weights_for(path, &self.state(), &mut notes)?;
        weights::load(&self.name, &self.state(), tensors, path, notes)
    }

    /// Lists shapes, parameters and multiply-adds for one image of shape `[C, H, W]`.
    ///
    /// # Errors
    /// When the network does not accept such an image.
    pub fn summary(&self, input: [i64; 3]) -> Result<Summary> {
        let found = Summary::of(&self.layers, &self.name, input, self.device(), self.parameters());
        found.map_err(|error| self.too_small(&[1, input[0], input[1], input[2]], Kind::Float, error))
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} parameters on {:?})", self.name, self.parameters(), self.device())
    }
}

/// Creates a linear layer from a backbone's features f32 `[N, features]` to logits f32 `[N, classes]`. Its variables
/// are `fc.weight` and `fc.bias`.
///
/// # Errors
/// When there are no features, fewer than two classes, or no such device.
pub fn head(features: i64, classes: i64, device: Device, seed: u64) -> Result<Model> {
    if features < 1 || classes < 2 {
        return Err(Error::Input(format!(
            "a head from {features} features to {classes} classes cannot be built; it needs at least 1 feature and 2 \
             classes"
        )));
    }
    Model::new("head", device, seed, &|vs| {
        Layers::new().add("fc", nn::linear(vs / "fc", features, classes, Default::default()))
    })
}

/// The device as people read it: `CPU, 2 threads`, `Cuda(0)`.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => format!("CPU, {} threads", tch::get_num_threads()),
        other => format!("{other:?}"),
    }
}

/// Divides a batch into parts for a CPU, so that a layer's output is still in the cache when the next layer reads it.
/// The size was measured with EfficientNet-Lite0 at 128 and 224 px and with ResNet-50 at 224 px.
fn cache_sized(x: &Tensor, device: Device) -> Result<Vec<Tensor>> {
    const PIXELS: i64 = 1 << 20;
    match x.size()[..] {
        [images, _, height, width] if device == Device::Cpu && images > 1 => {
            Ok(x.f_chunk(((images * height * width - 1) / PIXELS + 1).min(images), 0)?)
        }
        _ => Ok(vec![x.shallow_clone()]),
    }
}

/// Checks that the device is there; tch would panic inside a layer's constructor.
pub(super) fn check_device(device: Device) -> Result<()> {
    match device {
        Device::Cuda(i) if !tch::Cuda::is_available() => Err(Error::Input(format!(
            "CUDA device {i} was asked for, but this libtorch sees no CUDA GPU; use Device::cuda_if_available(), \
             or check with `cargo lab doctor`"
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

/// Lays out the weights of convolutions channels-last, as the images of [`crate::data::Transform`] are. Otherwise each
/// step would reorder them.
fn channels_innermost(state: &[(String, Tensor)]) -> Result<()> {
    for (_, tensor) in state.iter().filter(|(_, t)| t.dim() == 4) {
        let laid_out = tensor.f_detach()?.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?;
        tensor.shallow_clone().f_set_data(&laid_out)?;
    }
    Ok(())
}

/// Initialises as PyTorch does, by name. A `weight` of two or more dimensions and the `bias` beside it are drawn. A
/// `weight` of one dimension, which belongs to a normalisation, becomes 1 and its bias 0. Other variables keep their
/// values.
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

/// Uniform in [-1, 1) from 24 random bits, as many as an f32 holds evenly.
fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 23) as f32 - 1.0
}
