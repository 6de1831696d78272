//! The article's mistakes. Each can be made on purpose, alone, and be compared with the same run without it.
//!
//! Only [`fit_with_mistake`] makes them, and [`crate::train::History::mistake`] says so: no option of a fit does.

use crate::data::shuffled;
use crate::models::Model;
use crate::train::{Criterion, Examples, FitOptions, History, KdLoss, LoopSettings, Task};
use crate::train::{cross_entropy, fit_and_show, soft_targets};
use crate::{Error, Result};
use std::fmt;
use tch::{Kind, Reduction, Tensor};

/// A mistake of the article that changes results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The teacher's outputs are stored by batch number, while the loader shuffles: in every epoch, batch `k` gets
    /// outputs that belong to other images.
    MismatchedTeacher,
    /// `nn.KLDivLoss()` averages over batch *and* classes: with 10 classes, the teacher's term is 10 times too small.
    KlOverClasses,
    /// Every epoch builds a new Adam, whose moments and step count start at zero.
    AdamRebuilt,
    /// `model.train()` is called on a network with a frozen backbone: BatchNorm uses the batch's statistics and updates
    /// the stored ones, although no gradient reaches them.
    BatchNormDrift,
    /// The test split picks the best weights, and its accuracy is reported.
    BestOnTest,
}

impl Mistake {
    /// All mistakes, in the order of the notebook.
    pub const ALL: [Mistake; 5] = [
        Mistake::MismatchedTeacher,
        Mistake::KlOverClasses,
        Mistake::AdamRebuilt,
        Mistake::BatchNormDrift,
        Mistake::BestOnTest,
    ];

    /// The mistake that a fit made on purpose, if it made one.
    pub(crate) fn of(history: &History) -> Option<Mistake> {
        let name = history.mistake.as_deref()?;
        Self::ALL.into_iter().find(|mistake| format!("{mistake:?}") == name)
    }

    /// The training loop that makes this mistake.
    fn settings(self, train: &Examples, options: &FitOptions) -> LoopSettings {
        let mismatched = self == Mistake::MismatchedTeacher;
        LoopSettings {
            mistake: Some(format!("{self:?}")),
            teacher_order: mismatched.then(|| shuffled(train.len(), options.seed, 0)),
            optimizer_per_epoch: self == Mistake::AdamRebuilt,
            frozen_norm_trains: self == Mistake::BatchNormDrift,
            validate_on_test: self == Mistake::BestOnTest,
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mistake::MismatchedTeacher => "teacher outputs of other images",
            Mistake::KlOverClasses => "KL averaged over batch x classes",
            Mistake::AdamRebuilt => "Adam rebuilt each epoch",
            Mistake::BatchNormDrift => "frozen BatchNorm in train mode",
            Mistake::BestOnTest => "best weights picked on test",
        })
    }
}

/// Computes the article's `loss_kd`, in which PyTorch's `nn.KLDivLoss()` with its default reduction takes the mean over
/// batch x classes.
///
/// `student` and `teacher` are logits `[B, C]`, `labels` i64 `[B]`; returns a scalar.
///
/// # Errors
/// When shapes don't fit.
pub fn kd_loss_over_classes(student: &Tensor, labels: &Tensor, teacher: &Tensor, kd: KdLoss) -> Result<Tensor> {
    let (t, alpha) = (kd.temperature(), kd.alpha());
    let log_student = student.f_div_scalar(t)?.f_log_softmax(-1, None::<Kind>)?; // [B, C]
    let kl = log_student.f_kl_div(&soft_targets(teacher, t)?, Reduction::Mean, false)?;
    Ok(kl.f_mul_scalar(alpha * t * t)?.f_add(&cross_entropy(student, labels)?.f_mul_scalar(1.0 - alpha)?)?)
}

/// Refuses a run in which the mistake would have no effect.
fn check(
    mistake: Mistake,
    model: &Model,
    (train, validation): (&Examples, &Examples),
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<()> {
    let no_teacher = criterion.kd_loss().is_none_or(|kd| kd.alpha() == 0.0);
    let lacks = match mistake {
        Mistake::MismatchedTeacher if no_teacher => "a criterion with a teacher and alpha > 0; take Criterion::kd",
        Mistake::MismatchedTeacher if train.is_taught_online() => {
            "logits that were computed once; take Examples::with_teacher"
        }
        Mistake::KlOverClasses if no_teacher || !criterion.is_kd() => "Criterion::kd with alpha > 0",
        Mistake::AdamRebuilt if options.epochs < 2 => "more than one epoch",
        Mistake::BatchNormDrift if !model.has_frozen_norm() => {
            "a network with frozen BatchNorm layers; take Backbone::with_head"
        }
        Mistake::BestOnTest if validation.split_name != "test" => "the test split where fit takes the validation split",
        _ => return Ok(()),
    };
    Err(Error::Input(format!("to show \"{mistake}\" the run needs {lacks}")))
}

/// Runs [`crate::train::fit`] with one mistake of the article. All else is as in `fit`: first weights, order of
/// batches.
///
/// Give the run a folder of its own. [`History::mistake`] has the name of the mistake.
///
/// # Errors
/// As `fit`, and when the mistake would have no effect in this run; the message says what the run needs.
pub fn fit_with_mistake(
    mistake: Mistake,
    model: &mut Model,
    train: &Examples,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<History> {
    check(mistake, model, (train, validation), criterion, options)?;
    let over_classes = criterion
        .kd_loss()
        .filter(|_| mistake == Mistake::KlOverClasses)
        .map(|kd| Criterion::try_soft(criterion.name(), kd, kd_loss_over_classes));
    let criterion = over_classes.as_ref().unwrap_or(criterion);
    let settings = mistake.settings(train, options);
    fit_and_show(&settings, Task { model, train, validation, criterion, options })
}
