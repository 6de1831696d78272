//! Adam with its state in plain tensors, so that it can be written to disk and resumed (tch's own cannot).

use crate::{Error, Result};
use tch::{Tensor, no_grad};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// How many numbers one operation updates. On a small parameter, a GPU spends less time on an operation than the CPU
/// spends on starting it. On many numbers, the intermediate results take memory.
const TOGETHER: usize = 1 << 20;

/// Parameters that lie one behind the other in memory, and their moments likewise.
struct Group {
    parameters: Vec<(String, Tensor)>,
    /// The memory of the parameters, [n].
    numbers: Tensor,
    mean: Tensor,   // [n]
    square: Tensor, // [n]
}

/// Adam (Kingma and Ba, 2015) as `torch.optim.Adam` computes it, in the same order of operations: betas 0.9 and 0.999,
/// epsilon 1e-8, no weight decay.
pub struct Adam {
    groups: Vec<Group>,
    steps: u64,
}

impl Adam {
    /// Over named parameters, with moments at zero. Moves the parameters together in memory; their numbers stay.
    pub fn new(mut parameters: Vec<(String, Tensor)>) -> Result<Self> {
        // Those of odd sizes last, so that the others begin where vectors of numbers may.
        parameters.sort_by_key(|(_, parameter)| parameter.numel() % 16 != 0);
        let mut groups: Vec<Vec<(String, Tensor)>> = vec![];
        let mut numbers = 0;
        for (name, parameter) in parameters {
            numbers += parameter.numel();
            let alike = |(_, other): &(String, Tensor)| other.kind() == parameter.kind();
            match groups.last_mut().filter(|group| numbers <= TOGETHER && group.iter().all(alike)) {
                Some(group) => group.push((name, parameter)),
                None => {
                    numbers = parameter.numel();
                    groups.push(vec![(name, parameter)]);
                }
            }
        }
        Ok(Self { groups: groups.into_iter().map(Group::new).collect::<Result<_>>()?, steps: 0 })
    }

    /// Whether no step was made yet.
    pub(super) fn is_new(&self) -> bool {
        self.steps == 0
    }

    /// The gradients of `loss`, a scalar, and one update by them. A parameter that the loss does not depend on stays.
    ///
    /// # Errors
    /// When it depends on none.
    pub fn backward_step(&mut self, loss: &Tensor, learning_rate: f64) -> Result<()> {
        let reaches_none = || {
            Error::Input(
                "the loss depends on no weight that learns: compute it from the network's output with operations of \
                 tensors, without numbers, detach or argmax in between, and outside of no_grad; and look whether student and \
                 teacher are swapped in it"
                    .into(),
            )
        };
        // libtorch would end the process.
        if !loss.requires_grad() {
            return Err(reaches_none());
        }
        let parameters: Vec<_> =
            self.groups.iter().flat_map(|group| &group.parameters).map(|(_, parameter)| parameter).collect();
        let gradients = Tensor::f_run_backward(&[loss], &parameters, false, false)?;
        if !gradients.iter().any(Tensor::defined) {
            return Err(reaches_none());
        }
        let mut gradients = gradients.into_iter();
        // A damaged checkpoint may hold any number.
        self.steps = self.steps.saturating_add(1);
        let correction1 = 1.0 - BETA1.powf(self.steps as f64);
        let correction2 = (1.0 - BETA2.powf(self.steps as f64)).sqrt();
        let update = |[numbers, mean, square]: [&mut Tensor; 3], gradient: &Tensor| -> Result<()> {
            let _ = mean.f_lerp_(gradient, 1.0 - BETA1)?;
            let _ = square.f_mul_scalar_(BETA2)?.f_addcmul_(&gradient.f_mul_scalar(1.0 - BETA2)?, gradient)?;
            let denominator = square.f_sqrt()?.f_div_scalar_(correction2)?.f_add_scalar_(EPSILON)?;
            let _ = numbers.f_addcdiv_(&mean.f_mul_scalar(-learning_rate / correction1)?, &denominator)?;
            Ok(())
        };
        no_grad(|| {
            for group in &mut self.groups {
                group.take_back()?;
                let gradients: Vec<_> = gradients.by_ref().take(group.parameters.len()).collect();
                if gradients.iter().all(Tensor::defined) {
                    let pairs = group.parameters.iter().zip(&gradients);
                    let flat = pairs.map(|((_, parameter), gradient)| in_memory(gradient, parameter));
                    let gradient = Tensor::f_cat(&flat.collect::<Result<Vec<_>>>()?, 0)?;
                    update([&mut group.numbers, &mut group.mean, &mut group.square], &gradient)?;
                    continue;
                }
                for (i, gradient) in gradients.iter().enumerate().filter(|(_, gradient)| gradient.defined()) {
                    let part = |all: &Tensor| group.part(all, i);
                    let (mut numbers, mut mean, mut square) =
                        (part(&group.numbers)?, part(&group.mean)?, part(&group.square)?);
                    let gradient = in_memory(gradient, &group.parameters[i].1)?;
                    update([&mut numbers, &mut mean, &mut square], &gradient)?;
                }
            }
            Ok(())
        })
    }

