//! What the room `train` promises to who uses it.

mod augmenting;
mod caches;
#[path = "../common/mod.rs"]
mod common;
mod exported;
mod measuring;
mod mistakes;
#[path = "../oracle/mod.rs"]
#[allow(dead_code)] // others read its weights
mod oracle;
mod recipes;
mod resume;
mod tables;
mod training;

use common::{dataset, normalised};
use kdlab::data::{DataOptions, Dataset, Transform};
use kdlab::models::{Arch, Backbone, Layers, Model, Op, Precision, Student, head, student};
use kdlab::study::*;
use kdlab::train::*;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor, nn};

fn tiny(vs: &nn::Path) -> Layers {
    Layers::new()
        .func("pool", |x| x.adaptive_avg_pool2d([4, 4]).flatten(1, -1))
        .add("fc", nn::linear(vs / "fc", 48, 10, Default::default()))
}

fn tiny_model(seed: u64) -> Model {
    Model::new("tiny", Device::Cpu, seed, &tiny).unwrap()
}

/// Random logits for every sample: a teacher that knows nothing, but always the same.
fn teacher(split: &kdlab::data::Split, seed: f64) -> CachedTensor {
    let n = split.len() as i64;
    let values = (Tensor::arange(n * 10, (Kind::Float, Device::Cpu)) + seed).sin().reshape([n, 10]) * 3.0;
    CachedTensor::new(split, values, &format!("test {seed}")).unwrap()
}

fn examples(data: &Dataset) -> (Examples, Examples) {
    let transform = normalised(32);
    let of = |split| Examples::images(split, &transform).unwrap().with_teacher(&teacher(split, 1.0)).unwrap();
    (of(&data.train), of(&data.validation))
}

/// Options for this test's thread. It takes one thread, because the last digits depend on their number, and without
/// this the number depends on what else computes on the machine.
fn options(epochs: usize) -> FitOptions {
    tch::set_num_threads(1);
    FitOptions { epochs, batch_size: 8, learning_rate: 1e-2, ..FitOptions::default() }
}

/// What of a history does not depend on the clock.
fn curve(history: &History) -> Vec<(Metrics, Metrics)> {
    history.records.iter().map(|r| (r.train, r.validation)).collect()
}

fn values(model: &Model) -> Vec<f32> {
    model.state().iter().flat_map(|(_, t)| Vec::<f32>::try_from(t.flatten(0, -1)).unwrap()).collect()
}
