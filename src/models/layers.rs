//! A network as a list of named layers. The same list runs the network and is walked for its summary.

use crate::{Error, Result};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::nn::{self, Module, ModuleT};
use tch::{Kind, TchError, Tensor};

/// Whether a pass trains or evaluates: which statistics BatchNorm uses, and whether dropout is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The stored statistics, everywhere.
    Evaluation,
    /// Batch statistics, which update the stored ones; in frozen layers the stored ones.
    Training,
    /// As PyTorch's `model.train()`: batch statistics in frozen layers too. One of the article's mistakes.
    TrainingFrozenToo,
}

impl Mode {
    pub(crate) fn of(train: bool) -> Self {
        if train { Mode::Training } else { Mode::Evaluation }
    }
}

/// A function of the input and of "is this training?", without parameters of its own.
type Func = Box<dyn Fn(&Tensor, bool) -> Tensor + Send>;

/// An activation that can run inside the convolution before it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Activation {
    ReLU,
    ReLU6,
}

impl Activation {
    /// Writes the result over `x` where it is `fresh`: nobody else reads it then. This saves a pass over memory.
    pub(super) fn apply(self, x: &Tensor, fresh: bool) -> Result<Tensor> {
        let mut over = x.shallow_clone();
        Ok(match (self, fresh) {
            (Activation::ReLU, false) => x.f_relu()?,
            (Activation::ReLU, true) => over.f_relu_()?,
            (Activation::ReLU6, false) => x.f_relu6()?,
            (Activation::ReLU6, true) => over.f_relu6_()?,
        })
    }
}

/// One layer of a network, made from a layer of tch, or by [`Op::conv`] and [`Op::norm`].
///
/// Prefer those two to tch's own convolution and BatchNorm, whose settings cannot be read back. With them, a frozen
/// convolution and the BatchNorm after it run as one operation. In predictions and cached features on a CPU (Linux,
/// x86-64) or on CUDA, the sum of the block and the ReLU after them join in.
pub enum Op {
    /// A convolution, with its settings if they are known.
    Conv(nn::Conv2D, Option<nn::ConvConfig>),
    /// A batch normalisation, with its settings if they are known.
    BatchNorm(nn::BatchNorm, Option<nn::BatchNormConfig>),
    /// A linear layer.
    Linear(nn::Linear),
    /// `max(x, 0)`
    ReLU,
    /// `min(max(x, 0), 6)`
    ReLU6,
    /// Maximum over windows of `kernel` x `kernel` pixels, `stride` apart, as PyTorch's `F.max_pool2d`.
    MaxPool {
        /// Side of the window in pixels.
        kernel: i64,
        /// Distance of two windows in pixels.
        stride: i64,
        /// Pixels added at each edge, which are never the maximum; at most half of `kernel`.
        padding: i64,
    },
    /// Mean over height and width: `[N, C, H, W]` to `[N, C]`.
    GlobalAvgPool,
    /// Zeros at the edges, so that the convolution after it gives `ceil(side / stride)` pixels: TensorFlow's padding
    /// "SAME", with the odd pixel at the right and at the bottom.
    SamePadding {
        /// Side of the convolution's kernel in pixels.
        kernel: i64,
        /// Stride of the convolution in pixels.
        stride: i64,
    },
    /// `[N, C, H, W]` to `[N, C * H * W]`.
    Flatten,
    /// Sets each value to 0 with this probability, in training only.
    Dropout(f64),
    /// Any other function without parameters of its own. A network that has one can't be saved as ONNX.
    Func(Func),
    /// `body(x) + shortcut(x)`, or `body(x) + x` without a shortcut.
    Residual {
        /// The layers of the block.
        body: Layers,
        /// The layers beside the block.
        shortcut: Option<Layers>,
    },
    /// Layers under a common name. [`Layers::add`] puts each of them into its list.
    Nested(Layers),
}

