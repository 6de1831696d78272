//! Distillation by features: a layer of the student is held to a layer of the teacher, beside the loss of the logits.

use super::Examples;
use crate::models::{Mode, Model};
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;
use tch::{Kind, Reduction, Tensor, no_grad};

/// How features of the student are compared with the teacher's. `"attention".parse()?` has the authors' weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeatureMethod {
    /// A hint: Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015), equation 3, averaged over all values:
    /// `weight * mean((r(student) - teacher)^2)`.
    ///
    /// Where the student has other channels than the teacher, `r` is a learned projection (a 1x1 convolution), which is
    /// no part of the student. The student learns from the hint and the rest of the loss at the same time, while the
    /// paper trains it in two stages.
    Hint {
        /// At least 0.
        weight: f64,
    },
    /// Attention transfer: Zagoruyko and Komodakis, "Paying More Attention to Attention" (ICLR 2017). An attention map
    /// is the mean of the squares over the channels, flattened and divided by its norm:
    /// `weight * mean((map(student) - map(teacher))^2)`, as in the authors' program. Needs features `[N, C, H, W]`.
    Attention {
        /// At least 0; the authors take 1000.
        weight: f64,
    },
    /// Relations between the images of a batch: Park et al., "Relational Knowledge Distillation" (CVPR 2019): Huber
    /// losses of the distances between pairs, divided by their mean, and of the angles in triples.
    Relational {
        /// Weight of the distances, at least 0.
        distance: f64,
        /// Weight of the angles, at least 0.
        angle: f64,
    },
}

impl FeatureMethod {
    /// Its name without its weights.
    pub(super) fn name(self) -> &'static str {
        match self {
            FeatureMethod::Hint { .. } => "hint",
            FeatureMethod::Attention { .. } => "attention",
            FeatureMethod::Relational { .. } => "relational",
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        let weights = match self {
            FeatureMethod::Hint { weight } | FeatureMethod::Attention { weight } => [weight, 0.0],
            FeatureMethod::Relational { distance, angle } => [distance, angle],
        };
        match weights.into_iter().find(|weight| !(*weight >= 0.0 && weight.is_finite())) {
            Some(weight) => {
                let name = self.name();
                Err(Error::Input(format!("{name}: a weight must be >= 0, got {weight}; try the weight of its name")))
            }
            None => Ok(()),
        }
    }

    /// The loss, a scalar. Features are `[B, D]` or `[B, C, H, W]`; no gradient reaches the teacher's.
    pub(crate) fn loss(self, student: &Tensor, teacher: &Tensor, projection: Option<&Projection>) -> Result<Tensor> {
        match self {
            FeatureMethod::Hint { weight } => {
                let (student, teacher) = same_size(student, teacher)?;
                let student = projection.map_or_else(|| Ok(student.shallow_clone()), |r| r.apply(&student))?;
                Ok(student.f_mse_loss(&teacher, Reduction::Mean)?.f_mul_scalar(weight)?)
            }
            FeatureMethod::Attention { weight } => {
                let (student, teacher) = same_size(student, teacher)?;
                let gap = attention(&student)?.f_sub(&attention(&teacher)?)?;
                Ok(gap.f_square()?.f_mean(gap.kind())?.f_mul_scalar(weight)?)
            }
            FeatureMethod::Relational { distance, angle } => {
                let (student, teacher) = (student.f_flatten(1, -1)?, teacher.f_flatten(1, -1)?);
                let huber = |of: fn(&Tensor) -> Result<Tensor>, weight: f64| -> Result<Tensor> {
                    let loss = of(&student)?.f_smooth_l1_loss(&of(&teacher)?, Reduction::Mean, 1.0)?;
                    Ok(loss.f_mul_scalar(weight)?)
                };
                Ok(huber(distances, distance)?.f_add(&huber(angles, angle)?)?)
            }
        }
    }
}

impl FromStr for FeatureMethod {
    type Err = Error;

