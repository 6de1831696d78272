//! Checks before the first step of a fit, and the digest by which a later run recognises it.

use super::loss::{HardLabels, check_classes};
use super::{Criterion, Examples, FeatureMethod, FitOptions};
use crate::models::Model;
use crate::store::digest::digest;
use crate::store::tensors::digest_tensors;
use crate::{Error, Result};
use tch::{Kind, no_grad};

/// A fit to be run: what is trained, on which examples, and how.
#[derive(Clone, Copy)]
pub(crate) struct Task<'a> {
    pub model: &'a Model,
    pub train: &'a Examples,
    pub validation: &'a Examples,
    pub criterion: &'a Criterion,
    pub options: &'a FitOptions,
}

/// The samples on which losses and networks are tried out.
fn first_samples(examples: &Examples) -> Vec<i64> {
    (0..examples.len().min(8) as i64).collect()
}

/// Refuses the test split for training and validation, and the teacher's name for a student.
pub(super) fn check_splits(task: &Task, validate_on_test: bool) -> Result<()> {
    let Task { train, validation, criterion, options, .. } = *task;
    if validation.split_name == "test" && !validate_on_test {
        return Err(Error::Input(
            "the test split was given for validation: it would pick the best weights and flatter them; give the \
             validation split and evaluate on test once, at the end"
                .into(),
        ));
    }
    if train.split_name == "test" {
        return Err(Error::Input(
            "the test split was given to train on: afterwards nothing is left that says how good the model is; give \
             the train split"
                .into(),
        ));
    }
    if options.folder.is_some() && options.name == "teacher" && criterion.kd_loss().is_some() {
        return Err(Error::Input(
            "\"teacher\" is the name of the teacher's own fit; give the student another name".into(),
        ));
    }
    Ok(())
}

/// Refuses what would fail in the first batch, with a message in the user's terms.
pub(super) fn check_fit(task: &Task) -> Result<()> {
    let Task { model, train, validation, criterion, options } = *task;
    if model.trainable().is_empty() {
        return Err(Error::Input(format!(
            "{}: every variable is frozen, so there is nothing to train; call unfreeze(), or freeze_except(\"fc.\") to \
             train that part alone",
            model.name
        )));
    }
    for (name, weights) in model.trainable() {
        if weights.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::Input(format!(
                "{}: {name} holds numbers that are not finite before the first step; make the model again, or load \
                 other weights",
                model.name
            )));
        }
    }
    let logits = no_grad(|| model.forward(&train.batch(&[0], model.device())?.inputs, false))?;
    check_classes(&logits, &train.labels())?;
    check_classes(&logits, &validation.labels())?;
    options.recipe.check_classes(logits.size()[1])?;
    criterion.check(options.epochs)?;
    if options.recipe.changes_hard_loss() && criterion.is_own() {
        return Err(Error::Input(format!(
            "criterion {} computes its own cross-entropy, so label smoothing and class weights of the recipe would do \
             nothing: leave them out, and give them to cross_entropy_loss in your function",
            criterion.name()
        )));
    }
    if train.is_partly_labelled() && criterion.needs_all_labels() {
        return Err(Error::Input(format!(
            "criterion {} looks at the label of every image, and some have none; take Criterion::kd, or train on \
             split.select(...) of those that have one",
            criterion.name()
        )));
    }
    if train.mixes() {
        check_mixup(task)?;
    }
    if options.group.is_some() {
        check_parts(task)?;
    }
    if criterion.kd_loss().is_none() {
        return Ok(());
    }
    let classes = logits.size()[1];
    for (name, examples) in [("train", train), ("validation", validation)] {
        match examples.teacher_classes() {
            Some(c) if c == classes => {}
            Some(c) => {
                return Err(Error::Input(format!(
                    "the teacher has {c} classes and the student {classes}; give both the dataset's number of classes"
                )));
            }
            None => {
                return Err(Error::Input(format!(
                    "criterion {} needs a teacher, but the {name} examples carry no logits; add with_teacher(&logits)",
                    criterion.name()
                )));
            }
        }
    }
    Ok(())
}

