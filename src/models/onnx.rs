//! A network as an ONNX file, from the bytes of pictures to probabilities: what [`Model::save_onnx`] writes.

use super::int8::Int8;
use super::layers::{Activation, Layers, Mode, Op, Pair, Place, same_margins};
use super::onnx_file::{Dim, Graph, Setting, Type};
use super::{Model, ModelCard};
use crate::data::{Framing, Split};
use crate::store::{atomic, tensors::tensor_bytes};
use crate::{Error, Result};
use std::path::Path;
use tch::nn::PaddingMode;
use tch::{Kind, Tensor};

impl Model {
    /// Writes the network as an ONNX file (opset 17), which programs run without this crate and without libtorch.
    ///
    /// Its input `images` is u8 `[N, H, W, 3]`, red, green, blue: the bytes of N decoded pictures of any one size, as
    /// Pillow, a browser's canvas and the crate `image` hold them. Resizing and normalisation are a part of the graph
    /// and the same as in [`crate::data::read_image`] and the card's transform. Its outputs are `logits` and
    /// `probabilities`, both f32 `[N, classes]`. The entries of the card are the file's metadata, as JSON.
    ///
    /// # Errors
    /// When a layer is a closure or hides its settings, when the card is of another network, or when the file cannot be
    /// written.
    pub fn save_onnx(&self, path: impl AsRef<Path>, card: &ModelCard) -> Result<()> {
        atomic::write_bytes(path.as_ref(), &file(self, card, None)?)
    }

    /// As [`Model::save_onnx`], with weights and values of 8 bits: a quarter of the size, and faster where a processor
    /// multiplies integers.
    ///
    /// A normalisation is first folded into its convolution. Weights are i8 from -64 to 64 with a step for each output
    /// channel, values u8 with a step and a zero point for each layer; the logits are f32. The ranges of the values are
    /// the least and the largest ones that `images` give, such as the training split: 512 of them, drawn at random,
    /// with sides of the card's `stored_size`. The metadata has one more entry, `precision`: `int8`.
    ///
    /// # Errors
    /// As [`Model::save_onnx`], and when the images have another size or give values that are not finite.
    pub fn save_onnx_int8(&self, path: impl AsRef<Path>, card: &ModelCard, images: &Split) -> Result<()> {
        atomic::write_bytes(path.as_ref(), &file(self, card, Some(images))?)
    }
}

/// The bytes of the file; in integers if there are images to calibrate them.
fn file(model: &Model, card: &ModelCard, images: Option<&Split>) -> Result<Vec<u8>> {
    card.check_size()?;
    if model.kind() != Kind::Float {
        return Err(Error::Input(format!(
            "{} has weights of kind {:?}, and an ONNX file holds Float: save() it, load() it into a new Model, and \
             save that one",
            model.name,
            model.kind()
        )));
    }
    let mut shapes = Vec::new();
    let logits = tch::no_grad(|| {
        let black = Tensor::f_zeros([1, 3, 1, 1], (Kind::Uint8, model.device()))?;
        let x = card.transform.apply(&black, model.device())?;
        let passed = model.layers.walk(&x, Mode::Evaluation, None, &mut |_, _, output| shapes.push(output.size()));
        passed.map_err(|error| model.too_small(&x.size(), x.kind(), error))
    })?
    .size();
    card.check_classes(&model.name, &logits[1..])?;
    let int8 = images.map(|images| Int8::calibrated(model, card, images)).transpose()?;
    let mut export = Export { graph: Graph::new(&model.name), shapes: shapes.into_iter(), int8 };
    let mut x = prepared(&mut export.graph, card);
    if let Some(int8) = &mut export.int8 {
        x = int8.rounded_input(&mut export.graph, x);
    }
    let (x, _) = export.layers(&model.layers, None, x, vec![1, 3, card.transform.size, card.transform.size])?;
    let mut graph = export.graph;
    let batch = || Dim::Named("images".to_owned());
    let side = |name: &str| Dim::Named(name.to_owned());
    graph.input("images", Type::Byte, vec![batch(), side("height"), side("width"), Dim::Fixed(3)]);
    graph.node("logits", "Identity", &[&x], &[]);
    graph.node("probabilities", "Softmax", &["logits"], &[("axis", Setting::Int(1))]);
    for name in ["logits", "probabilities"] {
        graph.output(name, Type::Float, vec![batch(), Dim::Fixed(card.classes.len() as i64)]);
    }
    let mut entries = card.entries()?;
    if images.is_some() {
        entries.insert("precision".to_owned(), "\"int8\"".to_owned());
    }
    Ok(graph.file(entries))
}

