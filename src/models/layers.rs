//! A network as a list of named layers. The same list runs the network and is walked for its summary.

use super::Precision;
use crate::{Error, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::nn::{self, Module, ModuleT};
use tch::{Kind, TchError, Tensor};

/// What BatchNorm does in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The stored statistics, everywhere.
    Evaluation,
    /// Batch statistics, which move the stored ones; the stored ones in frozen layers.
    Training,
    /// PyTorch's `model.train()`: batch statistics in frozen layers too. For [`crate::distill::teaching`] alone.
    TrainingFrozenToo,
}

impl Mode {
    pub(crate) fn of(train: bool) -> Self {
        if train { Mode::Training } else { Mode::Evaluation }
    }
}

/// A step without parameters of its own: input and "are we training?" to output.
type Func = Box<dyn Fn(&Tensor, bool) -> Tensor + Send>;

/// One layer of a network. tch keeps the settings of its layers to itself: those made by [`Op::conv`] and [`Op::norm`] are
/// known, and a convolution and the normalisation behind it then run as one where neither learns.
pub enum Op {
    Conv(nn::Conv2D, Option<nn::ConvConfig>),
    BatchNorm(nn::BatchNorm, Option<nn::BatchNormConfig>),
    Linear(nn::Linear),
    Func(Func),
    /// `body(x) + shortcut(x)`, or `body(x) + x` without a shortcut of its own.
    Residual {
        body: Layers,
        shortcut: Option<Layers>,
    },
}

impl Op {
    /// [`nn::conv2d`].
    pub fn conv(vs: nn::Path, inputs: i64, outputs: i64, kernel: i64, config: nn::ConvConfig) -> Self {
        Op::Conv(nn::conv2d(vs, inputs, outputs, kernel, config), Some(config))
    }

    /// [`nn::batch_norm2d`].
    pub fn norm(vs: nn::Path, channels: i64, config: nn::BatchNormConfig) -> Self {
        Op::BatchNorm(nn::batch_norm2d(vs, channels, config), Some(config))
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

/// Named layers, run one after the other.
///
/// ```no_run
/// # use kdlab::models::Layers;
/// # use tch::nn;
/// fn tiny(vs: &nn::Path) -> Layers {
///     Layers::new()
///         .add("conv1", nn::conv2d(vs / "conv1", 3, 8, 3, Default::default()))
///         .func("relu1", |x| x.relu())
///         .func("flatten", |x| x.mean_dim([2, 3].as_slice(), false, None))
///         .add("fc", nn::linear(vs / "fc", 8, 10, Default::default()))
/// }
/// ```
#[derive(Default)]
pub struct Layers(Vec<(String, Op)>);

impl Layers {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a layer. `name` is what errors and summaries call it; give it the name of its variables.
    #[allow(clippy::should_implement_trait)]
    pub fn add(mut self, name: &str, op: impl Into<Op>) -> Self {
        self.0.push((name.to_owned(), op.into()));
        self
    }

    /// Appends a function: an activation, a pooling, a change of shape.
    pub fn func(self, name: &str, f: impl Fn(&Tensor) -> Tensor + Send + 'static) -> Self {
        self.add(name, Op::Func(Box::new(move |x, _| f(x))))
    }

    /// Appends a function that acts differently in training, such as dropout: `|x, train| x.dropout(0.5, train)`.
    pub fn func_t(self, name: &str, f: impl Fn(&Tensor, bool) -> Tensor + Send + 'static) -> Self {
        self.add(name, Op::Func(Box::new(f)))
    }

    /// Appends `body(x) + shortcut(x)`; without a shortcut the input itself is added.
    pub fn residual(self, name: &str, body: Layers, shortcut: Option<Layers>) -> Self {
        self.add(name, Op::Residual { body, shortcut })
    }

    /// Appends layers under a common name: `block` with `conv` inside becomes `block.conv`.
    pub fn nest(mut self, name: &str, layers: Layers) -> Self {
        self.0.extend(layers.0.into_iter().map(|(inner, op)| (format!("{name}.{inner}"), op)));
        self
    }

    /// The layers of this level with their names, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Op)> {
        self.0.iter().map(|(name, op)| (name.as_str(), op))
    }

    /// Runs the layers on `x`. `train` makes BatchNorm use (and update) batch statistics, unless it is frozen; gradients
    /// are the caller's choice.
    ///
    /// # Errors
    /// Names the layer that refused, the shape it was given, and the reason.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.walk(x, Mode::of(train), None, None, &mut |_, _, _| ())
    }

