//! Adam with its state in plain tensors, so that it can be written to disk and resumed (tch's own cannot).

use crate::{Error, Result};
use tch::{Tensor, no_grad};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

struct Slot {
    name: String,
    parameter: Tensor,
    mean: Tensor,
    square: Tensor,
}

/// Adam (Kingma and Ba, 2015) as `torch.optim.Adam` computes it, in the same order of operations: betas 0.9 and 0.999, epsilon 1e-8, no weight decay.
pub struct Adam {
    slots: Vec<Slot>,
    steps: u64,
}

impl Adam {
    /// Over named parameters, with moments at zero.
    pub fn new(parameters: Vec<(String, Tensor)>) -> Result<Self> {
        let slot = |(name, parameter): (String, Tensor)| {
            let (mean, square) =
                no_grad(|| -> Result<_> { Ok((parameter.f_zeros_like()?, parameter.f_zeros_like()?)) })?;
            Ok(Slot { name, parameter, mean, square })
        };
        Ok(Self { slots: parameters.into_iter().map(slot).collect::<Result<_>>()?, steps: 0 })
    }

    pub fn zero_grad(&mut self) {
        for slot in &mut self.slots {
            slot.parameter.zero_grad();
        }
    }

    /// One update from the gradients that `backward` left; parameters without a gradient stay.
    pub fn step(&mut self, learning_rate: f64) -> Result<()> {
        self.steps += 1;
        let correction1 = 1.0 - BETA1.powf(self.steps as f64);
        let correction2 = (1.0 - BETA2.powf(self.steps as f64)).sqrt();
        no_grad(|| {
            for slot in &mut self.slots {
                let gradient = slot.parameter.grad();
                if !gradient.defined() {
                    continue;
                }
                let _ = slot.mean.f_lerp_(&gradient, 1.0 - BETA1)?;
                let _ = slot.square.f_mul_scalar_(BETA2)?.f_addcmul_(&(&gradient * (1.0 - BETA2)), &gradient)?;
                let denominator = slot.square.f_sqrt()?.f_div_scalar_(correction2)?.f_add_scalar_(EPSILON)?;
                let update = slot.mean.f_mul_scalar(-learning_rate / correction1)?;
                let _ = slot.parameter.f_addcdiv_(&update, &denominator)?;
            }
            Ok(())
        })
    }

    /// Moments by parameter name, as `mean/NAME` and `square/NAME`, and the number of steps taken.
    pub(super) fn state(&self) -> (Vec<(String, Tensor)>, u64) {
        let pair = |s: &Slot| {
            [
                (format!("mean/{}", s.name), s.mean.shallow_clone()),
                (format!("square/{}", s.name), s.square.shallow_clone()),
            ]
        };
        (self.slots.iter().flat_map(pair).collect(), self.steps)
    }

    /// Takes back what [`Adam::state`] gave.
    pub(super) fn restore(&mut self, find: &dyn Fn(&str) -> Option<Tensor>, steps: u64) -> Result<()> {
        for slot in &mut self.slots {
            for (kind, tensor) in [("mean", &mut slot.mean), ("square", &mut slot.square)] {
                let name = format!("{kind}/{}", slot.name);
                let saved = find(&name).filter(|t| t.size() == tensor.size()).ok_or_else(|| {
                    Error::Data(format!("checkpoint lacks the optimizer state {name}; delete it and fit again"))
                })?;
                no_grad(|| tensor.f_copy_(&saved))?;
            }
        }
        self.steps = steps;
        Ok(())
    }
}
