//! Options of a fit.

use super::group::Share;
use super::hyperparameters::{Overrides, check_learning_rate};
use super::{Control, Criterion, Examples, Group, History, Hyperparameters, Listener, Recipe};
use crate::models::Precision;
use crate::{Error, Result};
use std::path::PathBuf;

/// Options of a fit. Every field has a default; override those that you want to change.
#[derive(Clone)]
pub struct FitOptions {
    /// Stands in the history and in every event.
    pub name: String,
    /// At least 1.
    pub epochs: usize,
    /// At least 1; the article uses 64.
    pub batch_size: usize,
    /// The optimizer's learning rate, above 0; the article keeps Adam's default of 1e-3. The schedule of the recipe
    /// multiplies it.
    pub learning_rate: f64,
    /// Optimizer, schedule and regularisation: by default Adam at a constant rate, as in the article.
    pub recipe: Recipe,
    /// Decides the order of the batches. The same seed gives the same run on the same CPU with as many threads, which
    /// follow what else computes on the machine ([`History::threads`]); `OMP_NUM_THREADS` sets their number.
    pub seed: u64,
    /// Precision of the model's forward and backward passes in training and validation.
    pub precision: Precision,
    /// Folder for checkpoint, best weights and history; `None` keeps nothing on disk.
    pub folder: Option<PathBuf>,
    /// Handle to stop or pause the fit, and to change temperature, alpha and learning rate while it runs.
    pub control: Control,
    /// Callback for training events; in a group that of rank 0.
    pub listener: Listener,
    /// The processes that train together; `None` for this one alone. All of them call [`fit`](super::fit) with the same
    /// model, data and options, and with one folder that all see.
    pub group: Option<Group>,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            name: "fit".into(),
            epochs: 20,
            batch_size: 64,
            learning_rate: 1e-3,
            recipe: Recipe::default(),
            seed: 0,
            precision: Precision::F32,
            folder: None,
            control: Control::default(),
            listener: Listener::default(),
            group: None,
        }
    }
}

impl FitOptions {
    pub(super) fn check(&self) -> Result<()> {
        if self.batch_size == 0 {
            return Err(Error::Input("batch size must be at least 1, got 0; the article uses 64".into()));
        }
        if self.epochs == 0 {
            return Err(Error::Input("epochs must be at least 1, got 0".into()));
        }
        check_learning_rate(self.learning_rate)?;
        self.recipe.check(self.epochs)?;
        if let Some(folder) = &self.folder {
            check_name(&self.name)?;
            if ["cache", "sweeps"].iter().any(|kept| self.name == *kept && folder.ends_with(kept)) {
                return Err(Error::Input(format!(
                    "{:?} is the name of a folder that the lab keeps for itself; give the fit another name",
                    self.name
                )));
            }
        }
        Ok(())
    }

    /// The number of this process in its group.
    pub(super) fn rank(&self) -> usize {
        self.group.as_ref().map_or(0, Group::rank)
    }

    /// The part of a batch of so many images that this process computes.
    pub(super) fn share(&self, images: usize) -> Share {
        self.group.as_ref().map_or(Share { range: 0..images, weight: 1.0 }, |group| group.share(images))
    }

    /// The samples of a batch that this process computes.
    pub(super) fn part<'a>(&self, batch: &'a [i64]) -> &'a [i64] {
        &batch[self.share(batch.len()).range]
    }

    /// Whether the fit is to stop, and the values that the user set. All processes of a group get the same answer: they
    /// stop if one of them was stopped, and take the values of rank 0.
    pub(super) fn agreed(&self) -> Result<(bool, Overrides)> {
        let (stopping, own) = (self.control.stopping().is_some(), self.control.overrides());
        let Some(group) = &self.group else { return Ok((stopping, own)) };
        let mut told = vec![f64::from(stopping)];
        for value in <[Option<f64>; 3]>::from(own) {
            let value = value.filter(|_| group.rank() == 0);
            told.extend([f64::from(value.is_some()), value.unwrap_or(0.0)]);
        }
        let sums = group.sum_values(&told)?;
        let any = sums[0] > 0.0;
        if any && !stopping {
            self.control.stop("another process of its group was stopped");
        }
        let value = |at: usize| (sums[at] > 0.0).then_some(sums[at + 1]);
        Ok((any, Overrides { temperature: value(1), alpha: value(3), learning_rate: value(5) }))
    }

    /// The values with which a fit of this criterion begins.
    pub(super) fn hyperparameters(&self, criterion: &Criterion) -> Hyperparameters {
        let kd = criterion.kd_loss();
        Hyperparameters {
            temperature: kd.map(|kd| kd.temperature()),
            alpha: kd.map(|kd| kd.alpha()),
            learning_rate: self.learning_rate,
        }
    }

    /// The history of a fit before its first epoch.
    pub(super) fn history(&self, criterion: &Criterion, train: &Examples) -> History {
        History {
            name: self.name.clone(),
            criterion: criterion.name().to_owned(),
            data_key: train.key().to_owned(),
            epochs: self.epochs,
            records: Vec::new(),
            stopped: None,
            mistake: None,
            changes: Vec::new(),
            recipe: self.recipe.clone(),
            augmentation: train.augmentation(),
            steps_per_epoch: train.len().div_ceil(self.batch_size.max(1)),
            threads: Vec::new(),
        }
    }
}

/// Checks that the name of a fit can be the name of its folder.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let wrong = if name.is_empty() {
        "is empty"
    } else if name.starts_with('.') {
        "begins with a dot"
    } else if name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        "holds a slash or a control character"
    } else if name.len() > 200 {
        "is longer than 200 bytes"
    } else {
        return Ok(());
    };
    Err(Error::Input(format!("the name of a fit is the name of its folder, and {name:?} {wrong}; try \"student\"")))
}
