//! The recipe of a fit: optimizer, schedule, and what else PyTorch users set beside the learning rate.

use super::schedule::{Plan, Schedule};
use crate::store::digest::digest;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a fit turns gradients into updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        /// Nesterov's momentum, which needs a momentum above 0.
        #[serde(default)]
        nesterov: bool,
        /// At least 0.
        weight_decay: f64,
    },
}

/// How a fit trains, beside its learning rate and its loss. The default is the article's: Adam at a constant rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// How gradients become updates.
    pub optimizer: UpdateRule,
    /// Applies weight decay to weights alone. Biases and the weights of normalisations, which have one dimension, are
    /// spared, as by timm's `filter_bias_and_bn`.
    pub decay_weights_only: bool,
    /// How the learning rate changes from step to step.
    pub schedule: Schedule,
    /// Epochs of linear warm-up before the schedule, from 0.01 of its first learning rate: `LinearLR` in a
    /// `SequentialLR`. At least 0, and less than the run has; half an epoch is 0.5.
    pub warmup: f64,
    /// Scales the gradients of each step down to this norm, all taken together, where theirs is larger:
    /// `torch.nn.utils.clip_grad_norm_`. Above 0; `None` clips nothing.
    pub clip_norm: Option<f64>,
    /// Decay of a moving average of all weights and of BatchNorm's statistics, updated after each step:
    /// `AveragedModel` with `get_ema_multi_avg_fn(decay)` and `use_buffers=True`. Between 0 and 1, such as 0.99.
    ///
    /// Validation then judges the average, and the fit keeps, saves and returns it. Training goes on with the weights
    /// themselves, and so do its metrics.
    pub average: Option<f64>,
    /// Share of the hard label's probability that is spread evenly over all classes: `label_smoothing` of
    /// `F.cross_entropy`. In [0, 1); 0.1 is usual. Soft targets stay as they are.
    pub label_smoothing: f64,
    /// A weight for the hard labels of each class, above 0: `weight` of `F.cross_entropy`. Soft targets stay as they
    /// are. `None` weighs all classes alike.
    pub class_weights: Option<Vec<f64>>,
    /// Ends the fit early, after so many epochs in a row in which the validation accuracy (on a tie the loss) was never
    /// better than before. At least 1; `None` runs all epochs.
    pub patience: Option<usize>,
}

impl UpdateRule {
    pub(super) fn weight_decay(self) -> f64 {
        match self {
            UpdateRule::Adam => 0.0,
            UpdateRule::AdamW { weight_decay } | UpdateRule::Sgd { weight_decay, .. } => weight_decay,
        }
    }

    pub(super) fn check(self) -> Result<()> {
        let decay = self.weight_decay();
        if !(decay >= 0.0 && decay.is_finite()) {
            return Err(Error::Input(format!("weight decay must be >= 0, got {decay}; try 0.01")));
        }
        match self {
            UpdateRule::Sgd { momentum, .. } if !(0.0..1.0).contains(&momentum) => {
                Err(Error::Input(format!("momentum must be in [0, 1), got {momentum}; try 0.9")))
            }
            UpdateRule::Sgd { momentum: 0.0, nesterov: true, .. } => {
                Err(Error::Input("Nesterov's momentum needs a momentum above 0, got 0; try 0.9".into()))
            }
            _ => Ok(()),
        }
    }
}

