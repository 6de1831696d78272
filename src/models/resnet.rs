//! ResNet-18 and ResNet-50 as in torchvision: the same structure, the same variable names.

use super::{Layers, Op};
use tch::nn::{self, Path};

/// Builds torchvision's ResNet-18. It maps images f32 `[N, 3, S, S]` to logits f32 `[N, classes]`, or to features f32
/// `[N, 512]` without `classes`.
pub(super) fn resnet18(vs: &Path, classes: Option<i64>) -> Layers {
    resnet(vs, &basic, [2, 2, 2, 2], 512, classes)
}

/// Builds torchvision's ResNet-50, v1.5: the stride is in the 3x3 convolution. It maps images f32 `[N, 3, S, S]` to
/// logits f32 `[N, classes]`, or to features f32 `[N, 2048]` without `classes`.
pub(super) fn resnet50(vs: &Path, classes: Option<i64>) -> Layers {
    resnet(vs, &bottleneck, [3, 4, 6, 3], 2048, classes)
}

/// Builds one block: path, input channels, inner width, stride.
type Block<'a> = &'a dyn Fn(&Path, i64, i64, i64) -> Layers;

fn resnet(vs: &Path, block: Block, depths: [i64; 4], features: i64, classes: Option<i64>) -> Layers {
    let mut net = Layers::new()
        .add("conv1", conv(vs / "conv1", 3, 64, 7, 2))
        .add("bn1", norm(vs / "bn1", 64))
        .add("relu", Op::ReLU)
        .add("maxpool", Op::MaxPool { kernel: 3, stride: 2, padding: 1 }); // [N, 64, S/4, S/4]
    let mut inputs = 64;
    for (stage, depth) in depths.into_iter().enumerate() {
        let (layer, width) = (format!("layer{}", stage + 1), 64 << stage);
        let outputs = features >> (3 - stage);
        for i in 0..depth {
            let path = vs / &layer / i;
            let stride = if i == 0 && stage > 0 { 2 } else { 1 };
            let shortcut = (stride > 1 || inputs != outputs).then(|| {
                let path = &path / "downsample";
                Layers::new()
                    .add("downsample.0", conv(&path / 0, inputs, outputs, 1, stride))
                    .add("downsample.1", norm(&path / 1, outputs))
            });
            let name = format!("{layer}.{i}");
            let body = block(&path, inputs, width, stride);
            net = net.add(&name, Op::Residual { body, shortcut }).add(&format!("{name}.relu"), Op::ReLU);
            inputs = outputs;
        }
    }
    net = net.add("avgpool", Op::GlobalAvgPool); // [N, features]
    match classes {
        Some(n) => net.add("fc", nn::linear(vs / "fc", features, n, Default::default())),
        None => net,
    }
}

fn basic(vs: &Path, inputs: i64, width: i64, stride: i64) -> Layers {
    Layers::new()
        .add("conv1", conv(vs / "conv1", inputs, width, 3, stride))
        .add("bn1", norm(vs / "bn1", width))
        .add("relu", Op::ReLU)
        .add("conv2", conv(vs / "conv2", width, width, 3, 1))
        .add("bn2", norm(vs / "bn2", width))
}

fn bottleneck(vs: &Path, inputs: i64, width: i64, stride: i64) -> Layers {
    Layers::new()
        .add("conv1", conv(vs / "conv1", inputs, width, 1, 1))
        .add("bn1", norm(vs / "bn1", width))
        .add("relu1", Op::ReLU)
        .add("conv2", conv(vs / "conv2", width, width, 3, stride))
        .add("bn2", norm(vs / "bn2", width))
        .add("relu2", Op::ReLU)
        .add("conv3", conv(vs / "conv3", width, 4 * width, 1, 1))
        .add("bn3", norm(vs / "bn3", 4 * width))
}

fn conv(vs: Path, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Op {
    // `Model::new` draws the weights. With zeros, tch does not draw them first.
    let ws_init = nn::Init::Const(0.0);
    let config = nn::ConvConfig { stride, padding: kernel / 2, bias: false, ws_init, ..Default::default() };
    Op::conv(vs, inputs, outputs, kernel, config)
}

fn norm(vs: Path, channels: i64) -> Op {
    Op::norm(vs, channels, Default::default()) // eps 1e-5, momentum 0.1: PyTorch's
}