    /// Reads `attention` and `relational`, with their authors' weights, or `hint`, with weight 100, which comparisons
    /// use; `hint(50)`, `attention(500)` and `relational(25,100)` have other weights.
    fn from_str(name: &str) -> Result<Self> {
        let (plain, weights) = match name.strip_suffix(')').and_then(|name| name.split_once('(')) {
            Some((plain, weights)) => {
                (plain, weights.split(',').map(|w| w.trim().parse().ok()).collect::<Option<Vec<f64>>>())
            }
            None => (name, Some(vec![])),
        };
        let found = match (plain, weights.as_deref()) {
            ("hint", Some([])) => Some(FeatureMethod::Hint { weight: 100.0 }),
            ("attention", Some([])) => Some(FeatureMethod::Attention { weight: 1000.0 }),
            ("relational", Some([])) => Some(FeatureMethod::Relational { distance: 25.0, angle: 50.0 }),
            ("hint", Some(&[weight])) => Some(FeatureMethod::Hint { weight }),
            ("attention", Some(&[weight])) => Some(FeatureMethod::Attention { weight }),
            ("relational", Some(&[distance, angle])) => Some(FeatureMethod::Relational { distance, angle }),
            _ => None,
        };
        found.filter(|method| method.check().is_ok()).ok_or_else(|| {
            Error::Input(format!("no method of features named {name:?}; there are hint, attention and relational"))
        })
    }
}

impl fmt::Display for FeatureMethod {
    /// Writes the name, with its weights if they are not those of the name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        if name.parse().is_ok_and(|usual: Self| usual == *self) {
            return f.write_str(name);
        }
        match self {
            FeatureMethod::Hint { weight } | FeatureMethod::Attention { weight } => write!(f, "{name}({weight})"),
            FeatureMethod::Relational { distance, angle } => write!(f, "{name}({distance},{angle})"),
        }
    }
}

/// Both features at the height and width of the smaller: `F.adaptive_avg_pool2d`.
fn same_size(student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    let side = |t: &Tensor| t.size().get(2..4).map(|side| [side[0], side[1]]);
    let Some((s, t)) = side(student).zip(side(teacher)) else {
        return Ok((student.shallow_clone(), teacher.shallow_clone()));
    };
    let least = [s[0].min(t[0]), s[1].min(t[1])];
    let pool = |x: &Tensor, side| -> Result<Tensor> {
        Ok(if side == least { x.shallow_clone() } else { x.f_adaptive_avg_pool2d(least)? })
    };
    Ok((pool(student, s)?, pool(teacher, t)?))
}

/// `F.normalize` over a dimension.
fn normalised(x: &Tensor, dim: i64) -> Result<Tensor> {
    Ok(x.f_div(&x.f_norm_scalaropt_dim(2, [dim].as_slice(), true)?.f_clamp_min(1e-12)?)?)
}

/// Attention maps `[B, H * W]`.
fn attention(features: &Tensor) -> Result<Tensor> {
    normalised(&features.f_square()?.f_mean_dim([1i64].as_slice(), false, None::<Kind>)?.f_flatten(1, -1)?, 1)
}

/// Distances `[B, B]` between features `[B, D]`, divided by the mean of all pairs.
fn distances(x: &Tensor) -> Result<Tensor> {
    let batch = x.size()[0];
    let squares = x.f_square()?.f_sum_dim_intlist([1i64].as_slice(), true, None::<Kind>)?; // [B, 1]
    let all =
        squares.f_add(&squares.f_transpose(0, 1)?)?.f_sub(&x.f_matmul(&x.f_transpose(0, 1)?)?.f_mul_scalar(2.0)?)?;
    let itself = Tensor::f_eye(batch, (Kind::Bool, x.device()))?;
    let all = all.f_clamp_min(1e-12)?.f_sqrt()?.f_masked_fill(&itself, 0.0)?;
    let pairs = (batch * (batch - 1)).max(1);
    Ok(all.f_div(&all.f_sum(None::<Kind>)?.f_div_scalar(pairs)?)?)
}

