//! A network's weights and values as integers of 8 bits, for [`Model::save_onnx_int8`]: static quantisation after Jacob
//! et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018).

use super::layers::{Activation, Mode, Op};
use super::onnx_file::{Graph, Setting, Type};
use super::{Model, ModelCard};
use crate::data::{Split, batches, shuffled};
use crate::store::tensors::tensor_bytes;
use crate::{Error, Result};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// Largest integer of a weight. Two products of 64 and 255 fit into 16 bits. With 127, processors that sum products in
/// pairs of 16 bits (x86 without VNNI) clip them: a student then kept 93 % of its answers instead of 98 %.
const LARGEST: f64 = 64.0;

/// Images in a batch of the calibration.
const BATCH: usize = 64;
/// More images hardly widen the ranges.
const IMAGES: usize = 512;

/// What the integers of a tensor mean: `value = step * (integer - zero)` with integers from 0 to 255. The value 0 has
/// an integer, so padding with zeros stays exact.
#[derive(Clone, Copy)]
struct Scale {
    step: f32,
    zero: u8,
}

impl Scale {
    fn of([least, most]: [f32; 2]) -> Self {
        let (least, most) = (least.min(0.0), most.max(0.0));
        let step = ((most - least) / 255.0).max(1e-8); // of a layer that only gives 0
        Self { step, zero: (-least / step).round().clamp(0.0, 255.0) as u8 }
    }
}

/// The ranges of a network's values, and the scales of the tensors that are already in the graph.
pub(super) struct Int8 {
    /// Least and largest value by the name of the layer. The network's input has the empty name; its output has no
    /// range and stays f32.
    ranges: HashMap<String, [f32; 2]>,
    /// By the name of the tensor.
    scales: HashMap<String, Scale>,
}

impl Int8 {
    /// Runs the network on the images and keeps the least and the largest value behind each layer. No value of these
    /// images is clipped then. Percentiles would clip rare values for finer steps, and need a choice of the share.
    pub(super) fn calibrated(model: &Model, card: &ModelCard, images: &Split) -> Result<Self> {
        if images.size() != (card.stored_size, card.stored_size) {
            let (height, width) = images.size();
            return Err(Error::Input(format!(
                "the images for calibration have {height}x{width} pixels and the card's stored_size is {}; give images \
                 of the data that the network was trained on",
                card.stored_size
            )));
        }
        let mut ranges: HashMap<String, [f32; 2]> = HashMap::new();
        // A split may hold one class after the other.
        let mut drawn = shuffled(images.len(), 0, 0);
        drawn.truncate(IMAGES);
        for indices in batches(&drawn, BATCH)? {
            let x = card.transform.apply(&images.batch(&indices)?.images, model.device())?;
            let mut seen = vec![(String::new(), x.f_aminmax(None, false))];
            let _logits = tch::no_grad(|| {
                let mut note = |name: String, y: &Tensor| seen.push((name, y.f_aminmax(None, false)));
                model.layers.walk(&x, Mode::Evaluation, None, &mut |place, _, y| note(place.to_string(), y))
            })?;
            for (name, range) in seen {
                let (least, most) = range?;
                let (least, most) = (f64::try_from(least)? as f32, f64::try_from(most)? as f32);
                if !least.is_finite() || !most.is_finite() {
                    let layer = if name.is_empty() { "the input" } else { &name };
                    return Err(Error::Input(format!(
                        "{layer} has values that are not finite numbers; train {} with a smaller learning rate",
                        model.name
                    )));
                }
                let range = ranges.entry(name).or_insert([least, most]);
                *range = [range[0].min(least), range[1].max(most)];
            }
        }
        if let Some((last, _)) = model.layers.iter().last() {
            ranges.remove(last);
        }
        Ok(Self { ranges, scales: HashMap::new() })
    }

