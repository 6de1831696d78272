//! Tests of what the crate keeps to itself. It compiles them as a part of itself, where `kdlab` is its own name.

mod augmenting;
#[path = "../common/mod.rs"]
mod common;
mod group;
mod loss;
mod methods;
#[path = "../oracle/mod.rs"]
pub(crate) mod oracle;
mod parity;
mod recipes;
mod sweep;
mod teachers;

pub(crate) use common::{dataset, normalised};
use kdlab::models::Layers;
use tch::{Device, Kind, Tensor, nn};

/// A network of one layer for images of any size.
fn tiny(vs: &nn::Path) -> Layers {
    Layers::new()
        .func("pool", |x| x.adaptive_avg_pool2d([4, 4]).flatten(1, -1))
        .add("fc", nn::linear(vs / "fc", 48, 10, Default::default()))
}

/// Random numbers f64 with a standard deviation of 3.
fn random(shape: [i64; 2], seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Double, Device::Cpu)) * 3.0
}