impl Op {
    /// Creates a convolution with [`nn::conv2d`].
    pub fn conv(vs: nn::Path, inputs: i64, outputs: i64, kernel: i64, config: nn::ConvConfig) -> Self {
        Op::Conv(nn::conv2d(vs, inputs, outputs, kernel, config), Some(config))
    }

    /// Creates a batch normalisation with [`nn::batch_norm2d`].
    pub fn norm(vs: nn::Path, channels: i64, config: nn::BatchNormConfig) -> Self {
        Op::BatchNorm(nn::batch_norm2d(vs, channels, config), Some(config))
    }

    /// This layer as an activation; `None` if it is another layer.
    pub(super) fn activation(&self) -> Option<Activation> {
        match self {
            Op::ReLU => Some(Activation::ReLU),
            Op::ReLU6 => Some(Activation::ReLU6),
            _ => None,
        }
    }

    /// Whether its output is memory of its own, which the next layer may write over.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self, Op::Conv(..) | Op::BatchNorm(..) | Op::Linear(_) | Op::Residual { .. })
    }

    /// Runs the layer on `x` and may write over `x` where it is `fresh`.
    pub(super) fn apply(&self, x: &Tensor, mode: Mode, place: &Place, fresh: bool, seen: &mut Seen) -> Result<Tensor> {
        match self {
            Op::Residual { body, shortcut } => {
                let main = body.walk(x, mode, Some(place), seen)?;
                let side = match shortcut {
                    Some(layers) => layers.walk(x, mode, Some(place), seen)?,
                    None => x.shallow_clone(),
                };
                // Where nobody else reads the sum's first term, the sum is written over it.
                let fresh = body.0.last().is_some_and(|(_, last)| last.is_fresh());
                return match fresh && !main.requires_grad() {
                    true => add(&main, &side),
                    false => main.f_add(&side).map_err(Error::from),
                }
                .map_err(|e| refused(place, &main, e));
            }
            Op::Conv(layer, settings) => conv(layer, settings.as_ref(), x),
            Op::BatchNorm(layer, _) => batch_norm(layer, x, mode),
            Op::Linear(layer) => x.f_linear(&layer.ws, layer.bs.as_ref()).map_err(Error::from),
            Op::ReLU => Activation::ReLU.apply(x, fresh),
            Op::ReLU6 => Activation::ReLU6.apply(x, fresh),
            Op::MaxPool { kernel, stride, padding } => {
                x.f_max_pool2d([*kernel; 2], [*stride; 2], [*padding; 2], [1, 1], false).map_err(Error::from)
            }
            Op::GlobalAvgPool => {
                x.f_adaptive_avg_pool2d([1, 1]).and_then(|mean| mean.f_flatten(1, -1)).map_err(Error::from)
            }
            Op::SamePadding { kernel, stride } => same_padding(x, *kernel, *stride),
            Op::Flatten => x.f_flatten(1, -1).map_err(Error::from),
            Op::Dropout(share) => x.f_dropout(*share, mode != Mode::Evaluation).map_err(Error::from),
            Op::Func(f) => caught(|| f(x, mode != Mode::Evaluation)),
            Op::Nested(layers) => return layers.walk(x, mode, Some(place), seen),
        }
        .map_err(|e| refused(place, x, e))
    }
}

impl From<nn::Conv2D> for Op {
    fn from(layer: nn::Conv2D) -> Self {
        Op::Conv(layer, None)
    }
}

impl From<nn::BatchNorm> for Op {
    fn from(layer: nn::BatchNorm) -> Self {
        Op::BatchNorm(layer, None)
    }
}

impl From<nn::Linear> for Op {
    fn from(layer: nn::Linear) -> Self {
        Op::Linear(layer)
    }
}

impl From<Layers> for Op {
    fn from(layers: Layers) -> Self {
        Op::Nested(layers)
    }
}

impl From<nn::FuncT<'static>> for Op {
    fn from(layer: nn::FuncT<'static>) -> Self {
        Op::Func(Box::new(move |x, train| layer.forward_t(x, train)))
    }
}

