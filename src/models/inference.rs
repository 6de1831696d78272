//! A network in evaluation mode over many batches. What depends on the weights alone is computed once, and a
//! convolution, its normalisation, the sum of its block and the activation after them run as one operation.

use super::layers::{Activation, Mode, Pair, Place, add, convolve, kinds_differ, refused, takes};
use super::{Layers, Op, Precision, onednn};
use crate::Result;
use std::cell::{Cell, OnceCell};
use tch::nn::{ConvConfig, PaddingMode};
use tch::{Device, Kind, Tensor};

/// A network prepared for inference, valid while nobody changes its weights. It records no gradients.
pub(super) struct Inference<'a> {
    steps: Vec<Step<'a>>,
    fused: bool,
}

/// A part of the network that runs as one operation.
enum Step<'a> {
    Convolution(Convolution),
    /// `activation(last(body(x)) + shortcut(x))`
    Block {
        name: String,
        body: Vec<Step<'a>>,
        last: Convolution,
        shortcut: Option<Vec<Step<'a>>>,
    },
    Layer(String, &'a Op),
}

/// A convolution with what follows it: its normalisation is folded into weight and bias.
struct Convolution {
    name: String,
    settings: ConvConfig,
    shape: Vec<i64>, // [O, C / groups, K, K]
    weight: Tensor,
    /// The shape of the first input, and the weight in oneDNN's order for inputs of that shape.
    packed: OnceCell<(Vec<i64>, Tensor)>,
    bias: Option<Tensor>,
    activation: Option<Activation>,
    /// cuDNN has refused to fuse this convolution, so it is not asked again.
    cudnn_refused: Cell<bool>,
}

/// The other term of a residual block's sum.
struct Side<'a> {
    block: &'a str,
    tensor: Tensor,
    /// Whether it may be written over, because nobody else reads it.
    fresh: bool,
}

impl<'a> Inference<'a> {
    /// Prepares `layers`. `fused` allows operations that compute several layers at once. They require a CPU or CUDA,
    /// and finite weights.
    pub(super) fn new(layers: &'a Layers, precision: Precision, mut fused: bool) -> Result<Self> {
        let steps = plan(layers, None, precision, &mut fused)?;
        Ok(Self { steps, fused })
    }

    pub(super) fn run(&self, x: &Tensor) -> Result<Tensor> {
        run(&self.steps, x, self.fused)
    }
}

/// Returns the steps of `layers`, the list at the position `up` of the network. Sets `fused` to false for a network
/// that has diverged: a fused activation would turn its NaN into 0.
fn plan<'a>(layers: &'a Layers, up: Option<&Place>, precision: Precision, fused: &mut bool) -> Result<Vec<Step<'a>>> {
    let (mut steps, mut ops) = (vec![], layers.iter().peekable());
    while let Some((name, op)) = ops.next() {
        let place = Place { up, name };
        let mut step = match op {
            Op::Conv(conv, Some(settings)) if is_usual(settings, &conv.ws.size()) => {
                let pair = ops.peek().and_then(|(_, next)| Pair::of(op, next));
                let (weight, bias) = match &pair {
                    Some(pair) => pair.folded().map(|(weight, bias)| (weight, Some(bias)))?,
                    None => (conv.ws.shallow_clone(), conv.bs.as_ref().map(Tensor::shallow_clone)),
                };
                if let Some(bias) = &bias {
                    *fused = *fused && is_finite(bias)?;
                }
                if pair.is_some() {
                    ops.next();
                }
                Step::Convolution(Convolution::new(&place, *settings, weight, bias, precision)?)
            }
            Op::Residual { body, shortcut } => {
                let (name, mut body) = (place.to_string(), plan(body, Some(&place), precision, fused)?);
                match body.pop() {
                    Some(Step::Convolution(last)) if last.activation.is_none() => {
                        let shortcut = match shortcut {
                            Some(shortcut) => Some(plan(shortcut, Some(&place), precision, fused)?),
                            None => None,
                        };
                        Step::Block { name, body, last, shortcut }
                    }
                    _ => Step::Layer(name, op),
                }
            }
            _ => Step::Layer(place.to_string(), op),
        };
        if let Step::Convolution(last) | Step::Block { last, .. } = &mut step
            && let Some((_, next)) = ops.next_if(|(_, next)| next.activation().is_some())
        {
            last.activation = next.activation();
        }
        steps.push(step);
    }
    Ok(steps)
}

/// Runs the steps on `x`.
fn run(steps: &[Step], x: &Tensor, fused: bool) -> Result<Tensor> {
    // `fresh`: only the next step reads `x`, and may write over it.
    let (mut x, mut fresh) = (x.shallow_clone(), false);
    for step in steps {
        (x, fresh) = match step {
            Step::Convolution(convolution) => (convolution.run(&x, None, fused)?, true),
            Step::Block { name, body, last, shortcut } => {
                let main = run(body, &x, fused)?;
                let (tensor, fresh) = match shortcut {
                    Some(steps) => (run(steps, &x, fused)?, matches!(steps.last(), Some(Step::Convolution(_)))),
                    // A first step that is a convolution does not pass its input on.
                    None => (x, fresh && matches!(body.first(), Some(Step::Convolution(_)))),
                };
                (last.run(&main, Some(&Side { block: name, tensor, fresh }), fused)?, true)
            }
            Step::Layer(name, op) => {
                let place = Place { up: None, name };
                (op.apply(&x, Mode::Evaluation, &place, fresh, &mut |_, _, _| ())?, op.is_fresh())
            }
        };
    }
    Ok(x)
}