    /// [`Layers::forward`] that shows every layer with its output to `seen`, innermost first.
    pub(crate) fn walk(
        &self,
        x: &Tensor,
        mode: Mode,
        up: Option<&Place>,
        kept: Option<&Folds>,
        seen: &mut dyn FnMut(&Place, &Op, &Tensor),
    ) -> Result<Tensor> {
        let mut x = x.shallow_clone();
        let mut ops = self.iter().peekable();
        while let Some((name, op)) = ops.next() {
            let place = Place { up, name };
            let norm = ops.peek().filter(|_| mode != Mode::TrainingFrozenToo);
            if let Some((norm_name, norm)) = norm
                && let Some(y) = folded(op, norm, &x, kept).map_err(|e| refused(&place, &x, e))?
            {
                seen(&place, op, &y);
                seen(&Place { up, name: norm_name }, norm, &y);
                (x, _) = (y, ops.next());
                continue;
            }
            let y = match op {
                Op::Residual { body, shortcut } => {
                    let main = body.walk(&x, mode, Some(&place), kept, seen)?;
                    let side = match shortcut {
                        Some(layers) => layers.walk(&x, mode, Some(&place), kept, seen)?,
                        None => x.shallow_clone(),
                    };
                    // In place where nobody else reads the sum's first term: a pass over memory less.
                    let fresh = matches!(body.0.last(), Some((_, Op::Conv(..) | Op::BatchNorm(..) | Op::Linear(_))));
                    let sum = match fresh && !main.requires_grad() {
                        true => main.shallow_clone().f_add_(&side),
                        false => main.f_add(&side),
                    };
                    sum.map_err(|e| refused(&place, &main, Error::from(e)))?
                }
                Op::Conv(layer, _) => conv(layer, &x).map_err(|e| refused(&place, &x, e))?,
                Op::BatchNorm(layer, _) => batch_norm(layer, &x, mode).map_err(|e| refused(&place, &x, e))?,
                Op::Linear(layer) => {
                    x.f_linear(&layer.ws, layer.bs.as_ref()).map_err(|e| refused(&place, &x, Error::from(e)))?
                }
                Op::Func(f) => caught(|| f(&x, mode != Mode::Evaluation)).map_err(|e| refused(&place, &x, e))?,
            };
            seen(&place, op, &y);
            x = y;
        }
        Ok(x)
    }
}

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Where a layer stands in the tree; displays as `layer1.0.conv1`.
pub(crate) struct Place<'a> {
    up: Option<&'a Place<'a>>,
    name: &'a str,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(up) = self.up {
            write!(f, "{up}.")?;
        }
        f.write_str(self.name)
    }
}

fn refused(place: &Place, x: &Tensor, reason: Error) -> Error {
    let reason = match reason {
        Error::Torch(text) => text,
        other => other.to_string(),
    };
    Error::Torch(format!("layer `{place}` refused its input of shape {:?}: {reason}", x.size()))
}

/// What [`folded`] made, for a pass of many batches: a ResNet-50's weights need not be multiplied, and cast, in each of them.
pub(crate) struct Folds {
    precision: Precision,
    pairs: RefCell<HashMap<*const Op, (Tensor, Tensor)>>,
}

impl Folds {
    /// For passes in this precision, in which nobody changes the weights.
    pub(crate) fn new(precision: Precision) -> Self {
        Self { precision, pairs: RefCell::default() }
    }