/// Named layers that run one after the other.
///
/// ```no_run
/// use kdlab::models::{Layers, Op};
/// use tch::nn;
///
/// fn stem(vs: &nn::Path) -> Layers {
///     Layers::new()
///         .add("conv", nn::conv2d(vs / "conv", 3, 8, 3, Default::default()))
///         .func("relu", |x| x.relu())
/// }
///
/// /// Images `[N, 3, H, W]` to logits `[N, 10]`.
/// fn tiny(vs: &nn::Path) -> Layers {
///     let same = nn::ConvConfig { padding: 1, bias: false, ..Default::default() };
///     let body = Layers::new()
///         .add("conv", Op::conv(vs / "block" / "conv", 8, 8, 3, same))
///         .add("bn", Op::norm(vs / "block" / "bn", 8, Default::default()));
///     Layers::new()
///         .add("stem", stem(&(vs / "stem"))) // stem.conv, stem.relu
///         .add("block", Op::Residual { body, shortcut: None }) // x + bn(conv(x))
///         .add("relu", Op::ReLU)
///         .add("mean", Op::GlobalAvgPool) // [N, 8]
///         .add("dropout", Op::Dropout(0.5))
///         .add("fc", nn::linear(vs / "fc", 8, 10, Default::default()))
/// }
/// ```
#[derive(Default)]
pub struct Layers(Vec<(String, Op)>);

impl Layers {
    /// Creates an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a layer: one of tch's `conv2d`, `batch_norm`, `linear` or `func_t`, an [`Op`], or other `Layers`. Errors
    /// and summaries call it `name`; give it the name of its variables. `conv` of layers that are added as `block`
    /// becomes `block.conv`.
    #[allow(clippy::should_implement_trait)]
    pub fn add(mut self, name: &str, op: impl Into<Op>) -> Self {
        match op.into() {
            Op::Nested(layers) => {
                self.0.extend(layers.0.into_iter().map(|(inner, op)| (format!("{name}.{inner}"), op)));
            }
            op => self.0.push((name.to_owned(), op)),
        }
        self
    }

    /// Appends a function without parameters, for which [`Op`] has no layer. For one that acts differently in training,
    /// add tch's `nn::func_t`. A network with a function can't be saved as ONNX.
    pub fn func(self, name: &str, f: impl Fn(&Tensor) -> Tensor + Send + 'static) -> Self {
        self.add(name, Op::Func(Box::new(move |x, _| f(x))))
    }

    /// The layers of this level with their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Op)> {
        self.0.iter().map(|(name, op)| (name.as_str(), op))
    }

    /// Runs the layers on `x`, and calls `seen` with every layer and its output, innermost first. `up` is the position
    /// of this list in the network.
    ///
    /// # Errors
    /// When a layer refuses its input. The message names the layer, the shape and the reason.
    pub(super) fn walk(&self, x: &Tensor, mode: Mode, up: Option<&Place>, seen: &mut Seen) -> Result<Tensor> {
        let (mut x, mut fresh) = (x.shallow_clone(), false);
        let mut ops = self.iter().peekable();
        while let Some((name, op)) = ops.next() {
            let place = Place { up, name };
            let pair = ops.peek().filter(|_| mode != Mode::TrainingFrozenToo).and_then(|(_, next)| Pair::of(op, next));
            x = match pair.filter(|pair| pair.applies(&x)) {
                Some(pair) => {
                    let y = pair.run(&x).map_err(|e| refused(&place, &x, e))?;
                    seen(&place, op, &y);
                    if let Some((name, norm)) = ops.next() {
                        seen(&Place { up, name }, norm, &y);
                    }
                    y
                }
                None => {
                    let y = op.apply(&x, mode, &place, fresh, seen)?;
                    seen(&place, op, &y);
                    y
                }
            };
            fresh = op.is_fresh();
        }
        Ok(x)
    }
}

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// The position of a layer in the network, displayed as `layer1.0.conv1`.
pub(super) struct Place<'a> {
    pub(super) up: Option<&'a Place<'a>>,
    pub(super) name: &'a str,
}