impl Convolution {
    fn new(
        name: &Place,
        settings: ConvConfig,
        weight: Tensor,
        bias: Option<Tensor>,
        precision: Precision,
    ) -> Result<Self> {
        // As autocast does, which does not cast f64.
        let cast = |t: Tensor| match precision {
            Precision::Bf16 if t.kind() == Kind::Float => t.f_to_kind(Kind::BFloat16),
            _ => Ok(t),
        };
        let (shape, weight, bias) = (weight.size(), cast(weight)?, bias.map(cast).transpose()?);
        let (name, packed) = (name.to_string(), OnceCell::new());
        Ok(Self { name, settings, shape, weight, packed, bias, activation: None, cudnn_refused: Cell::new(false) })
    }

    /// `activation(self(x) + side)`, written over the side where that is allowed.
    fn run(&self, x: &Tensor, side: Option<&Side>, fused: bool) -> Result<Tensor> {
        let (y, done) = self.compute(x, side, fused).map_err(|e| refused(&self.name, x, e))?;
        if done {
            return Ok(y);
        }
        let y = match side {
            Some(side) => add(&y, &side.tensor).map_err(|e| refused(&side.block, &y, e))?,
            None => y,
        };
        self.activation.map_or_else(|| Ok(y.shallow_clone()), |activation| activation.apply(&y, true))
    }

    /// The result, and whether it includes the sum and the activation.
    fn compute(&self, x: &Tensor, side: Option<&Side>, fused: bool) -> Result<(Tensor, bool)> {
        takes(&x.size(), &self.shape, Some(&self.settings))?;
        let (s, kind, bias) = (&self.settings, self.weight.kind(), self.bias.as_ref());
        let x = match (kind, x.kind()) {
            (Kind::BFloat16, Kind::Float) => x.f_to_kind(kind)?,
            (weight, given) if weight == given => x.shallow_clone(),
            (weight, given) => return Err(kinds_differ(given, weight)),
        };
        match x.device() {
            Device::Cpu if fused && onednn::computes(kind) => {}
            Device::Cuda(_) if fused && s.groups == 1 => return self.compute_on_cuda(&x, side),
            _ => return Ok((convolve(&x, &self.weight, bias, s)?, false)),
        }
        if self.packed.get().is_none() {
            let packed = onednn::packed(&self.weight, s, &x.size())?;
            let _ = self.packed.set((x.size(), packed));
        }
        let weight = self.packed.get().filter(|(size, _)| *size == x.size()).map_or(&self.weight, |(_, packed)| packed);
        let (into, whole) = match side {
            None => (None, true),
            Some(Side { tensor, fresh: true, .. })
                if tensor.kind() == kind
                    && tensor.size() == self.output(&x.size())
                    && onednn::sums(&x, tensor, self.activation)? =>
            {
                (Some(tensor), true)
            }
            Some(_) => (None, false),
        };
        Ok((onednn::convolve(&x, weight, bias, s, into, self.activation.filter(|_| whole))?, whole))
    }

    /// cuDNN has an operation for a convolution with a ReLU, and one with a sum between the two. Not every GPU has
    /// them, which shows when they are called. For convolutions in groups they are much slower than two operations.
    fn compute_on_cuda(&self, x: &Tensor, side: Option<&Side>) -> Result<(Tensor, bool)> {
        let (s, w, bias) = (&self.settings, &self.weight, self.bias.as_ref());
        let [stride, padding, dilation] = [s.stride, s.padding, s.dilation].map(|n| [n, n]);
        let fits = |t: &Tensor| t.kind() == w.kind() && t.size() == self.output(&x.size());
        let fused = match (self.activation, side) {
            _ if self.cudnn_refused.get() => None,
            (Some(_), None) => Some(x.f_cudnn_convolution_relu(w, bias, stride, padding, dilation, s.groups)),
            (Some(Activation::ReLU), Some(Side { tensor, .. })) if fits(tensor) => {
                Some(x.f_cudnn_convolution_add_relu(w, tensor, 1.0, bias, stride, padding, dilation, s.groups))
            }
            _ => None,
        };
        match fused {
            Some(Ok(mut y)) => {
                if self.activation == Some(Activation::ReLU6) {
                    y = y.f_clamp_max_(6.0)?;
                }
                Ok((y, true))
            }
            other => {
                self.cudnn_refused.set(other.is_some() || self.cudnn_refused.get());
                Ok((convolve(x, w, bias, s)?, false))
            }
        }
    }

    fn output(&self, input: &[i64]) -> Vec<i64> {
        let s = &self.settings;
        let side = |n: usize| (input[n] + 2 * s.padding - s.dilation * (self.shape[n] - 1) - 1) / s.stride + 1;
        vec![input[0], self.shape[0], side(2), side(3)]
    }
}

/// Whether libtorch accepts these settings and this weight. With others, the layer itself says what is wrong.
fn is_usual(s: &ConvConfig, weight: &[i64]) -> bool {
    let numbers = s.stride > 0 && s.dilation > 0 && s.padding >= 0 && s.groups > 0;
    numbers && weight.len() == 4 && weight[0] % s.groups == 0 && matches!(s.padding_mode, PaddingMode::Zeros)
}

pub(super) fn is_finite(t: &Tensor) -> Result<bool> {
    Ok(f64::try_from(t.f_sum(None)?)?.is_finite())
}