/// From bytes `[N, H, W, 3]` to the network's input `[N, 3, S, S]`: what [`crate::data::read_image`] does after it has
/// decoded a file, then the card's transform.
fn prepared(graph: &mut Graph, card: &ModelCard) -> String {
    let x = graph.node("", "Transpose", &["images"], &[("perm", Setting::Ints(&[0, 3, 1, 2]))]);
    let x = graph.node("", "Cast", &[&x], &[("to", Setting::Int(Type::Float as i64))]);
    let shape = graph.node("", "Shape", &["images"], &[]);
    let [height, width] = [1, 2].map(|axis| {
        let axis = graph.long(axis);
        graph.node("", "Gather", &[&shape, &axis], &[])
    });
    let x = match card.framing {
        Framing::Squeeze => resized(graph, &x, &height, &width, card.stored_size),
        Framing::CentreCrop => cropped(graph, &x, &height, &width, card.stored_size),
    };
    // Whole grey levels, as they are stored.
    let half = graph.floats(&[], &[0.5]);
    let x = graph.node("", "Add", &[&x, &half], &[]);
    let mut x = graph.node("stored", "Floor", &[&x], &[]);
    let transform = &card.transform;
    if transform.size != card.stored_size {
        let side = graph.long(card.stored_size);
        x = resized(graph, &x, &side, &side, transform.size);
    }
    let factors = graph.floats(&[3, 1, 1], &transform.std.map(|std| (1.0 / (255.0 * std)) as f32));
    let shifts: [f64; 3] = std::array::from_fn(|c| transform.mean[c] / transform.std[c]);
    let shifts = graph.floats(&[3, 1, 1], &shifts.map(|shift| shift as f32));
    let x = graph.node("", "Mul", &[&x, &factors], &[]);
    graph.node("input", "Sub", &[&x, &shifts], &[])
}

/// Squeezes `x` `[N, 3, height, width]` into `[N, 3, size, size]` by a product with a matrix from each side. ONNX's own
/// `Resize` has filters that reach over several pixels (antialias) from version 18 on only, and the file is of 17.
fn resized(graph: &mut Graph, x: &str, height: &str, width: &str, size: i64) -> String {
    let [rows, columns] = [height, width].map(|length| filter(graph, length, size, None));
    multiplied(graph, x, &rows, &columns)
}

/// Resizes `x` until its shorter side has `size` pixels, and crops the square in the centre, which is all that is
/// computed.
fn cropped(graph: &mut Graph, x: &str, height: &str, width: &str, size: i64) -> String {
    let to_float = [("to", Setting::Int(Type::Float as i64))];
    let short = graph.node("", "Min", &[height, width], &[]);
    let [rows, columns] = [height, width].map(|length| {
        let (wanted, half) = (graph.long(size), graph.floats(&[], &[0.5]));
        let resized = graph.node("", "Mul", &[length, &wanted], &[]);
        let resized = graph.node("", "Div", &[&resized, &short], &[]);
        let left = graph.node("", "Sub", &[&resized, &wanted], &[]);
        let [resized, left] = [resized, left].map(|side| graph.node("", "Cast", &[&side], &to_float));
        let left = graph.node("", "Mul", &[&left, &half], &[]);
        // Half to even, as torchvision does.
        let left = graph.node("", "Round", &[&left], &[]);
        filter(graph, length, size, Some([&resized, &left]))
    });
    multiplied(graph, x, &rows, &columns)
}

fn multiplied(graph: &mut Graph, x: &str, rows: &str, columns: &str) -> String {
    let x = graph.node("", "MatMul", &[rows, x], &[]);
    let columns = graph.node("", "Transpose", &[columns], &[]);
    graph.node("", "MatMul", &[&x, &columns], &[])
}