/// Called with a layer's position and output.
type Seen<'a> = dyn FnMut(&Place, &Op, &Tensor) + 'a;

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(up) = self.up {
            write!(f, "{up}.")?;
        }
        f.write_str(self.name)
    }
}

pub(super) fn refused(place: &dyn fmt::Display, x: &Tensor, reason: Error) -> Error {
    let reason = match reason {
        Error::Torch(text) => text,
        other => other.to_string(),
    };
    Error::Torch(format!("layer `{place}` refused its input of shape {:?}: {reason}", x.size()))
}

/// A convolution and the normalisation of its outputs. In evaluation, a normalisation is a factor and a summand for
/// each channel, so both can run as one convolution, which saves a pass over memory.
pub(super) struct Pair<'a> {
    conv: &'a nn::Conv2D,
    settings: &'a nn::ConvConfig,
    norm: &'a nn::BatchNorm,
    eps: f64,
    factor: &'a Tensor,
    shift: &'a Tensor,
}

impl<'a> Pair<'a> {
    pub(super) fn of(op: &'a Op, next: &'a Op) -> Option<Self> {
        let (Op::Conv(conv, Some(settings)), Op::BatchNorm(norm, Some(config))) = (op, next) else { return None };
        let fits = norm.nd == 2 && norm.running_mean.size() == conv.ws.size()[..1] && conv.bs.is_none();
        let zeros = matches!(settings.padding_mode, nn::PaddingMode::Zeros);
        let (factor, shift) = norm.ws.as_ref().zip(norm.bs.as_ref()).filter(|_| fits && zeros)?;
        Some(Self { conv, settings, norm, eps: config.eps, factor, shift })
    }

    /// Whether both may run as one on `x`: nothing learns, and the convolution accepts `x`.
    fn applies(&self, x: &Tensor) -> bool {
        let learns = [x, &self.conv.ws, self.factor, self.shift].iter().any(|t| t.requires_grad());
        !learns && takes(&x.size(), &self.conv.ws.size(), Some(self.settings)).is_ok()
    }

    /// Weight and bias of the one convolution.
    pub(super) fn folded(&self) -> Result<(Tensor, Tensor)> {
        let scale = self.norm.running_var.f_add_scalar(self.eps)?.f_rsqrt()?.f_mul(self.factor)?; // [O]
        let bias = self.shift.f_sub(&self.norm.running_mean.f_mul(&scale)?)?;
        Ok((self.conv.ws.f_mul(&scale.f_view([-1, 1, 1, 1])?)?, bias))
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.folded()?;
        convolve(x, &weight, Some(&bias), self.settings)
    }
}

/// `main + side`, written over `main` where the sum has its shape.
pub(super) fn add(main: &Tensor, side: &Tensor) -> Result<Tensor> {
    Ok(match main.size() == side.size() {
        true => main.shallow_clone().f_add_(side)?,
        false => main.f_add(side)?,
    })
}

pub(super) fn convolve(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    settings: &nn::ConvConfig,
) -> Result<Tensor> {
    let [stride, padding, dilation] = [settings.stride, settings.padding, settings.dilation].map(|n| [n, n]);
    Ok(x.f_conv2d(weight, bias, stride, padding, dilation, settings.groups)?)
}

fn same_padding(x: &Tensor, kernel: i64, stride: i64) -> Result<Tensor> {
    let &[_, _, height, width] = x.size().as_slice() else {
        return Err(Error::Input("padding takes images [N, C, H, W]".into()));
    };
    let [(top, bottom), (left, right)] = [height, width].map(|side| same_margins(side, kernel, stride));
    Ok(x.f_constant_pad_nd([left, right, top, bottom])?)
}

/// Pixels that [`Op::SamePadding`] adds before and behind a side of this length.
pub(super) fn same_margins(side: i64, kernel: i64, stride: i64) -> (i64, i64) {
    let both = ((side - 1) / stride.max(1) * stride + kernel - side).max(0);
    (both / 2, both - both / 2)
}

