//! Adam, AdamW and SGD with libtorch's fused kernels. Their state lies in named tensors, so that a checkpoint can hold
//! it.

use crate::native::FusedStep;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad};

const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// How a fit turns gradients into updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum UpdateRule {
    /// `torch.optim.Adam` (Kingma and Ba, 2015): betas 0.9 and 0.999, epsilon 1e-8, no weight decay.
    #[default]
    Adam,
    /// `torch.optim.AdamW` (Loshchilov and Hutter, 2019): Adam with decoupled weight decay. The decay acts on the
    /// weights, not through the gradient.
    AdamW {
        /// At least 0; PyTorch's default is 0.01.
        weight_decay: f64,
    },
    /// `torch.optim.SGD`, without dampening.
    Sgd {
        /// In [0, 1).
        momentum: f64,
        /// At least 0.
        weight_decay: f64,
    },
}

impl UpdateRule {
    /// The names of the moments that it keeps for each parameter, as a checkpoint calls them.
    fn moments(self) -> &'static [&'static str] {
        match self {
            UpdateRule::Adam | UpdateRule::AdamW { .. } => &["mean", "square"],
            UpdateRule::Sgd { .. } => &["momentum"],
        }
    }

    fn weight_decay(self) -> f64 {
        match self {
            UpdateRule::Adam => 0.0,
            UpdateRule::AdamW { weight_decay } | UpdateRule::Sgd { weight_decay, .. } => weight_decay,
        }
    }

    fn check(self) -> Result<()> {
        let decay = self.weight_decay();
        if !(decay >= 0.0 && decay.is_finite()) {
            return Err(Error::Input(format!("weight decay must be >= 0, got {decay}; try 0.01")));
        }
        match self {
            UpdateRule::Sgd { momentum, .. } if !(0.0..1.0).contains(&momentum) => {
                Err(Error::Input(format!("momentum must be in [0, 1), got {momentum}; try 0.9")))
            }
            _ => Ok(()),
        }
    }
}

struct Parameter {
    name: String,
    tensor: Tensor,
    /// In the order of [`UpdateRule::moments`], each in the parameter's shape and memory layout.
    moments: Vec<Tensor>,
}

/// Updates named parameters by the gradients of a loss.
pub(crate) struct Optimizer {
    rule: UpdateRule,
    parameters: Vec<Parameter>,
    steps: u64,
}

impl Optimizer {
    /// Creates an optimizer for named parameters, with all moments at zero.
    ///
    /// # Errors
    /// When a constant of `rule` is out of its range.
    pub(crate) fn new(rule: UpdateRule, parameters: Vec<(String, Tensor)>) -> Result<Self> {
        rule.check()?;
        let parameter = |(name, tensor): (String, Tensor)| -> Result<Parameter> {
            let detached = tensor.f_detach()?;
            let moments = rule.moments().iter().map(|_| Ok(detached.f_zeros_like()?)).collect::<Result<_>>()?;
            Ok(Parameter { name, tensor, moments })
        };
        let mut parameters = parameters.into_iter().map(parameter).collect::<Result<Vec<_>>>()?;
        // The kernels for GPUs take tensors of one type at a time.
        parameters.sort_by_key(|parameter| parameter.tensor.kind() as i32);
        Ok(Self { rule, parameters, steps: 0 })
    }

    /// Whether no step was made yet.
    pub(super) fn is_new(&self) -> bool {
        self.steps == 0
    }