/// The matrix `[size, length]` that resizes `length` pixels to `size`: bilinear, and anti-aliased when it shrinks. Each
/// new pixel is a mean of the old ones with weights that fall linearly with their distance to its centre, to zero at
/// the distance of one pixel, old or new, whichever is larger.
///
/// With a `crop`, the pixels are resized to as many as its first value says, and `size` of them are taken from the
/// second on.
fn filter(graph: &mut Graph, length: &str, size: i64, crop: Option<[&str; 2]>) -> String {
    let [one, half] = [1.0, 0.5].map(|value| graph.floats(&[], &[value]));
    let [first, step, axis] = [graph.long(0), graph.long(1), graph.longs(&[1])];
    let to_float = [("to", Setting::Int(Type::Float as i64))];
    let centres: Vec<f32> = (0..size).map(|i| i as f32 + 0.5).collect();
    let centres = graph.floats(&[size, 1], &centres);

    let pixels = graph.node("", "Cast", &[length], &to_float);
    let (resized, centres) = match crop {
        Some([resized, left]) => (resized.to_owned(), graph.node("", "Add", &[&centres, left], &[])),
        None => (graph.floats(&[], &[size as f32]), centres),
    };
    let scale = graph.node("", "Div", &[&pixels, &resized], &[]);
    let reach = graph.node("", "Max", &[&scale, &one], &[]);
    let centres = graph.node("", "Mul", &[&centres, &scale], &[]);
    let positions = graph.node("", "Range", &[&first, length, &step], &[]);
    let positions = graph.node("", "Cast", &[&positions], &to_float);
    let positions = graph.node("", "Add", &[&positions, &half], &[]);
    let distance = graph.node("", "Sub", &[&positions, &centres], &[]);
    let distance = graph.node("", "Abs", &[&distance], &[]);
    let distance = graph.node("", "Div", &[&distance, &reach], &[]);
    let weights = graph.node("", "Sub", &[&one, &distance], &[]);
    let weights = graph.node("", "Relu", &[&weights], &[]);
    let sums = graph.node("", "ReduceSum", &[&weights, &axis], &[("keepdims", Setting::Int(1))]);
    graph.node("", "Div", &[&weights, &sums], &[])
}

struct Export {
    graph: Graph,
    /// Output shapes of the layers for one image, in the order in which [`Layers::walk`] reports them.
    shapes: std::vec::IntoIter<Vec<i64>>,
    int8: Option<Int8>,
}

impl Export {
    /// Appends the layers behind `x`, which has this shape for one image; returns name and shape of their output.
    fn layers(
        &mut self,
        layers: &Layers,
        up: Option<&Place>,
        mut x: String,
        mut shape: Vec<i64>,
    ) -> Result<(String, Vec<i64>)> {
        let ops: Vec<_> = layers.iter().collect();
        let mut rest = &ops[..];
        while let [(name, op), after @ ..] = rest {
            let place = Place { up, name };
            let pair = after.first().and_then(|(_, next)| Pair::of(op, next));
            let input = x.clone();
            x = self.layer(&place, op, pair.as_ref(), x, &shape)?;
            shape = self.shapes.next().unwrap_or_default();
            let mut last = *name;
            rest = after;
            if let (Some(_), [(name, _), after @ ..]) = (&pair, after) {
                shape = self.shapes.next().unwrap_or_default();
                last = name;
                rest = after;
            }
            if let Some(int8) = &mut self.int8 {
                // Pooling and an activation commute.
                let mut next = rest.iter().filter(|(_, op)| !matches!(op, Op::MaxPool { .. } | Op::Dropout(_)));
                let name = next.next().filter(|(_, op)| op.activation().is_some()).map_or(last, |(name, _)| name);
                x = int8.rounded(&mut self.graph, op, &input, x, &Place { up, name }.to_string());
            }
        }
        Ok((x, shape))
    }

