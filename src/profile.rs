//! Profiles: all sizes and lengths of a run in one place. A cell may change each field.

use crate::models::Arch;
use crate::{Error, Result};

/// Sizes and lengths of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    pub name: String,
    /// The teacher's backbone.
    pub arch: Arch,
    /// Number of training images, drawn with equal shares of each class; `None` takes all.
    pub train_images: Option<usize>,
    pub validation_images: Option<usize>,
    pub test_images: Option<usize>,
    /// Side in pixels to which the teacher's images are resized.
    pub teacher_size: i64,
    /// Side in pixels of the student's images.
    pub student_size: i64,
    pub batch_size: usize,
    pub teacher_epochs: usize,
    pub student_epochs: usize,
    pub teacher_learning_rate: f64,
    pub student_learning_rate: f64,
    pub temperature: f64,
    pub alpha: f64,
    /// Epochs of each student in a sweep.
    pub sweep_epochs: usize,
    /// Side in pixels of the students' images in a sweep and in notebook 5.
    pub sweep_size: i64,
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
            teacher_size: 224, // what ResNet-50 was trained on
            student_size: 32,  // CIFAR-10's own size; at 224 the student costs more than its teacher
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

    /// Notebooks 1 to 5 in under ten minutes on two CPU cores.
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

    /// The profile of a name: `article`, `laptop` or `smoke`.
    fn named(name: &str) -> Result<Self> {
        match name {
            "article" => Ok(Self::article()),
            "laptop" => Ok(Self::laptop()),
            "smoke" => Ok(Self::smoke()),
            other => {
                Err(Error::Input(format!("no profile named {other:?}; KDLAB_PROFILE may be article, laptop or smoke")))
            }
        }
    }

    /// The profile that `KDLAB_PROFILE` names, otherwise `article` on CUDA and `laptop` elsewhere.
    pub(crate) fn detect(cuda: bool) -> Result<Self> {
        match std::env::var("KDLAB_PROFILE") {
            Ok(name) if !name.is_empty() => Self::named(&name),
            _ => Ok(if cuda { Self::article() } else { Self::laptop() }),
        }
    }
}
