//! The article's student network.

use super::{Layers, Op};
use tch::nn;

/// The article's `Net`: four 3x3 convolutions, two poolings, two linear layers. 264,618 parameters for 10 classes.
///
/// Maps images f32 `[N, 3, S, S]` with `S >= 4` to logits f32 `[N, classes]`. As in the article, there is nothing
/// between the two linear layers. ReLU runs after max-pooling: the two commute, and it then sees a quarter of the
/// values.
pub fn student(vs: &nn::Path, classes: i64) -> Layers {
    let same = nn::ConvConfig { padding: 1, ..Default::default() };
    let halved = || Op::MaxPool { kernel: 2, stride: 2, padding: 0 };
    Layers::new()
        .add("conv1", Op::conv(vs / "conv1", 3, 64, 3, same))
        .add("relu1", Op::ReLU)
        .add("conv2", Op::conv(vs / "conv2", 64, 64, 3, same))
        .add("pool1", halved())
        .add("relu2", Op::ReLU)
        .add("conv3", Op::conv(vs / "conv3", 64, 128, 3, same))
        .add("relu3", Op::ReLU)
        .add("conv4", Op::conv(vs / "conv4", 128, 128, 3, same))
        .add("pool2", halved())
        .add("relu4", Op::ReLU)
        .add("avgpool", Op::GlobalAvgPool) // [N, 128]
        .add("fc1", nn::linear(vs / "fc1", 128, 32, Default::default()))
        .add("fc2", nn::linear(vs / "fc2", 32, classes, Default::default()))
}