/// Refuses mixup where an image could not have two labels, or there is nothing to mix it with.
fn check_mixup(task: &Task) -> Result<()> {
    let Task { train, criterion, options, .. } = *task;
    let wrong = |what: String| Err(Error::Input(what));
    if criterion.takes_one_label() {
        return wrong(format!(
            "mixup gives every image two labels, and criterion {} takes one hard label: take Criterion::kd and a \
             teacher that judges each batch (taught_by), or Criterion::mixed_cross_entropy() for both labels without a \
             teacher",
            criterion.name()
        ));
    }
    if train.is_partly_labelled() {
        return wrong(
            "mixup mixes the labels of two images, and some images have none: leave mixup out, or train on \
             split.select(...) of those that have one"
                .into(),
        );
    }
    if options.batch_size == 1 {
        return wrong(
            "mixup mixes the images of a batch, and a batch has 1 image: take a batch size of 2 or more".into(),
        );
    }
    Ok(())
}

/// Refuses what needs the whole batch in one process.
fn check_parts(task: &Task) -> Result<()> {
    let Task { model, train, criterion, .. } = *task;
    let wrong = |what: String| Err(Error::Input(what));
    if let Some(norm) = model.learning_norm() {
        return wrong(format!(
            "{}: the BatchNorm {norm} would take its statistics from this process's part of each batch, so the \
             result would depend on the number of processes: freeze it (freeze_except(\"fc.\") trains the head alone), \
             build the network with group or layer normalisation, or train in one process",
            model.name
        ));
    }
    if train.mixes() {
        return wrong(
            "mixup mixes images of the whole batch, and each process of a group has a part of it: leave mixup out, or \
             train in one process"
                .into(),
        );
    }
    if let Some((FeatureMethod::Relational { .. }, _)) = criterion.features() {
        return wrong(
            "relational distillation compares all images of a batch, and each process of a group has a part of them: \
             take hint or attention, or train in one process"
                .into(),
        );
    }
    Ok(())
}

/// Digest of everything that a fit depends on.
pub(crate) fn fingerprint(mistake: Option<&str>, task: &Task) -> Result<String> {
    let Task { model, train, validation, criterion, options } = *task;
    let mistake = mistake.map_or("None".to_owned(), |name| format!("Some({name})"));
    let mut settings = format!(
        "{mistake} {} {:?} {} {} {} {} {}",
        criterion.name(),
        criterion.kd_loss(),
        options.epochs,
        options.batch_size,
        options.learning_rate,
        options.seed,
        options.precision
    );
    // Fits of the default recipe keep the fingerprint that they had before there were others.
    settings += &options.recipe.key();
    settings += &criterion.key();
    let weights = digest_tensors(&model.state())?;
    Ok(digest(&[settings.as_bytes(), weights.as_bytes(), train.key().as_bytes(), validation.key().as_bytes()]))
}

/// Logits of the first sample and the loss of a few, before any step. They change when the user edits the code of the
/// network or the loss, which the fingerprint does not see.
pub(super) fn probe(task: &Task, hard: &HardLabels) -> Result<Vec<f64>> {
    let Task { model, train, criterion, options, .. } = *task;
    tch::manual_seed(options.seed as i64);
    no_grad(|| {
        let batch = train.batch(&first_samples(train), model.device())?;
        let logits = model.forward(&batch.inputs, false)?;
        let loss = criterion.loss(&logits, &batch, criterion.kd_loss(), hard, 1.0)?;
        let mut found = Vec::<f64>::try_from(logits.f_select(0, 0)?.f_flatten(0, -1)?.f_to_kind(Kind::Double)?)?;
        found.push(loss.f_double_value(&[])?);
        Ok(found)
    })
}

/// The likely cause of a loss that is not finite.
pub(super) fn cause_of_divergence(train: &Examples, model: &Model, learning_rate: f64) -> String {
    let extremes = train.batch(&[0], model.device()).ok().and_then(|batch| {
        let logits = batch.teacher().ok()?;
        let value = |t: tch::Tensor| t.f_double_value(&[]).ok();
        Some((value(logits.f_min().ok()?)?, value(logits.f_max().ok()?)?))
    });
    match extremes {
        Some((_, highest)) if !highest.is_finite() => {
            "the teacher's logits are not finite: compute them again, and look at its weights".into()
        }
        Some((lowest, _)) if !lowest.is_finite() => {
            "the teacher rules classes out by logits of -inf, of which mean and deviation are not finite; take the \
             method kd instead of standardised-kd"
                .into()
        }
        _ if learning_rate > 0.01 => format!("try a learning rate of 0.001, it was {learning_rate:e}"),
        _ => format!("try a learning rate below {learning_rate}"),
    }
}