    fn get(&self, op: &Op, fold: impl FnOnce() -> Result<(Tensor, Tensor)>) -> Result<(Tensor, Tensor)> {
        let mut pairs = self.pairs.borrow_mut();
        if !pairs.contains_key(&std::ptr::from_ref(op)) {
            let (mut weight, mut bias) = fold()?;
            if self.precision == Precision::Bf16 {
                (weight, bias) = (weight.f_to_kind(Kind::BFloat16)?, bias.f_to_kind(Kind::BFloat16)?);
            }
            pairs.insert(op, (weight, bias));
        }
        let (weight, bias) = &pairs[&std::ptr::from_ref(op)];
        Ok((weight.shallow_clone(), bias.shallow_clone()))
    }
}

/// A convolution and the normalisation of its outputs as one convolution, a pass over memory less: frozen, a normalisation is
/// a factor and a summand for each channel. None where they are no such pair, or something learns.
fn folded(op: &Op, norm: &Op, x: &Tensor, kept: Option<&Folds>) -> Result<Option<Tensor>> {
    let (Op::Conv(conv, Some(c)), Op::BatchNorm(norm, Some(n))) = (op, norm) else { return Ok(None) };
    let (Some(factor), Some(shift)) = (&norm.ws, &norm.bs) else { return Ok(None) };
    let learns = [x, &conv.ws, factor, shift].iter().any(|t| t.requires_grad());
    let fits = x.dim() == 4 && x.size()[1] == conv.ws.size()[1] * c.groups && norm.nd == 2;
    if learns || !fits || conv.bs.is_some() || !matches!(c.padding_mode, nn::PaddingMode::Zeros) {
        return Ok(None);
    }
    let fold = || -> Result<(Tensor, Tensor)> {
        let scale = norm.running_var.f_add_scalar(n.eps)?.f_rsqrt()?.f_mul(factor)?; // [O]
        let bias = shift.f_sub(&norm.running_mean.f_mul(&scale)?)?;
        Ok((conv.ws.f_mul(&scale.f_view([-1, 1, 1, 1])?)?, bias))
    };
    let (weight, bias) = match kept {
        Some(kept) => kept.get(op, fold)?,
        None => fold()?,
    };
    let pair = |n: i64| [n, n];
    let (stride, padding, dilation) = (pair(c.stride), pair(c.padding), pair(c.dilation));
    Ok(Some(x.f_conv2d(&weight, Some(&bias), stride, padding, dilation, c.groups)?))
}

/// tch keeps a layer's stride and padding to itself and offers no `f_forward`: say what can be checked beforehand, and
/// turn a panic about the rest into an error.
fn conv(layer: &nn::Conv2D, x: &Tensor) -> Result<Tensor> {
    let (size, weight) = (x.size(), layer.ws.size());
    match size[..] {
        [_, channels, _, _] if channels > 0 && channels % weight[1] == 0 => caught(|| layer.forward(x)),
        [_, channels, _, _] => {
            Err(Error::Input(format!("its weight {weight:?} cannot be applied to {channels} channels")))
        }
        _ => Err(Error::Input("a convolution takes images [N, C, H, W]".to_owned())),
    }
}

fn batch_norm(layer: &nn::BatchNorm, x: &Tensor, mode: Mode) -> Result<Tensor> {
    let (size, channels) = (x.size(), layer.running_mean.numel() as i64);
    let dims_fit = size.len() == layer.nd + 2 || (layer.nd == 1 && size.len() == 2);
    if !dims_fit || size[1] != channels {
        return Err(Error::Input(format!("it normalises {channels} channels of {}-D input", layer.nd + 2)));
    }
    // A layer that does not learn must not drift either: what it gives would depend on the images beside this one.
    let frozen = layer.ws.as_ref().is_some_and(|weight| !weight.requires_grad());
    let train = match mode {
        Mode::Evaluation => false,
        Mode::Training => !frozen,
        Mode::TrainingFrozenToo => true,
    };
    caught(|| layer.forward_t(x, train))
}

/// Runs code that may panic inside tch; the panic's message becomes the error.
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
