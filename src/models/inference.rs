//! A network in evaluation mode over many batches: what depends on its weights alone is computed once, and a convolution, its
//! normalisation, the sum of its block and the activation behind them run as one operation.

use super::layers::{Activation, Mode, Pair, Place, convolve, refused, takes};
use super::{Layers, Op, Precision, onednn};
use crate::{Error, Result};
use std::cell::OnceCell;
use tch::nn::{ConvConfig, PaddingMode};
use tch::{Device, Kind, Tensor};

/// The steps of a network, for as long as nobody changes its weights. Without gradients.
pub(super) struct Inference<'a>(Vec<Step<'a>>);

enum Step<'a> {
    Convolution(Convolution),
    /// `activation(last(body(x)) + shortcut(x))`
    Block {
        body: Inference<'a>,
        last: Convolution,
        shortcut: Option<Inference<'a>>,
    },
    Layer(String, &'a Op),
}

struct Convolution {
    name: String,
    settings: ConvConfig,
    shape: Vec<i64>, // [O, C / groups, K, K]
    weight: Tensor,
    /// The weight in oneDNN's order for inputs of the first one's shape.
    packed: OnceCell<(Vec<i64>, Tensor)>,
    /// Whether oneDNN computes it.
    fused: bool,
    bias: Option<Tensor>,
    activation: Option<Activation>,
}

impl<'a> Inference<'a> {
    pub(super) fn new(layers: &'a Layers, up: Option<&Place>, device: Device, precision: Precision) -> Result<Self> {
        let (mut steps, mut ops) = (vec![], layers.iter().peekable());
        while let Some((name, op)) = ops.next() {
            let place = Place { up, name };
            let mut step = match op {
                Op::Conv(conv, Some(settings)) if matches!(settings.padding_mode, PaddingMode::Zeros) => {
                    let pair = ops.peek().and_then(|(_, next)| Pair::of(op, next));
                    let (weight, bias) = match &pair {
                        Some(pair) => pair.folded().map(|(weight, bias)| (weight, Some(bias)))?,
                        None => (conv.ws.shallow_clone(), conv.bs.as_ref().map(Tensor::shallow_clone)),
                    };
                    if pair.is_some() {
                        ops.next();
                    }
                    Step::Convolution(Convolution::new(&place, *settings, weight, bias, device, precision)?)
                }
                Op::Residual { body, shortcut } => {
                    let inside = |layers| Self::new(layers, Some(&place), device, precision);
                    let mut body = inside(body)?;
                    match body.0.pop() {
                        Some(Step::Convolution(last)) if last.activation.is_none() => {
                            Step::Block { body, last, shortcut: shortcut.as_ref().map(inside).transpose()? }
                        }
                        _ => Step::Layer(place.to_string(), op),
                    }
                }
                _ => Step::Layer(place.to_string(), op),
            };
            if let Step::Convolution(last) | Step::Block { last, .. } = &mut step
                && let Some((_, Op::Activation(then))) = ops.next_if(|(_, next)| matches!(next, Op::Activation(_)))
            {
                last.activation = Some(*then);
            }
            steps.push(step);
        }
        Ok(Self(steps))
    }

    pub(super) fn run(&self, x: &Tensor) -> Result<Tensor> {
        // Fresh is what its one reader may write over.
        let (mut x, mut fresh) = (x.shallow_clone(), false);
        for step in &self.0 {
            (x, fresh) = match step {
                Step::Convolution(convolution) => (convolution.run(&x, None)?, true),
                Step::Block { body, last, shortcut } => {
                    let main = body.run(&x)?;
                    let side = match shortcut {
                        Some(shortcut) => (shortcut.run(&x)?, matches!(shortcut.0.last(), Some(Step::Convolution(_)))),
                        // A first step that is a convolution does not hand on what it was given.
                        None => (x, fresh && matches!(body.0.first(), Some(Step::Convolution(_)))),
                    };
                    (last.run(&main, Some(side))?, true)
                }
                Step::Layer(name, op) => {
                    let place = Place { up: None, name };
                    (op.apply(&x, Mode::Evaluation, &place, fresh, &mut |_, _, _| ())?, op.is_fresh())
                }
            };
        }
        Ok(x)
    }
}

impl Convolution {
    fn new(
        name: &Place,
        settings: ConvConfig,
        weight: Tensor,
        bias: Option<Tensor>,
        device: Device,
        precision: Precision,
    ) -> Result<Self> {
        let cast = |t: Tensor| match precision {
            Precision::F32 => Ok(t),
            Precision::Bf16 => t.f_to_kind(Kind::BFloat16),
        };
        let (shape, weight, bias) = (weight.size(), cast(weight)?, bias.map(cast).transpose()?);
        let (name, fused) = (name.to_string(), onednn::computes(weight.kind(), device));
        Ok(Self { name, settings, shape, weight, packed: OnceCell::new(), fused, bias, activation: None })
    }

    /// `activation(self(x) + sum)`; the sum is written over where it is free to be.
    fn run(&self, x: &Tensor, sum: Option<(Tensor, bool)>) -> Result<Tensor> {
        self.compute(x, sum).map_err(|e| refused(&self.name, x, e))
    }

    fn compute(&self, x: &Tensor, sum: Option<(Tensor, bool)>) -> Result<Tensor> {
        takes(&x.size(), &self.shape, Some(&self.settings))?;
        let (s, kind, bias) = (&self.settings, self.weight.kind(), self.bias.as_ref());
        let x = match kind {
            Kind::BFloat16 => x.f_to_kind(kind)?,
            _ if x.kind() == kind => x.shallow_clone(),
            _ => return Err(Error::Input(format!("its numbers are {:?}, the weights {kind:?}", x.kind()))),
        };
        if self.fused && self.packed.get().is_none() {
            let packed = onednn::packed(&self.weight, s, &x.size())?;
            let _ = self.packed.set((x.size(), packed));
        }
        let weight = self.packed.get().filter(|(size, _)| *size == x.size()).map_or(&self.weight, |(_, packed)| packed);
        let into =
            sum.as_ref().filter(|(side, free)| *free && side.kind() == kind && side.size() == self.output(&x.size()));
        if self.fused && (sum.is_none() || into.is_some()) {
            return onednn::convolve(&x, weight, bias, s, into.map(|(side, _)| side), self.activation);
        }
        let mut y = match self.fused {
            true => onednn::convolve(&x, weight, bias, s, None, None)?,
            false => convolve(&x, weight, bias, s)?,
        };
        if let Some((side, _)) = sum {
            y = y.f_add_(&side)?;
        }
        match self.activation {
            Some(activation) => activation.apply(&y, true),
            None => Ok(y),
        }
    }

    fn output(&self, input: &[i64]) -> Vec<i64> {
        let s = &self.settings;
        let side = |n: usize| (input[n] + 2 * s.padding - s.dilation * (self.shape[n] - 1) - 1) / s.stride + 1;
        vec![input[0], self.shape[0], side(2), side(3)]
    }
}