    /// Computes the gradients of `loss`, a scalar, and makes one update. A parameter that the loss does not depend on
    /// stays as it is, and so do its moments. Unlike PyTorch, Adam's bias correction uses one step count for all
    /// parameters.
    ///
    /// # Errors
    /// When the loss depends on no parameter.
    pub(crate) fn backward_step(&mut self, loss: &Tensor, learning_rate: f64) -> Result<()> {
        let reaches_none = || {
            Error::Input(
                "the loss depends on no weight that learns: compute it from the network's output with operations of \
                 tensors, without numbers, detach or argmax in between, and outside of no_grad; and look whether \
                 student and teacher are swapped in it"
                    .into(),
            )
        };
        // libtorch would end the process.
        if !loss.requires_grad() {
            return Err(reaches_none());
        }
        let tensors: Vec<&Tensor> = self.parameters.iter().map(|parameter| &parameter.tensor).collect();
        let gradients = Tensor::f_run_backward(&[loss], &tensors, false, false)?;
        if !gradients.iter().any(Tensor::defined) {
            return Err(reaches_none());
        }
        // Saturating, because a step count from a damaged checkpoint may be `u64::MAX`.
        self.steps = self.steps.saturating_add(1);
        let pairs = self.parameters.iter_mut().zip(gradients).filter(|(_, gradient)| gradient.defined());
        let pairs = pairs.map(|(parameter, gradient)| {
            parameter.lay_out()?;
            Ok((&*parameter, laid_out_like(&parameter.tensor, gradient)?))
        });
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        for group in pairs.chunk_by(|(a, _), (b, _)| a.tensor.kind() == b.tensor.kind()) {
            let moment = |i: usize| group.iter().map(|(parameter, _)| &parameter.moments[i]).collect();
            let step = FusedStep {
                parameters: group.iter().map(|(parameter, _)| &parameter.tensor).collect(),
                gradients: group.iter().map(|(_, gradient)| gradient).collect(),
                moments: (0..self.rule.moments().len()).map(moment).collect(),
                learning_rate,
                weight_decay: self.rule.weight_decay(),
            };
            match self.rule {
                UpdateRule::Adam => step.adam(self.steps, BETAS, EPSILON, false)?,
                UpdateRule::AdamW { .. } => step.adam(self.steps, BETAS, EPSILON, true)?,
                UpdateRule::Sgd { momentum, .. } => step.sgd(momentum)?,
            }
        }
        Ok(())
    }

    /// Moments by parameter name, as `mean/NAME` and `square/NAME` (SGD: `momentum/NAME`), and the number of steps
    /// taken.
    pub(super) fn state(&self) -> (Vec<(String, Tensor)>, u64) {
        let of = |p: &Parameter| {
            let named = self.rule.moments().iter().zip(&p.moments);
            named.map(|(moment, t)| (format!("{moment}/{}", p.name), t.shallow_clone())).collect::<Vec<_>>()
        };
        (self.parameters.iter().flat_map(of).collect(), self.steps)
    }

    /// Takes back what [`Optimizer::state`] gave.
    pub(super) fn restore(&mut self, find: &dyn Fn(&str) -> Option<Tensor>, steps: u64) -> Result<()> {
        for (name, mut moment) in self.state().0 {
            let saved = find(&name).filter(|t| t.size() == moment.size()).ok_or_else(|| {
                Error::Data(format!("checkpoint lacks the optimizer state {name}; delete it and fit again"))
            })?;
            no_grad(|| moment.f_copy_(&saved))?;
        }
        self.steps = steps;
        Ok(())
    }
}

impl Parameter {
    /// Makes the parameter dense in memory and gives its moments the same layout, whatever was done to it since.
    fn lay_out(&mut self) -> Result<()> {
        let tensor = &mut self.tensor;
        let channels_last = tensor.dim() == 4 && tensor.f_detach()?.f_permute([0, 2, 3, 1])?.is_contiguous();
        if !channels_last && !tensor.is_contiguous() {
            let dense = tensor.f_detach()?.f_contiguous()?;
            tensor.f_set_data(&dense)?;
        }
        for moment in &mut self.moments {
            *moment = laid_out_like(tensor, moment.shallow_clone())?;
        }
        Ok(())
    }
}

/// `t` with its values in the same order in memory as those of `like`.
fn laid_out_like(like: &Tensor, t: Tensor) -> Result<Tensor> {
    if t.stride() == like.stride() {
        return Ok(t);
    }
    let mut copy = like.f_detach()?.f_empty_like()?;
    no_grad(|| copy.f_copy_(&t))?;
    Ok(copy)
}
