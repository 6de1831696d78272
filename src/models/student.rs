//! Students: the article's network, and its smaller and larger relatives for larger images.

use super::{Layers, Op};
use serde::{Deserialize, Serialize};
use std::fmt;
use tch::nn;

/// The article's `Net`: four 3x3 convolutions, two poolings, two linear layers. 264,618 parameters for 10 classes.
///
/// Maps images f32 `[N, 3, S, S]` with `S >= 4` to logits f32 `[N, classes]`. As in the article, there is nothing
/// between the two linear layers. ReLU runs after max-pooling: the two commute, and it then sees a quarter of the
/// values.
pub fn student(vs: &nn::Path, classes: i64) -> Layers {
    Student::Medium.layers(vs, classes, 32)
}

/// A student's size: how many channels its layers have. [`crate::show::student_sizes`] compares parameters and costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Student {
    /// Half the channels of the article's network: a quarter of its weights and multiply-adds.
    Small,
    /// The article's network, [`student`].
    #[default]
    Medium,
    /// Twice the channels of the article's network: four times its weights and multiply-adds.
    Large,
}

impl Student {
    /// The layers that are compared with the teacher's features: the last at a quarter of the sides that `conv1` sees,
    /// and the features.
    pub(crate) const COMPARED_LAYERS: [&str; 2] = ["relu4", "avgpool"];
    pub(crate) const ALL: [Student; 3] = [Student::Small, Student::Medium, Student::Large];

    /// Builds the student for images of `side` pixels. It maps images f32 `[N, 3, S, S]` with `S >= 4` to logits f32
    /// `[N, classes]`.
    ///
    /// For images below 64 pixels it has the layers of the article's network. From 64 on there is a convolution of
    /// stride 2 in front, from 128 on two, and so on: each halves the sides, so that the layers behind see 32 to 63
    /// pixels and the cost does not grow with the area of the image.
    pub fn layers(self, vs: &nn::Path, classes: i64, side: i64) -> Layers {
        let width = match self {
            Student::Small => 32,
            Student::Medium => 64,
            Student::Large => 128,
        };
        let same = nn::ConvConfig { padding: 1, ..Default::default() };
        let halving = nn::ConvConfig { stride: 2, ..same };
        let halved = || Op::MaxPool { kernel: 2, stride: 2, padding: 0 };
        let (mut net, mut channels) = (Layers::new(), 3);
        let stems = (side.max(32) / 32).ilog2();
        for stem in 1..=stems {
            let (name, outputs) = (format!("stem{stem}"), (width >> (stems + 1 - stem)).max(8));
            net = net
                .add(&name, Op::conv(vs / &name, channels, outputs, 3, halving))
                .add(&format!("stem_relu{stem}"), Op::ReLU);
            channels = outputs;
        }
        net.add("conv1", Op::conv(vs / "conv1", channels, width, 3, same))
            .add("relu1", Op::ReLU)
            .add("conv2", Op::conv(vs / "conv2", width, width, 3, same))
            .add("pool1", halved())
            .add("relu2", Op::ReLU)
            .add("conv3", Op::conv(vs / "conv3", width, 2 * width, 3, same))
            .add("relu3", Op::ReLU)
            .add("conv4", Op::conv(vs / "conv4", 2 * width, 2 * width, 3, same))
            .add("pool2", halved())
            .add("relu4", Op::ReLU)
            .add("avgpool", Op::GlobalAvgPool) // [N, 2 * width]
            .add("fc1", nn::linear(vs / "fc1", 2 * width, width / 2, Default::default()))
            .add("fc2", nn::linear(vs / "fc2", width / 2, classes, Default::default()))
    }
}

impl fmt::Display for Student {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Student::Small => "small",
            Student::Medium => "medium",
            Student::Large => "large",
        })
    }
}
