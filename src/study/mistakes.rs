//! The article's mistakes, one at a time and on purpose: what they do is seen best beside the same run without them.
//!
//! Nothing else in the crate makes them. No option switches one on: a run has a mistake when it was started by
//! [`fit_with_defect`], and its history says so.

pub use crate::train::{Defect, kd_loss_over_classes};

use crate::models::Model;
use crate::train::{Criterion, Examples, FitOptions, History, fit_as, in_foreground};
use crate::{Error, Result};

/// Refuses a run in which the mistake would change nothing.
fn check(
    defect: Defect,
    model: &Model,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<()> {
    let unheard = criterion.kd_loss().is_none_or(|kd| kd.alpha() == 0.0);
    let lacks = match defect {
        Defect::MismatchedTeacher if unheard => "a criterion with a teacher and alpha > 0; take Criterion::kd",
        Defect::KlOverClasses if unheard || !criterion.is_kd() => "Criterion::kd with alpha > 0",
        Defect::AdamRebuilt if options.epochs < 2 => "more than one epoch",
        Defect::BatchNormDrift if !model.has_frozen_norm() => {
            "a network with frozen BatchNorm layers; take Backbone::with_head"
        }
        Defect::BestOnTest if validation.split_name != "test" => "the test split where fit takes the validation split",
        _ => return Ok(()),
    };
    Err(Error::Input(format!("to show \"{defect}\" the run needs {lacks}")))
}

/// [`super::fit`] with one mistake of the article in it; everything else, the seeds too, is as in `fit`.
///
/// Write it into `options.folder` of its own: the history carries the mistake in [`History::defect`].
///
/// # Errors
/// As `fit`, and when the mistake could not show in this run: the message says what it needs.
pub fn fit_with_defect(
    defect: Defect,
    model: &mut Model,
    train: &Examples,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<History> {
    check(defect, model, validation, criterion, options)?;
    let over_classes = criterion.kd_loss().filter(|_| defect == Defect::KlOverClasses).map(Criterion::kd_over_classes);
    let criterion = over_classes.as_ref().unwrap_or(criterion);
    in_foreground(options, || fit_as(Some(defect), model, train, validation, criterion, options))
}
