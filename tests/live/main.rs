//! The crate's side of the live kernel: a fake kernel in these tests speaks its protocol over a real socket.

mod alone;
#[path = "../common/mod.rs"]
mod common;
mod kernel;
mod shown;

use common::{dataset, normalised};
use kdlab::Error;
use kdlab::data::{Dataset, Transform};
use kdlab::models::{Arch, Backbone, Layers, Model};
use kdlab::show::temperature_explorer;
use kdlab::train::*;
use kdlab_client::{Bundle, Display, Link, Push};
use kernel::{Kernel, with_kernel};
use serde_json::{Value, json};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor, nn};

/// How long anything may take before a test gives up.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    folder: tempfile::TempDir,
    data: Dataset,
    train: Examples,
    validation: Examples,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0); // 64 to train on, 8 batches of 8
    let examples = |split| {
        let logits = Tensor::ones([kdlab::data::Split::len(split) as i64, 10], (Kind::Float, Device::Cpu));
        let logits = CachedTensor::new(split, logits, "ones").unwrap();
        Examples::images(split, &normalised(32)).unwrap().with_teacher(&logits).unwrap()
    };
    let (train, validation) = (examples(&data.train), examples(&data.validation));
    Bench { folder, data, train, validation }
}

fn model() -> Model {
    let tiny = |vs: &nn::Path| {
        Layers::new()
            .func("pool", |x| x.adaptive_avg_pool2d([4, 4]).flatten(1, -1))
            .add("fc", nn::linear(vs / "fc", 48, 10, Default::default()))
    };
    Model::new("tiny", Device::Cpu, 1, &tiny).unwrap()
}

/// Options of a fit that is shown while it runs.
fn live_options(name: &str, epochs: usize) -> FitOptions {
    let FitOptions { control, listener, .. } = kdlab::Lab::open().unwrap().fit_options(name);
    FitOptions { control, listener, ..plain_options(name, epochs) }
}

/// One thread, because otherwise the number, which a view shows, depends on what else computes on the machine.
fn plain_options(name: &str, epochs: usize) -> FitOptions {
    tch::set_num_threads(1);
    FitOptions { name: name.into(), epochs, batch_size: 8, ..FitOptions::default() }
}

/// The distillation loss at T = 4, alpha = 0.5, which calls `at` with the number of the training batch, from 0, and its
/// T.
fn watched(at: impl Fn(usize, f64) + Send + Sync + 'static) -> Criterion {
    let steps = AtomicUsize::new(0);
    Criterion::soft("watched", KdLoss::new(4.0, 0.5).unwrap(), move |s, y, t, temperature, alpha| {
        let loss = KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap();
        if loss.requires_grad() {
            at(steps.fetch_add(1, Ordering::SeqCst), temperature);
        }
        loss
    })
}

/// Whether a field of the control's state, as `{:?}` writes it, has this value.
fn shows(control: &Control, field: &str) -> bool {
    format!("{control:?}").contains(field)
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LIMIT, "{what} never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}