/// Cosines of the angles of all triples, `[B, B, B]`.
fn angles(x: &Tensor) -> Result<Tensor> {
    let directions = normalised(&x.f_unsqueeze(0)?.f_sub(&x.f_unsqueeze(1)?)?, 2)?;
    Ok(directions.f_bmm(&directions.f_transpose(1, 2)?)?)
}

/// A learned map from the student's channels to the teacher's.
pub(crate) struct Projection {
    weight: Tensor, // [teacher's channels, student's channels]
    bias: Tensor,
}

impl Projection {
    /// With PyTorch's first weights, drawn from `seed`.
    fn new(from: i64, to: i64, like: &Tensor, seed: u64) -> Result<Self> {
        tch::manual_seed(seed as i64);
        let bound = 1.0 / (from.max(1) as f64).sqrt();
        let draw = |size: &[i64]| -> Result<Tensor> {
            let values = Tensor::f_empty(size, (like.kind(), like.device()))?.f_uniform_(-bound, bound)?;
            Ok(values.f_set_requires_grad(true)?)
        };
        Ok(Self { weight: draw(&[to, from])?, bias: draw(&[to])? })
    }

    fn apply(&self, features: &Tensor) -> Result<Tensor> {
        let across = features.f_movedim_int(1, -1)?; // channels last
        Ok(across.f_linear(&self.weight, Some(&self.bias))?.f_movedim_int(-1, 1)?)
    }

    /// Its weights, by the names that a checkpoint gives them.
    pub(super) fn state(&self) -> Vec<(String, Tensor)> {
        let named = |name: &str, t: &Tensor| (format!("projection/{name}"), t.shallow_clone());
        vec![named("weight", &self.weight), named("bias", &self.bias)]
    }
}

/// The part of a loss that compares features, in a fit.
pub(super) struct FeatureTerm {
    method: FeatureMethod,
    pub layer: String,
    pub projection: Option<Projection>,
}

impl FeatureTerm {
    /// Tries the layer on one image, and makes a projection where the channels differ.
    ///
    /// # Errors
    /// When the student has no such layer, the examples have no features, or the two do not fit the method.
    pub(super) fn new(method: FeatureMethod, layer: &str, model: &Model, train: &Examples, seed: u64) -> Result<Self> {
        let name = method.name();
        let batch = train.batch(&[0], model.device())?;
        let Some(teacher) = &batch.features else {
            return Err(Error::Input(format!(
                "{name} needs the teacher's features, and the train examples carry none; add \
                 with_teacher_features(&layer_features(...)?)"
            )));
        };
        let (_, student) = no_grad(|| model.forward_to(&batch.inputs, Mode::Evaluation, model.precision, layer))?;
        let (s, t) = (student.size(), teacher.size());
        let dims = if matches!(method, FeatureMethod::Attention { .. }) { vec![4] } else { vec![2, 4] };
        let fits = matches!(method, FeatureMethod::Relational { .. }) || s.len() == t.len() && dims.contains(&s.len());
        if !fits {
            return Err(Error::Input(format!(
                "{name} compares layer {layer} of the student, {s:?}, with the teacher's features, {t:?}: take layers \
                 of {} in both",
                if dims.len() == 1 { "[N, C, H, W]" } else { "as many dimensions" }
            )));
        }
        let needs = matches!(method, FeatureMethod::Hint { .. }) && s[1] != t[1];
        let projection = if needs { Some(Projection::new(s[1], t[1], &student, seed)?) } else { None };
        Ok(Self { method, layer: layer.to_owned(), projection })
    }

    /// The loss of a batch, a scalar.
    pub(super) fn loss(&self, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        self.method.loss(student, &teacher.f_to_kind(student.kind())?, self.projection.as_ref())
    }
}
