//! EfficientNet-Lite0 with the structure and the variable names of PyPI's `efficientnet_lite_pytorch`.

use super::{Layers, Op};
use tch::nn::{self, Path};

/// For each stage: repeats, kernel, stride of the first block, expansion, output channels. The stem has 32 channels.
const STAGES: [(i64, i64, i64, i64, i64); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// Builds EfficientNet-Lite0. It maps images f32 `[N, 3, S, S]` to logits f32 `[N, classes]`, or to features f32 `[N,
/// 1280]` without `classes`.
pub(super) fn efficientnet_lite0(vs: &Path, classes: Option<i64>) -> Layers {
    let mut net = Layers::new();
    net = convolve(net, vs, "_conv_stem", "_bn0", [3, 32], 3, 2, 1).add("_relu", Op::ReLU6);
    let (mut inputs, mut index) = (32, 0);
    for (repeats, kernel, first_stride, expansion, outputs) in STAGES {
        for i in 0..repeats {
            let stride = if i == 0 { first_stride } else { 1 };
            let name = format!("_blocks.{index}");
            let block = block(&(vs / "_blocks" / index), [inputs, outputs], kernel, stride, expansion);
            net = match (stride, inputs == outputs) {
                (1, true) => net.add(&name, Op::Residual { body: block, shortcut: None }),
                _ => net.add(&name, block),
            };
            (inputs, index) = (outputs, index + 1);
        }
    }
    net = convolve(net, vs, "_conv_head", "_bn1", [320, 1280], 1, 1, 1)
        .add("_relu_head", Op::ReLU6)
        .add("_avg_pooling", Op::GlobalAvgPool); // [N, 1280]
    match classes {
        Some(n) => net.add("_fc", nn::linear(vs / "_fc", 1280, n, Default::default())),
        None => net,
    }
}

/// One block: a 1x1 convolution widens, a depthwise one filters each channel, a 1x1 convolution narrows.
fn block(vs: &Path, [inputs, outputs]: [i64; 2], kernel: i64, stride: i64, expansion: i64) -> Layers {
    let wide = inputs * expansion;
    let mut layers = Layers::new();
    if expansion != 1 {
        layers = convolve(layers, vs, "_expand_conv", "_bn0", [inputs, wide], 1, 1, 1).add("_relu0", Op::ReLU6);
    }
    layers =
        convolve(layers, vs, "_depthwise_conv", "_bn1", [wide, wide], kernel, stride, wide).add("_relu1", Op::ReLU6);
    convolve(layers, vs, "_project_conv", "_bn2", [wide, outputs], 1, 1, 1)
}

/// Appends a convolution with TensorFlow's "SAME" padding, and its normalisation.
#[allow(clippy::too_many_arguments)]
fn convolve(
    layers: Layers,
    vs: &Path,
    name: &str,
    norm: &str,
    [inputs, outputs]: [i64; 2],
    kernel: i64,
    stride: i64,
    groups: i64,
) -> Layers {
    let padding = if stride == 1 { kernel / 2 } else { 0 };
    // `Model::new` draws the weights. With zeros, tch does not draw them first.
    let ws_init = nn::Init::Const(0.0);
    let config = nn::ConvConfig { stride, padding, groups, bias: false, ws_init, ..Default::default() };
    let layers = match stride {
        1 => layers,
        _ => layers.add(&format!("{name}.pad"), Op::SamePadding { kernel, stride }),
    };
    layers.add(name, Op::conv(vs / name, inputs, outputs, kernel, config)).add(
        norm,
        Op::norm(vs / norm, outputs, nn::BatchNormConfig { eps: 1e-3, momentum: 0.01, ..Default::default() }),
    )
}