/// tch hides a layer's stride and padding and has no `f_forward`. So this checks what it can, and turns a panic about
/// the rest into an error.
fn conv(layer: &nn::Conv2D, settings: Option<&nn::ConvConfig>, x: &Tensor) -> Result<Tensor> {
    takes(&x.size(), &layer.ws.size(), settings)?;
    same_kind(x, &layer.ws)?;
    caught(|| layer.forward(x))
}

/// Refuses f64 beside f32, which tch answers with a panic. Autocast converts all other kinds.
fn same_kind(x: &Tensor, weight: &Tensor) -> Result<()> {
    match (x.kind(), weight.kind()) {
        (given, weights) if (given == Kind::Double) != (weights == Kind::Double) => Err(kinds_differ(given, weights)),
        _ => Ok(()),
    }
}

pub(super) fn kinds_differ(given: Kind, weights: Kind) -> Error {
    Error::Input(format!("its values are {given:?} and the weights {weights:?}; convert one with to_kind"))
}

/// Checks that a convolution of this weight can be applied to this input.
pub(super) fn takes(input: &[i64], weight: &[i64], settings: Option<&nn::ConvConfig>) -> Result<()> {
    let &[_, channels, height, width] = input else {
        return Err(Error::Input(
            "a convolution takes images [N, C, H, W]; x.unsqueeze(0) makes a batch of one".into(),
        ));
    };
    let groups = settings.map_or(channels / weight[1], |s| s.groups);
    if channels == 0 || channels != groups * weight[1] {
        let wanted = settings.map_or(weight[1], |s| s.groups * weight[1]);
        return Err(Error::Input(format!(
            "{channels} channels, but its weight {weight:?} takes {wanted}; build the layer for {channels} inputs, or \
             change the input"
        )));
    }
    if let Some(s) = settings
        && (0..2).any(|i| [height, width][i] + 2 * s.padding <= s.dilation * (weight[2 + i] - 1))
    {
        return Err(Error::Input(format!(
            "its weight {weight:?} is larger than the image and its padding; give larger images or more padding"
        )));
    }
    Ok(())
}

fn batch_norm(layer: &nn::BatchNorm, x: &Tensor, mode: Mode) -> Result<Tensor> {
    let (size, channels) = (x.size(), layer.running_mean.numel() as i64);
    let dims_fit = size.len() == layer.nd + 2 || (layer.nd == 1 && size.len() == 2);
    if !dims_fit || size[1] != channels {
        return Err(Error::Input(format!(
            "it normalises {channels} channels of {}-D input; build it for the channels that it gets",
            layer.nd + 2
        )));
    }
    same_kind(x, &layer.running_mean)?;
    // A frozen layer keeps its statistics: otherwise an image's output would depend on the other images of its batch.
    let frozen = layer.ws.as_ref().is_some_and(|weight| !weight.requires_grad());
    let train = match mode {
        Mode::Evaluation => false,
        Mode::Training => !frozen,
        Mode::TrainingFrozenToo => true,
    };
    // Refused as by `F.batch_norm`. libtorch would divide by 0 and leave NaN in the statistics.
    if train && size.iter().product::<i64>() == channels {
        return Err(Error::Input(format!(
            "BatchNorm expected more than 1 value per channel when training, got input size {size:?}; choose a batch \
             size that leaves no single image for the last batch"
        )));
    }
    caught(|| layer.forward_t(x, train))
}

/// Runs code that may panic inside tch, and turns the panic's message into an error.
fn caught(f: impl FnOnce() -> Tensor) -> Result<Tensor> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("it panicked");
        // tch unwraps a `TchError::Torch("reason\nC++ stack trace ...")`, printed with its escapes.
        let text = text.split_once("Torch(\"").map_or(text, |(_, reason)| reason);
        let end = text.find("\\n").or_else(|| text.find('\n')).unwrap_or(text.len());
        Error::from(TchError::Torch(text[..end].to_owned()))
    })
}
