//! The bench on which a mistake is measured: the same fits with it and without it, over three seeds.

use super::Verdict;
use super::mistakes::{Mistake, fit_with_mistake};
use crate::error::lock;
use crate::models::{Backbone, Model, head, read_weights, student};
use crate::train::{Criterion, Examples, FitOptions, History, KdLoss, evaluate, fit};
use crate::{Error, Result};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tch::{Device, Tensor};

/// First weights and orders of batches.
const SEEDS: [u64; 3] = [0, 1, 2];

/// Examples on which the same network is trained with and without a mistake.
pub struct Bench {
    /// What the networks learn from.
    pub train: Examples,
    /// Picks the best epoch.
    pub validation: Examples,
    /// Judges the network of the best epoch.
    pub test: Examples,
    /// Number of classes.
    pub classes: i64,
    /// Where the networks are.
    pub device: Device,
    /// Epochs of each fit.
    pub epochs: usize,
}

/// Fits of three seeds.
pub struct SeedRuns {
    /// Curve of each fit.
    pub histories: Vec<History>,
    /// Network of each fit, with the weights of its best epoch.
    pub networks: Vec<Model>,
    /// Accuracy of each network on the bench's test examples, in [0, 1].
    pub accuracies: Vec<f64>,
}

/// What the training loop compares in one batch.
pub struct WatchedBatch {
    /// i64 `[B]`.
    pub labels: Tensor,
    /// Logits `[B, C]`.
    pub student: Tensor,
    /// Logits `[B, C]`.
    pub teacher: Tensor,
}

/// One fit, with a mistake if there is one.
fn fit_one(
    case: Option<Mistake>,
    network: &mut Model,
    bench: [&Examples; 2],
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<History> {
    match case {
        None => fit(network, bench[0], bench[1], criterion, options),
        Some(case) => fit_with_mistake(case, network, bench[0], bench[1], criterion, options),
    }
}

impl Bench {
    /// Trains a student for each seed, with the mistake `case` if there is one, and prints a line for each.
    ///
    /// # Errors
    /// As [`fit`] and [`fit_with_mistake`].
    pub fn students(&self, name: &str, case: Option<Mistake>, criterion: &Criterion) -> Result<SeedRuns> {
        let new = |seed| Model::new(name, self.device, seed, &|vs| student(vs, self.classes));
        self.networks(name, case, criterion, &new)
    }

    /// Trains a new head for each seed, as [`Bench::students`] does, on a frozen backbone that is a part of the
    /// network.
    ///
    /// # Errors
    /// As [`fit`] and [`fit_with_mistake`].
    pub fn heads(&self, name: &str, case: Option<Mistake>, backbone: &Backbone) -> Result<SeedRuns> {
        let features = backbone.arch.features();
        self.networks(name, case, &Criterion::cross_entropy(), &|seed| {
            backbone.with_head(&head(features, self.classes, self.device, seed)?)
        })
    }

    fn networks(
        &self,
        name: &str,
        case: Option<Mistake>,
        criterion: &Criterion,
        new: &dyn Fn(u64) -> Result<Model>,
    ) -> Result<SeedRuns> {
        let mut runs = SeedRuns { histories: vec![], networks: vec![], accuracies: vec![] };
        for seed in SEEDS {
            let mut network = new(seed)?;
            let options = FitOptions { name: name.to_owned(), epochs: self.epochs, seed, ..FitOptions::default() };
            let history = fit_one(case, &mut network, [&self.train, &self.validation], criterion, &options)?;
            let accuracy = evaluate(&network, &self.test, 256)?.accuracy();
            let seconds = history.seconds();
            println!("{name}, seed {seed}: test accuracy {:.1} % after {seconds:.0} s", 100.0 * accuracy);
            runs.histories.push(history);
            runs.networks.push(network);
            runs.accuracies.push(accuracy);
        }
        Ok(runs)
    }

    /// Returns what the training loop compares in each of its batches while a student learns for so many epochs, from
    /// the labels alone.
    ///
    /// # Errors
    /// As [`fit`] and [`fit_with_mistake`].
    pub fn watch(&self, case: Option<Mistake>, kd: KdLoss, epochs: usize) -> Result<Vec<WatchedBatch>> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let watched = Arc::clone(&seen);
        let criterion = Criterion::soft("watched", kd, move |student, labels, teacher, _, _| {
            let loss = student.cross_entropy_for_logits(labels);
            // In training, not in validation.
            if loss.requires_grad() {
                let [labels, student, teacher] = [labels, student, teacher].map(Tensor::detach);
                lock(&watched).push(WatchedBatch { labels, student, teacher });
            }
            loss
        });
        let mut network = Model::new("watched", self.device, SEEDS[0], &|vs| student(vs, self.classes))?;
        let options = FitOptions { epochs, ..FitOptions::default() };
        fit_one(case, &mut network, [&self.train, &self.validation], &criterion, &options)?;
        let seen = std::mem::take(&mut *lock(&seen));
        Ok(seen)
    }

    /// Returns how far each weight of a linear head moves in its second step, as a share of the learning rate, where an
    /// epoch is one batch. The bench's examples are features `[N, features]`; `folder` keeps the checkpoints.
    ///
    /// # Errors
    /// As [`fit`] and [`fit_with_mistake`].
    pub fn second_step(&self, case: Option<Mistake>, features: i64, folder: &Path) -> Result<Tensor> {
        let learning_rate = 1e-3;
        let mut weights = Vec::new();
        for epochs in [1, 2] {
            let folder = folder.join(format!("{case:?}-{epochs}"));
            let options = FitOptions { epochs, batch_size: self.train.len(), learning_rate, ..FitOptions::default() };
            let options = FitOptions { folder: Some(folder.clone()), ..options };
            let mut network = head(features, self.classes, Device::Cpu, SEEDS[0])?;
            // The first step is a first step with every mistake.
            let case = case.filter(|_| epochs > 1);
            fit_one(case, &mut network, [&self.train, &self.validation], &Criterion::cross_entropy(), &options)?;
            let saved = read_weights(&folder.join("checkpoint.safetensors"))?;
            weights.extend(saved.into_iter().find(|(name, _)| name == "weights/fc.weight").map(|(_, weight)| weight));
        }
        match &weights[..] {
            [first, second] => Ok((second.f_sub(first)?.f_abs()?).f_div_scalar(learning_rate)?),
            _ => Err(Error::Data(format!("the checkpoints in {} hold no head", folder.display()))),
        }
    }
}

impl SeedRuns {
    /// Returns what changes from these runs to others, a difference of accuracies for each seed.
    ///
    /// # Errors
    /// As [`Verdict::new`].
    pub fn effect(&self, others: &SeedRuns) -> Result<Verdict> {
        Verdict::new(&self.accuracies, &others.accuracies, 1)
    }
}