impl Recipe {
    /// Refuses values out of range, and what does not fit into a run of so many epochs.
    pub(crate) fn check(&self, epochs: usize) -> Result<()> {
        self.optimizer.check()?;
        let wrong = |what: String| Err(Error::Input(what));
        if !(self.warmup >= 0.0 && self.warmup < epochs as f64) {
            return wrong(format!(
                "the warm-up must have 0 or more epochs and fewer than the run, which has {epochs}, got {}; try {}",
                self.warmup,
                epochs as f64 / 10.0
            ));
        }
        self.schedule.check(epochs as f64 - self.warmup)?;
        if let Some(norm) = self.clip_norm.filter(|norm| !(*norm > 0.0 && norm.is_finite())) {
            return wrong(format!("the norm to which gradients are clipped must be > 0, got {norm}; try 1"));
        }
        if let Some(decay) = self.average.filter(|decay| !(*decay > 0.0 && *decay < 1.0)) {
            return wrong(format!("the decay of the weights' average must be between 0 and 1, got {decay}; try 0.99"));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return wrong(format!("label smoothing must be in [0, 1), got {}; try 0.1", self.label_smoothing));
        }
        let weights = self.class_weights.as_deref().unwrap_or_default();
        if let Some(weight) = weights.iter().find(|weight| !(**weight > 0.0 && weight.is_finite())) {
            return wrong(format!("class weights must be > 0, got {weight}; leave the class's images out instead"));
        }
        // The loss is computed in f32.
        if let Some(weight) = weights.iter().find(|weight| !(**weight as f32).is_normal()) {
            return wrong(format!("class weights must be 1e-37 to 1e38, got {weight:e}; 1 leaves a class as it is"));
        }
        if self.patience == Some(0) {
            return wrong("patience must be at least 1 epoch, got 0; None runs all epochs".into());
        }
        Ok(())
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses class weights of another number than the classes.
    pub(crate) fn check_classes(&self, classes: i64) -> Result<()> {
        match &self.class_weights {
            Some(weights) if weights.len() as i64 != classes => Err(Error::Input(format!(
                "{} class weights for {classes} classes: give one for each class, in the order of its number",
                weights.len()
            ))),
            _ => Ok(()),
        }
    }

    /// Whether the learning rate changes by itself.
    pub(crate) fn varies_rate(&self) -> bool {
        self.schedule != Schedule::Constant || self.warmup > 0.0
    }

    /// Whether the recipe changes how hard labels count.
    pub(super) fn changes_hard_loss(&self) -> bool {
        self.label_smoothing != 0.0 || self.class_weights.is_some()
    }

    /// The learning rate's schedule in a run.
    pub(super) fn plan(&self, epochs: usize, steps_per_epoch: usize) -> Plan {
        let warmup = (self.warmup * steps_per_epoch as f64).round() as usize;
        Plan { schedule: self.schedule, warmup, total: epochs * steps_per_epoch, steps_per_epoch }
    }

    /// A text that differs for any two recipes. It is empty for the default, and stays as it is when fields are added.
    pub(crate) fn key(&self) -> String {
        let rule = match self.optimizer {
            UpdateRule::Adam => String::new(),
            // As checkpoints had it before there was Nesterov's momentum.
            UpdateRule::Sgd { momentum, nesterov: false, weight_decay } => {
                format!(" Sgd {{ momentum: {momentum:?}, weight_decay: {weight_decay:?} }}")
            }
            rule => format!(" {rule:?}"),
        };
        let rest = Recipe { optimizer: UpdateRule::Adam, ..self.clone() };
        let weights = self.class_weights.as_ref().map_or(String::new(), |weights| format!(" {weights:?}"));
        if rest.is_default() { rule } else { format!("{rule} {rest}{weights}") }
    }
}

impl fmt::Display for Recipe {
    /// Writes what differs from the default so that it can name a folder: `sgd0.9-nesterov-decay0.0005-cosine-warmup5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match self.optimizer {
            UpdateRule::Adam => {}
            UpdateRule::AdamW { weight_decay } => parts.push(format!("adamw{weight_decay}")),
            UpdateRule::Sgd { momentum, nesterov, weight_decay } => {
                parts.push(format!("sgd{momentum}"));
                parts.extend(nesterov.then(|| "nesterov".into()));
                parts.extend((weight_decay != 0.0).then(|| format!("decay{weight_decay}")));
            }
        }
        parts.extend(self.decay_weights_only.then(|| "weights-only".into()));
        match self.schedule {
            Schedule::Constant => {}
            Schedule::Cosine => parts.push("cosine".into()),
            Schedule::Step { epochs, factor } => parts.push(format!("step{epochs}x{factor}")),
            Schedule::OneCycle => parts.push("one-cycle".into()),
        }
        parts.extend((self.warmup != 0.0).then(|| format!("warmup{}", self.warmup)));
        parts.extend(self.clip_norm.map(|norm| format!("clip{norm}")));
        parts.extend(self.average.map(|decay| format!("average{decay}")));
        parts.extend((self.label_smoothing != 0.0).then(|| format!("smoothing{}", self.label_smoothing)));
        if let Some(weights) = &self.class_weights {
            let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
            parts.push(format!("weighted-{}", &digest(&[&bytes])[..8]));
        }
        parts.extend(self.patience.map(|epochs| format!("patience{epochs}")));
        f.write_str(&parts.join("-"))
    }
}