    /// Rounds the output `x` of a layer to integers and back. `range` names the layer whose values count: where an
    /// activation follows, its own, so that the rounding clips as the activation does.
    pub(super) fn rounded(&mut self, graph: &mut Graph, op: &Op, input: &str, x: String, range: &str) -> String {
        let scale = match op {
            // They only choose among the values of their input.
            Op::MaxPool { .. } | Op::SamePadding { .. } | Op::Flatten => self.scales.get(input).copied(),
            _ => self.ranges.get(range).copied().map(Scale::of),
        };
        match scale {
            Some(scale) if !self.scales.contains_key(&x) => self.round(graph, &x, scale),
            _ => x,
        }
    }

    /// Rounds the network's input.
    pub(super) fn rounded_input(&mut self, graph: &mut Graph, x: String) -> String {
        match self.ranges.get("").copied() {
            Some(range) => self.round(graph, &x, Scale::of(range)),
            None => x,
        }
    }

    /// Programs that know integers compute a layer between two such pairs of nodes in integers; all others round f32.
    fn round(&mut self, graph: &mut Graph, x: &str, scale: Scale) -> String {
        let step = graph.floats(&[], &[scale.step]);
        let zero = graph.constant("", Type::Byte, &[], vec![scale.zero]);
        let integers = graph.node("", "QuantizeLinear", &[x, &step, &zero], &[]);
        let x = graph.node("", "DequantizeLinear", &[&integers, &step, &zero], &[]);
        self.scales.insert(x.clone(), scale);
        x
    }

    /// Whether the activation leaves `x` as it is, because rounding has clipped it.
    pub(super) fn is_clipped(&self, x: &str, activation: Activation) -> bool {
        let most = match activation {
            Activation::ReLU => f32::INFINITY,
            Activation::ReLU6 => 6.001,
        };
        self.scales.get(x).is_some_and(|scale| scale.zero == 0 && 255.0 * scale.step <= most)
    }

    /// Appends the weights of a layer as integers from `-LARGEST` to `LARGEST` with a step for each output channel, and
    /// its bias in the steps of the sums; returns the names of both. `None` where the input `x` is not rounded.
    pub(super) fn weights(
        &self,
        graph: &mut Graph,
        name: &str,
        x: &str,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Option<Vec<String>>> {
        let Some(scale) = self.scales.get(x) else { return Ok(None) };
        let step = f64::from(scale.step);
        let plain = |t: &Tensor| Ok::<_, Error>(t.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?);
        let rows = plain(weight)?.f_flatten(1, -1)?;
        let mut steps = rows.f_abs()?.f_amax([1i64], false)?.f_div_scalar(LARGEST)?.f_clamp_min(1e-12)?;
        let bias = bias.map(plain).transpose()?;
        if let Some(bias) = &bias {
            // The integers of the bias have 32 bits.
            steps = steps.f_maximum(&bias.f_abs()?.f_div_scalar(step * f64::from(1 << 30))?)?;
        }
        // The bias counts in the steps that are written, which are f32.
        let steps = steps.f_to_kind(Kind::Float)?.f_to_kind(Kind::Double)?;
        let integers = rows.f_div(&steps.f_unsqueeze(1)?)?.f_round()?.f_clamp(-LARGEST, LARGEST)?.f_view_as(weight)?;
        let mut append = |name: String, integers: Tensor, steps: &Tensor, kind, type_| -> Result<String> {
            let (size, channels) = (integers.size(), steps.size());
            let raw = tensor_bytes(&integers.f_to_kind(kind)?)?;
            let integers = graph.constant(&name, type_, &size, raw);
            let zeros = tensor_bytes(&Tensor::f_zeros(&channels, (kind, Device::Cpu))?)?;
            let zeros = graph.constant("", type_, &channels, zeros);
            let steps = graph.constant("", Type::Float, &channels, tensor_bytes(&steps.f_to_kind(Kind::Float)?)?);
            Ok(graph.node("", "DequantizeLinear", &[&integers, &steps, &zeros], &[("axis", Setting::Int(0))]))
        };
        let mut names = vec![append(format!("{name}.weight"), integers, &steps, Kind::Int8, Type::Int8)?];
        if let Some(bias) = bias {
            let steps = steps.f_mul_scalar(step)?;
            let integers = bias.f_div(&steps)?.f_round()?;
            names.push(append(format!("{name}.bias"), integers, &steps, Kind::Int, Type::Int32)?);
        }
        Ok(Some(names))
    }
}