    /// Moments by parameter name, as `mean/NAME` and `square/NAME`, and the number of steps taken.
    pub(super) fn state(&self) -> Result<(Vec<(String, Tensor)>, u64)> {
        let mut state = vec![];
        for group in &self.groups {
            for (i, (name, _)) in group.parameters.iter().enumerate() {
                for (kind, moments) in [("mean", &group.mean), ("square", &group.square)] {
                    state.push((format!("{kind}/{name}"), group.view(moments, i)?));
                }
            }
        }
        Ok((state, self.steps))
    }

    /// Takes back what [`Adam::state`] gave.
    pub(super) fn restore(&mut self, find: &dyn Fn(&str) -> Option<Tensor>, steps: u64) -> Result<()> {
        for (name, mut moment) in self.state()?.0 {
            let saved = find(&name).filter(|t| t.size() == moment.size()).ok_or_else(|| {
                Error::Data(format!("checkpoint lacks the optimizer state {name}; delete it and fit again"))
            })?;
            no_grad(|| moment.f_copy_(&saved))?;
        }
        self.steps = steps;
        Ok(())
    }
}

impl Group {
    fn new(parameters: Vec<(String, Tensor)>) -> Result<Self> {
        let flat = |(_, parameter): &(String, Tensor)| -> Result<Tensor> {
            let mut parameter = parameter.shallow_clone();
            if !parameter.is_contiguous() && !innermost(&parameter)? {
                let dense = parameter.f_detach()?.f_contiguous()?;
                parameter.f_set_data(&dense)?;
            }
            in_memory(&parameter.f_detach()?, &parameter)
        };
        let numbers = Tensor::f_cat(&parameters.iter().map(flat).collect::<Result<Vec<_>>>()?, 0)?;
        let (mean, square) = (numbers.f_zeros_like()?, numbers.f_zeros_like()?);
        let group = Self { parameters, numbers, mean, square };
        for (i, (_, parameter)) in group.parameters.iter().enumerate() {
            parameter.shallow_clone().f_set_data(&group.view(&group.numbers, i)?)?;
        }
        Ok(group)
    }

    /// Moves the parameters back into this group's memory where another optimiser has moved them out of it: a step
    /// would otherwise change numbers that no network reads any more.
    fn take_back(&self) -> Result<()> {
        let mut place = self.numbers.data_ptr() as usize;
        for (i, (_, parameter)) in self.parameters.iter().enumerate() {
            if parameter.data_ptr() as usize != place {
                let mut own = self.view(&self.numbers, i)?;
                own.f_copy_(&parameter.f_detach()?)?;
                parameter.shallow_clone().f_set_data(&own)?;
            }
            place += parameter.numel() * parameter.f_kind()?.elt_size_in_bytes();
        }
        Ok(())
    }

    /// Where the parameter with number `i` begins.
    fn start(&self, i: usize) -> i64 {
        self.parameters[..i].iter().map(|(_, before)| before.numel() as i64).sum()
    }

    /// What of `all`, [n], belongs to that parameter, in the order of its memory; the memory is shared.
    fn part(&self, all: &Tensor, i: usize) -> Result<Tensor> {
        Ok(all.f_narrow(0, self.start(i), self.parameters[i].1.numel() as i64)?)
    }

    /// The same in its shape.
    fn view(&self, all: &Tensor, i: usize) -> Result<Tensor> {
        let parameter = &self.parameters[i].1;
        Ok(all.f_as_strided(parameter.size(), parameter.stride(), self.start(i))?)
    }
}

/// The numbers of `t`, [n], in the order in which those of `like` lie in memory.
fn in_memory(t: &Tensor, like: &Tensor) -> Result<Tensor> {
    let t = if innermost(like)? { t.f_permute([0, 2, 3, 1])? } else { t.shallow_clone() };
    Ok(t.f_reshape(-1)?)
}

/// Whether its channels lie innermost in memory, as those of convolutions do.
fn innermost(t: &Tensor) -> Result<bool> {
    Ok(t.dim() == 4 && t.f_permute([0, 2, 3, 1])?.is_contiguous())
}
