//! Adam, AdamW and SGD with libtorch's fused kernels. Their state lies in named tensors, so that a checkpoint can hold
//! it.

use super::group::Group;
use super::recipe::{Recipe, UpdateRule};
use crate::native::FusedStep;
use crate::{Error, Result};
use tch::{Tensor, no_grad};

const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// The names of the moments that a rule keeps for each parameter, as a checkpoint calls them.
fn moments(rule: UpdateRule) -> &'static [&'static str] {
    match rule {
        UpdateRule::Adam | UpdateRule::AdamW { .. } => &["mean", "square"],
        UpdateRule::Sgd { .. } => &["momentum"],
    }
}

struct Parameter {
    name: String,
    tensor: Tensor,
    weight_decay: f64,
    /// In the order of [`moments`], each in the parameter's shape and memory layout.
    moments: Vec<Tensor>,
}

/// Updates named parameters by the gradients of a loss.
pub(crate) struct Optimizer {
    rule: UpdateRule,
    clip_norm: Option<f64>,
    parameters: Vec<Parameter>,
    steps: u64,
}

impl Optimizer {
    /// Creates an optimizer for named parameters, with all moments at zero.
    ///
    /// # Errors
    /// When a constant of the rule is out of its range.
    pub(crate) fn new(recipe: &Recipe, parameters: Vec<(String, Tensor)>) -> Result<Self> {
        let rule = recipe.optimizer;
        rule.check()?;
        let parameter = |(name, tensor): (String, Tensor)| -> Result<Parameter> {
            let detached = tensor.f_detach()?;
            let moments = moments(rule).iter().map(|_| Ok(detached.f_zeros_like()?)).collect::<Result<_>>()?;
            let spared = recipe.decay_weights_only && (tensor.dim() < 2 || name.ends_with("bias"));
            let weight_decay = if spared { 0.0 } else { rule.weight_decay() };
            Ok(Parameter { name, tensor, weight_decay, moments })
        };
        let mut parameters = parameters.into_iter().map(parameter).collect::<Result<Vec<_>>>()?;
        parameters.sort_by_key(Parameter::group);
        Ok(Self { rule, clip_norm: recipe.clip_norm, parameters, steps: 0 })
    }

    /// Whether no step was made yet.
    pub(super) fn is_new(&self) -> bool {
        self.steps == 0
    }

    /// Computes the gradients of `loss`, a scalar, and makes one update. In a `group`, the loss is the sum of all
    /// processes' losses. A parameter that the loss does not depend on stays as it is, and so do its moments. Unlike
    /// PyTorch, Adam's bias correction uses one step count for all parameters.
    ///
    /// # Errors
    /// When the loss depends on no parameter.
    pub(crate) fn backward_step(&mut self, loss: &Tensor, learning_rate: f64, group: Option<&Group>) -> Result<()> {
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
        let mut gradients = Tensor::f_run_backward(&[loss], &tensors, false, false)?;
        if !gradients.iter().any(Tensor::defined) {
            return Err(reaches_none());
        }
        if let Some(group) = group {
            group.sum_gradients(&mut gradients)?;
        }
        if let Some(norm) = self.clip_norm {
            clip(&mut gradients, norm)?;
        }
        // Saturating, because a step count from a damaged checkpoint may be `u64::MAX`.
        self.steps = self.steps.saturating_add(1);
        let pairs = self.parameters.iter_mut().zip(gradients).filter(|(_, gradient)| gradient.defined());
        let pairs = pairs.map(|(parameter, gradient)| {
            parameter.lay_out()?;
            Ok((&*parameter, laid_out_like(&parameter.tensor, gradient)?))
        });
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        for group in pairs.chunk_by(|(a, _), (b, _)| a.group() == b.group()) {
            let moment = |i: usize| group.iter().map(|(parameter, _)| &parameter.moments[i]).collect();
            let step = FusedStep {
                parameters: group.iter().map(|(parameter, _)| &parameter.tensor).collect(),
                gradients: group.iter().map(|(_, gradient)| gradient).collect(),
                moments: (0..moments(self.rule).len()).map(moment).collect(),
                learning_rate,
                weight_decay: group.first().map_or(0.0, |(parameter, _)| parameter.weight_decay),
            };
            match self.rule {
                UpdateRule::Adam => step.adam(self.steps, BETAS, EPSILON, false)?,
                UpdateRule::AdamW { .. } => step.adam(self.steps, BETAS, EPSILON, true)?,
                UpdateRule::Sgd { momentum, nesterov, .. } => step.sgd(momentum, nesterov)?,
            }
        }
        Ok(())
    }

    /// Moments by parameter name, as `mean/NAME` and `square/NAME` (SGD: `momentum/NAME`), and the number of steps
    /// taken.
    pub(super) fn state(&self) -> (Vec<(String, Tensor)>, u64) {
        let of = |p: &Parameter| {
            let named = moments(self.rule).iter().zip(&p.moments);
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
    /// Parameters of one group are updated together: the kernels take tensors of one type, and one weight decay.
    fn group(&self) -> (i32, bool) {
        (self.tensor.kind() as i32, self.weight_decay == 0.0)
    }

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

/// Scales gradients so that the norm of all together is at most `largest`: `torch.nn.utils.clip_grad_norm_`. The
/// tensors are replaced, because autograd may give one tensor for two parameters.
fn clip(gradients: &mut [Tensor], largest: f64) -> Result<()> {
    no_grad(|| {
        let norms = gradients.iter().filter(|t| t.defined()).map(|t| Ok(t.f_norm()?)).collect::<Result<Vec<_>>>()?;
        let all = Tensor::f_stack(&norms, 0)?.f_norm()?;
        // Computed on the device, so that no step waits for it.
        let factor = all.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(largest)?.f_clamp_max(1.0)?;
        for gradient in gradients.iter_mut().filter(|t| t.defined()) {
            *gradient = gradient.f_mul(&factor)?;
        }
        Ok(())
    })
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