    /// Appends one layer, together with the normalisation after it where they are a pair.
    fn layer(&mut self, place: &Place, op: &Op, pair: Option<&Pair>, x: String, shape: &[i64]) -> Result<String> {
        let refused = |why: &str| Error::Input(format!("layer `{place}` can't be written as ONNX: {why}"));
        let name = place.to_string();
        Ok(match op {
            Op::Conv(conv, Some(settings)) => {
                if !matches!(settings.padding_mode, PaddingMode::Zeros) {
                    return Err(refused("it pads with other values than zeros; use PaddingMode::Zeros"));
                }
                let (weight, bias) = match pair {
                    Some(pair) => pair.folded().map(|(weight, bias)| (weight, Some(bias)))?,
                    None => (conv.ws.shallow_clone(), conv.bs.as_ref().map(Tensor::shallow_clone)),
                };
                let size = weight.size();
                let [stride, padding, dilation] = [settings.stride, settings.padding, settings.dilation];
                let inputs = self.weighted(&name, x, &weight, bias.as_ref())?;
                let settings = [
                    ("kernel_shape", Setting::Ints(&size[2..])),
                    ("strides", Setting::Ints(&[stride; 2])),
                    ("pads", Setting::Ints(&[padding; 4])),
                    ("dilations", Setting::Ints(&[dilation; 2])),
                    ("group", Setting::Int(settings.groups)),
                ];
                self.node(&name, "Conv", &inputs, &settings)
            }
            Op::Conv(_, None) => return Err(refused("its stride and padding are hidden; build it with Op::conv")),
            Op::BatchNorm(norm, Some(config)) => {
                let ones = norm.running_mean.f_ones_like()?;
                let weight = norm.ws.as_ref().map_or(ones, Tensor::shallow_clone);
                let bias = norm.bs.as_ref().map_or(weight.f_zeros_like()?, Tensor::shallow_clone);
                let mut inputs = vec![x];
                for (last, tensor) in
                    [("weight", &weight), ("bias", &bias), ("mean", &norm.running_mean), ("var", &norm.running_var)]
                {
                    inputs.push(self.tensor(&format!("{name}.{last}"), tensor)?);
                }
                let epsilon = [("epsilon", Setting::Float(config.eps as f32))];
                self.node(&name, "BatchNormalization", &inputs, &epsilon)
            }
            Op::BatchNorm(_, None) => return Err(refused("its settings are hidden; build it with Op::norm")),
            Op::Linear(linear) => {
                if shape.len() != 2 {
                    return Err(refused("its input is no table [N, features]; put Op::Flatten before it"));
                }
                let inputs = self.weighted(&name, x, &linear.ws, linear.bs.as_ref())?;
                self.node(&name, "Gemm", &inputs, &[("transB", Setting::Int(1))])
            }
            op if op.activation().is_some_and(|activation| self.is_clipped(&x, activation)) => x,
            Op::ReLU => self.node(&name, "Relu", &[x], &[]),
            Op::ReLU6 => {
                let [least, most] = [0.0, 6.0].map(|value| self.graph.floats(&[], &[value]));
                self.node(&name, "Clip", &[x, least, most], &[])
            }
            Op::MaxPool { kernel, stride, padding } => {
                let settings = [
                    ("kernel_shape", Setting::Ints(&[*kernel; 2])),
                    ("strides", Setting::Ints(&[*stride; 2])),
                    ("pads", Setting::Ints(&[*padding; 4])),
                ];
                self.node(&name, "MaxPool", &[x], &settings)
            }
            Op::GlobalAvgPool => {
                let x = self.node(&name, "GlobalAveragePool", &[x], &[]);
                self.node(&format!("{name}.flat"), "Flatten", &[x], &[])
            }
            Op::SamePadding { kernel, stride } => {
                let [(top, bottom), (left, right)] = [2, 3].map(|axis| same_margins(shape[axis], *kernel, *stride));
                let pads = self.graph.longs(&[0, 0, top, left, 0, 0, bottom, right]);
                self.node(&name, "Pad", &[x, pads], &[])
            }
            Op::Flatten => self.node(&name, "Flatten", &[x], &[]),
            Op::Dropout(_) => x,
            Op::Func(_) => {
                let why = "it is a function; use a layer of Op instead, such as Op::ReLU, Op::MaxPool or \
                    Op::GlobalAvgPool";
                return Err(refused(why));
            }
            Op::Nested(layers) => self.layers(layers, Some(place), x, shape.to_owned())?.0,
            Op::Residual { body, shortcut } => {
                let (main, _) = self.layers(body, Some(place), x.clone(), shape.to_owned())?;
                let side = match shortcut {
                    Some(layers) => self.layers(layers, Some(place), x, shape.to_owned())?.0,
                    None => x,
                };
                self.node(&name, "Add", &[main, side], &[])
            }
        })
    }

    fn node(&mut self, name: &str, op: &str, inputs: &[String], settings: &[(&str, Setting)]) -> String {
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.graph.node(name, op, &inputs, settings)
    }

    /// Whether rounding has already done what the activation does.
    fn is_clipped(&self, x: &str, activation: Activation) -> bool {
        self.int8.as_ref().is_some_and(|int8| int8.is_clipped(x, activation))
    }

    /// The inputs of a layer: `x`, its weight and its bias.
    fn weighted(&mut self, name: &str, x: String, weight: &Tensor, bias: Option<&Tensor>) -> Result<Vec<String>> {
        if let Some(int8) = &self.int8
            && let Some(weights) = int8.weights(&mut self.graph, name, &x, weight, bias)?
        {
            return Ok([vec![x], weights].concat());
        }
        let mut inputs = vec![x, self.tensor(&format!("{name}.weight"), weight)?];
        if let Some(bias) = bias {
            inputs.push(self.tensor(&format!("{name}.bias"), bias)?);
        }
        Ok(inputs)
    }

    /// A weight as a constant.
    fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<String> {
        let raw = tensor_bytes(&tensor.f_to_kind(Kind::Float)?)?;
        Ok(self.graph.constant(name, Type::Float, &tensor.size(), raw))
    }
}
