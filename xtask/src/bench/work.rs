//! What can be measured, and the task that describes it to all sides.

use clap::ValueEnum;
use serde_json::{Value, json};

/// One measurement of the bench.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum What {
    /// An epoch of the student at 32 px
    Student32,
    /// An epoch of the student at 224 px
    Student224,
    /// The teacher stage of ten epochs, EfficientNet-Lite0 at 224 px
    TeacherLite0,
    /// The teacher stage of ten epochs, ResNet-50 at 224 px
    TeacherResnet50,
    /// One pass of EfficientNet-Lite0 over a split
    FeaturesLite0,
    /// One pass of ResNet-50 over a split
    FeaturesResnet50,
    /// CIFAR-10 from disk to memory
    Data,
    /// Cells of a notebook: from a key press to the answer
    Cells,
    /// Notebook 5: from a changed temperature to its curve
    Tweak,
    /// A teacher and its student on four runtimes: libtorch, tract, onnxruntime, a browser; trains both first
    Devices,
    /// Fits of a sweep in a minute: one after the other, side by side, and on Dask's workers
    Sweep,
    /// What each optimisation gains: kdlab with one thing changed at a time
    Levers,
    /// The student's epoch against images, size, batch size and classes, with fitted lines
    Growth,
    /// Several fits at once, and one beside busy programs: what each reaches of its fair share
    Crowd,
    /// The caches and the loop's data path with a million images
    Million,
}

impl What {
    /// What is measured if the command names nothing.
    pub const USUAL: [What; 9] = [
        What::Student32,
        What::Student224,
        What::TeacherLite0,
        What::TeacherResnet50,
        What::FeaturesLite0,
        What::FeaturesResnet50,
        What::Data,
        What::Cells,
        What::Tweak,
    ];

    /// Returns the name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Returns the task that all sides read. A GPU gets more images.
    pub fn task(self, cuda: bool) -> Value {
        let scale = if cuda { 32 } else { 1 };
        let sized = |workload: &str, size: u64, train: u64, arch: Option<&str>| {
            json!({"workload": workload, "size": size, "batch": 64, "train": scale * train,
                "validation": scale * train / 4, "arch": arch, "temperature": 4.0, "alpha": 0.5, "epochs": 10})
        };
        match self {
            What::Student32 => sized("student", 32, 1024, None),
            What::Student224 => sized("student", 224, 64, None),
            What::TeacherLite0 => sized("teacher", 224, 128, Some("efficientnet-lite0")),
            What::TeacherResnet50 => sized("teacher", 224, 192, Some("resnet50")),
            What::FeaturesLite0 => sized("features", 224, 128, Some("efficientnet-lite0")),
            What::FeaturesResnet50 => sized("features", 224, 64, Some("resnet50")),
            _ => json!({"workload": self.name(), "train": 100, "validation": 100}),
        }
    }
}

/// How to measure.
pub struct Options {
    pub rounds: u64,
    pub threads: usize,
    pub cuda: bool,
    pub compile: bool,
    pub f32: bool,
}
