//! Profiles: all sizes and lengths of a run in one place. A cell may change each field.

use crate::data::Framing;
use crate::models::{Arch, Student};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Sizes and lengths of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `article`, `laptop` or `smoke`: the name of the folder of its results.
    pub name: String,
    /// The teacher's backbone.
    pub arch: Arch,
    /// Number of training images, drawn with equal shares of each class; `None` takes all.
    pub train_images: Option<usize>,
    /// The same for validation images.
    pub validation_images: Option<usize>,
    /// The same for test images.
    pub test_images: Option<usize>,
    /// How the images of a folder become squares.
    pub framing: Framing,
    /// Side in pixels to which the teacher's images are resized.
    pub teacher_size: i64,
    /// The students of a sweep: small, medium (the article's) or large.
    pub student: Student,
    /// Side in pixels of the student's images.
    pub student_size: i64,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Epochs of the teacher's head, at least 1.
    pub teacher_epochs: usize,
    /// Epochs of a student outside sweeps, at least 1.
    pub student_epochs: usize,
    /// Learning rate of the teacher's head, above 0.
    pub teacher_learning_rate: f64,
    /// Learning rate of a student, above 0.
    pub student_learning_rate: f64,
    /// Temperature of notebook 4, above 0.
    pub temperature: f64,
    /// Weight of the teacher in notebook 4, in [0, 1].
    pub alpha: f64,
    /// Epochs of each student in a sweep.
    pub sweep_epochs: usize,
    /// Side in pixels of the students' images in a sweep and in notebook 5.
    pub sweep_size: i64,
    /// Decides which images are taken, first weights and the order of batches.
    pub seed: u64,
}

impl Profile {
    /// The article's run with its student at 32 px, for a CUDA device.
    pub(crate) fn article() -> Self {
        Self {
            name: "article".into(),
            arch: Arch::ResNet50,
            train_images: None,
            validation_images: None,
            test_images: None,
            framing: Framing::Squeeze,
            teacher_size: 224, // what ResNet-50 was trained on
            student: Student::Medium,
            student_size: 32, // CIFAR-10's own size; at 224 the student costs more than its teacher
            batch_size: 64,
            teacher_epochs: 10,
            student_epochs: 20,
            teacher_learning_rate: 1e-3, // Adam's default, as in the article
            student_learning_rate: 1e-3,
            temperature: 1.0,
            alpha: 0.5,
            sweep_epochs: 20,
            sweep_size: 32,
            seed: 0,
        }
    }

    /// Notebooks 0 to 7 in twenty minutes on two CPU cores, in less where they multiply bf16 in hardware.
    pub(crate) fn laptop() -> Self {
        Self {
            name: "laptop".into(),
            arch: Arch::EfficientNetLite0,
            train_images: Some(5_000),
            validation_images: Some(1_000),
            test_images: Some(2_000),
            teacher_size: 128, // a quarter of the cost of 224 for a few points of accuracy
            student_epochs: 8, // half a minute to a minute where bf16 is multiplied in hardware
            sweep_epochs: 6,
            sweep_size: 16, // a quarter of the cost of 32
            ..Self::article()
        }
    }

    /// Seconds per notebook. It shows that everything runs; its accuracies mean nothing.
    pub(crate) fn smoke() -> Self {
        Self {
            name: "smoke".into(),
            train_images: Some(300),
            validation_images: Some(100),
            test_images: Some(100),
            teacher_size: 64,
            teacher_epochs: 2,
            student_epochs: 2,
            sweep_epochs: 1,
            sweep_size: 8,
            ..Self::laptop()
        }
    }

    /// The profile that `KDLAB_PROFILE` names, otherwise `article` on CUDA and `laptop` elsewhere.
    pub(crate) fn detect(cuda: bool) -> Result<Self> {
        match variable("KDLAB_PROFILE").as_deref() {
            Some("article") => Ok(Self::article()),
            Some("laptop") => Ok(Self::laptop()),
            Some("smoke") => Ok(Self::smoke()),
            Some(other) => {
                Err(Error::Input(format!("no profile named {other:?}; KDLAB_PROFILE may be article, laptop or smoke")))
            }
            None => Ok(if cuda { Self::article() } else { Self::laptop() }),
        }
    }
}

/// The text of an environment variable; `None` if it is unset or empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}
