//! The one training loop: teacher head, student alone and student distilled differ only in examples and criterion.

use super::checkpoint::{Checkpoint, Resumed, Snapshot};
use super::control::check_learning_rate;
use super::evaluate::validate;
use super::loss::check_classes;
use super::metrics::Sums;
use super::progress::Ticker;
use super::{Adam, Change, Control, Criterion, EpochRecord, Event, Examples, History, Metrics, Settings};
use crate::models::{Mode, Model, Precision};
use crate::store::digest::digest;
use crate::store::tensors::digest_tensors;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::no_grad;

type Hear = dyn Fn(&Event) + Send + Sync;

/// Who hears what a fit reports. The default hears nothing.
#[derive(Clone, Default)]
pub struct Listener(Option<Arc<Hear>>);

impl Listener {
    pub fn new(hear: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hear)))
    }

    /// Passes an event on, for a listener that wraps another.
    pub fn hear(&self, event: &Event) {
        if let Some(hear) = &self.0 {
            hear(event);
        }
    }

    pub(super) fn tell(&self, event: Event) {
        self.hear(&event);
    }
}

/// How to fit. Every field has a default; override what you like.
#[derive(Clone)]
pub struct FitOptions {
    /// Stands in the history and in every event.
    pub name: String,
    pub epochs: usize,
    pub batch_size: usize,
    /// Adam's; the article keeps Adam's default of 1e-3.
    pub learning_rate: f64,
    /// Order of the batches. The same seed gives the same run on the same CPU.
    pub seed: u64,
    /// Of all passes through the model, in training and in validation.
    pub precision: Precision,
    /// Where checkpoint, best weights and history are kept; none keeps nothing on disk.
    pub folder: Option<PathBuf>,
    /// Stop, pause, and temperature, alpha and learning rate while the fit runs.
    pub control: Control,
    pub listener: Listener,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            name: "fit".into(),
            epochs: 20,
            batch_size: 64,
            learning_rate: 1e-3,
            seed: 0,
            precision: Precision::F32,
            folder: None,
            control: Control::new(),
            listener: Listener::default(),
        }
    }
}

impl FitOptions {
    fn check(&self) -> Result<()> {
        if self.batch_size == 0 {
            return Err(Error::Input("batch size must be at least 1, got 0; the article uses 64".into()));
        }
        if self.epochs == 0 {
            return Err(Error::Input("epochs must be at least 1, got 0".into()));
        }
        check_learning_rate(self.learning_rate)?;
        // Its folder bears its name, or one that the caller chose.
        if let Some(folder) = &self.folder {
            check_name(&self.name)?;
            if ["cache", "sweeps"].iter().any(|kept| self.name == *kept && folder.ends_with(kept)) {
                return Err(Error::Input(format!(
                    "{:?} is the name of a folder that the lab keeps for itself; give the fit another name",
                    self.name
                )));
            }
        }
        Ok(())
    }

    /// What a fit of this criterion begins with when nothing was set by hand.
    pub(super) fn settings(&self, criterion: &Criterion) -> Settings {
        let kd = criterion.kd_loss();
        Settings {
            temperature: kd.map(|kd| kd.temperature()),
            alpha: kd.map(|kd| kd.alpha()),
            learning_rate: self.learning_rate,
        }
    }

    /// The history of a fit that has done nothing yet.
    pub(super) fn history(&self, criterion: &Criterion, train: &Examples) -> History {
        History {
            name: self.name.clone(),
            criterion: criterion.name().to_owned(),
            data_key: train.key().to_owned(),
            epochs: self.epochs,
            records: Vec::new(),
            stopped: None,
            defect: None,
            changes: Vec::new(),
        }
    }
}

/// Trains `model` on `train` and returns the curve; `model` ends with the weights of the best validation epoch.
///
/// One Adam lives through all epochs. With a folder, each epoch is checkpointed, and calling `fit` again with the same
/// model, data and options goes on where a killed or stopped run ended, with the history of an unbroken one. A finished
/// run is not continued: it is trained again, and kept until the new one is finished. A run of other settings in that
/// folder is renamed, not overwritten.
///
/// The variables move in memory: a transpose or a view of one that was taken before keeps the old numbers. Take it
/// inside the layer that uses it.
///
/// The test split is refused: weights that it picked or shaped would be flattered by it.
///
/// On the live kernel, Interrupt ends it like a stop of its [`Control`]: after the current batch, with the best weights
/// so far (those it began with, if no epoch was finished) and `stopped` in the history.
///
/// Errors leave the model usable: a loss that is no longer finite puts the best weights so far back, and the finished
/// epochs stay in `history.json`.
pub fn fit(
    model: &mut Model,
    train: &Examples,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<History> {
    in_foreground(options, || fit_as(&LoopSettings::default(), model, train, validation, criterion, options))
}

/// Runs a fit in the cell that asked for it: Interrupt stops it.
pub(crate) fn in_foreground(options: &FitOptions, fit: impl FnOnce() -> Result<History>) -> Result<History> {
    // A stop that was asked for before this fit began is not meant for it.
    options.control.take_stop();
    let control = options.control.clone();
    let watch = kdlab_client::watch(&options.name, move |reason| control.stop(reason));
    if let Some(code) = kept_as(options) {
        watch.afterwards(&code);
    }
    fit()
}

/// Code that shows what a fit left on disk.
fn kept_as(options: &FitOptions) -> Option<String> {
    let folder = options.folder.as_ref()?;
    let parent = folder.parent()?;
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    match parent.parent().and_then(name) {
        Some(kept) if kept == "sweeps" => Some(format!("lab.sweep_report({:?})?", name(parent)?)),
        _ => Some(format!("curves(&[&lab.history({:?})?])?", name(folder)?)),
    }
}

/// Choices of the training loop itself. The defaults are correct; [`crate::study::mistakes`] fills in others.
#[derive(Default)]
pub(crate) struct LoopSettings {
    /// Name of what deviates from correct training: part of the history and of the checkpoint's fingerprint.
    pub defect: Option<String>,
    /// Order of sample indices from which each batch takes its teacher logits by batch number; `None` takes those of the
    /// batch's own samples.
    pub teacher_order: Option<Vec<i64>>,
    /// Builds a new optimizer in every epoch.
    pub optimizer_per_epoch: bool,
    /// Puts frozen BatchNorm layers in training mode too.
    pub frozen_norm_trains: bool,
    /// Accepts the test split for validation.
    pub validate_on_test: bool,
}

/// [`fit`] with other loop settings.
pub(crate) fn fit_as(
    settings: &LoopSettings,
    model: &Model,
    train: &Examples,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<History> {
    let _end = OnPanic(options);
    let done = run(settings, model, train, validation, criterion, options);
    if let Err(e) = &done {
        options.listener.tell(Event::Failed { name: options.name.clone(), error: e.to_string() });
    }
    done
}

/// Tells the listener of a fit whose network or loss panicked, so that nothing stays open.
struct OnPanic<'a>(&'a FitOptions);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.listener.tell(Event::Failed { name: self.0.name.clone(), error: "it panicked".into() });
        }
    }
}

fn run(
    settings: &LoopSettings,
    model: &Model,
    train: &Examples,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<History> {
    options.check()?;
    if validation.split_name == "test" && !settings.validate_on_test {
        return Err(Error::Input(
            "the test split was given for validation: it would pick the best weights and flatter them; give the \
             validation split and evaluate on test once, at the end"
                .into(),
        ));
    }
    if train.split_name == "test" {
        return Err(Error::Input(
            "the test split was given to train on: afterwards nothing is left that says how good the model is; give the \
             train split"
                .into(),
        ));
    }
    if options.folder.is_some() && options.name == "teacher" && criterion.kd_loss().is_some() {
        return Err(Error::Input(
            "\"teacher\" is the name of the teacher's own fit; give the student another name".into(),
        ));
    }
    check_fit(model, train, validation, criterion)?;
    let resident = (train.resident(model.device())?, validation.resident(model.device())?);
    let (train, validation) = (resident.0.as_ref().unwrap_or(train), resident.1.as_ref().unwrap_or(validation));
    let mut adam = Adam::new(model.trainable())?;
    let checkpoint = match &options.folder {
        Some(folder) => {
            let fingerprint = fingerprint(settings.defect.as_deref(), model, train, validation, criterion, options)?;
            Some(Checkpoint::new(folder, fingerprint, probe(model, train, criterion, options)?))
        }
        None => None,
    };
    let mut history = History { defect: settings.defect.clone(), ..options.history(criterion, train) };
    let mut best = Snapshot::of(model)?;
    let mut unmeasured = None;
    if let Some(Resumed { history: resumed, best: snapshot, unmeasured: trained, by_hand }) =
        checkpoint.as_ref().map(|c| c.resume(model, &mut adam)).transpose()?.flatten()
    {
        let [temperature, alpha, learning_rate] = by_hand;
        (history, best, unmeasured) = (resumed, snapshot, trained);
        history.stopped = None;
        temperature.map_or(Ok(()), |t| options.control.set_temperature(t))?;
        alpha.map_or(Ok(()), |a| options.control.set_alpha(a))?;
        learning_rate.map_or(Ok(()), |l| options.control.set_learning_rate(l))?;
    }
    if let Some(folder) = checkpoint.as_ref().map(Checkpoint::set_aside_other).transpose()?.flatten() {
        options.listener.tell(Event::SetAside { name: options.name.clone(), folder });
    }
    let begun = options.settings(criterion);
    let now = options.control.over(begun);
    let done = history.records.len() as f64;
    let changed = history.changes.last().filter(|change| change.epoch > done).map(|change| change.after);
    let in_force = changed.or(history.records.last().map(EpochRecord::settings)).unwrap_or(now);
    options.listener.tell(Event::Started { history: history.clone(), settings: now });

    let mut training = Training { settings, model, train, criterion, options, adam, history, begun, in_force };
    for epoch in training.history.records.len() + 1..=options.epochs {
        if settings.optimizer_per_epoch {
            training.adam = Adam::new(model.trainable())?;
        }
        // An epoch that was stopped while it was measured is not trained twice.
        let trained = match unmeasured.take().map_or_else(|| training.epoch(epoch), |trained| Ok(Some(trained))) {
            Ok(Some(done)) => done,
            Ok(None) => {
                training.history.stopped = options.control.take_stop();
                // Before anything else: whoever finds the folder must not take the run for a finished one.
                if let Some(checkpoint) = &checkpoint {
                    checkpoint.save_stop(&training.history)?;
                }
                break;
            }
            Err(e) => {
                best.restore(model)?;
                return Err(e);
            }
        };
        let (now, measuring) = (training.settings_at(epoch as f64), Instant::now());
        let Some(measured) = validate(model, validation, criterion, now.kd_loss()?, options)? else {
            training.history.stopped = options.control.take_stop();
            if let Some(checkpoint) = &checkpoint {
                checkpoint.save_stop(&training.history)?;
                let by_hand = options.control.by_hand();
                checkpoint.save(model, &best, &training.adam, &training.history, Some(&trained), by_hand)?;
            }
            break;
        };
        if !measured.loss.is_finite() {
            best.restore(model)?;
            return Err(training.diverged(measured.loss, &format!("on the validation split after epoch {epoch}")));
        }
        let record = EpochRecord {
            epoch,
            train: trained.metrics,
            validation: measured,
            learning_rate: now.learning_rate,
            temperature: now.temperature,
            alpha: now.alpha,
            seconds: trained.seconds + measuring.elapsed().as_secs_f64(),
            images_per_second: trained.images_per_second,
        };
        if training.history.best().is_none_or(|b| record.better_than(b)) {
            best = Snapshot::of(model)?;
        }
        training.history.records.push(record);
        if let Some(checkpoint) = &checkpoint {
            checkpoint.save(model, &best, &training.adam, &training.history, None, options.control.by_hand())?;
        }
        options.listener.tell(Event::Epoch { name: options.name.clone(), record, epochs: options.epochs });
    }
    best.restore(model)?;
    options.listener.tell(Event::Finished(training.history.clone()));
    Ok(training.history)
}

/// A fit while it runs.
struct Training<'a> {
    settings: &'a LoopSettings,
    model: &'a Model,
    train: &'a Examples,
    criterion: &'a Criterion,
    options: &'a FitOptions,
    adam: Adam,
    history: History,
    /// In force where nothing is set by hand.
    begun: Settings,
    in_force: Settings,
}

/// What an epoch of training came to.
#[derive(Serialize, Deserialize)]
pub(super) struct Trained {
    metrics: Metrics,
    images_per_second: f64,
    /// Without pauses.
    seconds: f64,
}

impl Training<'_> {
    /// The values in force from here on. A change is put on record, and told at once.
    fn settings_at(&mut self, epoch: f64) -> Settings {
        let now = self.options.control.over(self.begun);
        if now != self.in_force {
            let change = Change { epoch, before: self.in_force, after: now };
            self.history.changes.push(change);
            self.in_force = now;
            self.options.listener.tell(Event::Changed { name: self.options.name.clone(), change });
        }
        now
    }

    /// None when a stop was asked for.
    fn epoch(&mut self, epoch: usize) -> Result<Option<Trained>> {
        let Training { settings, model, train, criterion, options, .. } = *self;
        let start = Instant::now();
        // Order and dropout depend on seed and epoch alone: a resumed epoch draws what the unbroken one drew.
        tch::manual_seed((options.seed as i64).wrapping_mul(1_000_003).wrapping_add(epoch as i64));
        let order = crate::data::shuffled(train.len(), options.seed, epoch as u64);
        let mut sums = Sums::new(model.device(), criterion.kd_loss().is_some())?;
        let mut ticker = Ticker::epoch(&options.name, epoch, options.epochs, train.len());
        let batches = crate::data::batches(&order, options.batch_size)?;
        let teachers = match &settings.teacher_order {
            Some(order) => crate::data::batches(order, options.batch_size)?,
            None => batches.clone(),
        };
        let views = train.draw_views(options.seed, epoch);
        let mode = if settings.frozen_norm_trains { Mode::TrainingFrozenToo } else { Mode::Training };
        let (mut done, mut paused) = (0, Duration::ZERO);
        for (indices, teachers) in batches.iter().zip(&teachers) {
            let idle = options.control.wait_while_paused();
            ticker.skip(idle);
            paused += idle;
            if options.control.stopping().is_some() {
                return Ok(None);
            }
            let now = self.settings_at((epoch - 1) as f64 + done as f64 / train.len() as f64);
            let kd = now.kd_loss()?;
            let batch = train.batch_in(indices, teachers, views.as_ref(), model.device())?;
            let logits = model.forward_in(&batch.inputs, mode, options.precision)?; // [B, C]
            let loss = criterion.loss(&logits, &batch, kd)?;
            if self.adam.is_new() {
                criterion.check_teacher(&loss, &logits, &batch, kd)?;
            }
            self.adam.backward_step(&loss, now.learning_rate)?;
            sums.add(&loss, &logits, &batch, kd)?;
            done += indices.len();
            // Looking at the loss waits for the device, so it is done only when something is shown.
            if let Some(mut progress) = ticker.advance(indices.len()) {
                let metrics = sums.metrics()?;
                if !metrics.loss.is_finite() {
                    let place = format!("in epoch {epoch} at image {} of {}", progress.done, progress.total);
                    return Err(self.diverged(metrics.loss, &place));
                }
                progress.metrics = Some(metrics);
                options.listener.tell(Event::Progress(progress));
            }
        }
        let (metrics, images_per_second) = (sums.metrics()?, ticker.images_per_second());
        Ok(Some(Trained { metrics, images_per_second, seconds: start.elapsed().saturating_sub(paused).as_secs_f64() }))
    }

    fn diverged(&self, loss: f64, place: &str) -> Error {
        Error::Diverged(format!(
            "{}: the loss became {loss} {place}; the best weights so far were put back; {}",
            self.options.name,
            self.likely_cause()
        ))
    }

    /// Why a loss is no longer finite, as far as it can be seen from here.
    fn likely_cause(&self) -> String {
        let extremes = self.train.batch(&[0], self.model.device()).ok().and_then(|batch| {
            let logits = batch.teacher.as_ref()?;
            let value = |t: tch::Tensor| t.f_double_value(&[]).ok();
            Some((value(logits.f_min().ok()?)?, value(logits.f_max().ok()?)?))
        });
        if extremes.is_some_and(|(_, highest)| !highest.is_finite()) {
            "the teacher's logits are not finite: compute them again, and look at its weights".into()
        } else if extremes.is_some_and(|(lowest, _)| !lowest.is_finite()) {
            "the teacher rules classes out by logits of -inf, of which mean and deviation are not finite; take the method \
             kd instead of standardised-kd"
                .into()
        } else {
            match self.in_force.learning_rate {
                large if large > 0.01 => format!("try a learning rate of 0.001, it was {large:e}"),
                rate => format!("try a learning rate below {rate}"),
            }
        }
    }
}

/// Everything that would fail in the first batch, said before it.
fn check_fit(model: &Model, train: &Examples, validation: &Examples, criterion: &Criterion) -> Result<()> {
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
                "{}: {name} holds numbers that are not finite before the first step; make the model again, or load other weights",
                model.name
            )));
        }
    }
    let probe = train.batch(&[0], model.device())?;
    let logits = no_grad(|| model.forward(&probe.inputs, false))?;
    check_classes(&logits, &train.labels())?;
    check_classes(&logits, &validation.labels())?;
    if train.is_partly_labelled() && criterion.needs_all_labels() {
        return Err(Error::Input(format!(
            "criterion {} looks at the label of every image, and some have none; take Criterion::kd, or train on \
             split.select(...) of those that have one",
            criterion.name()
        )));
    }
    if criterion.kd_loss().is_some() {
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
        let batch = train.batch(&(0..train.len().min(8) as i64).collect::<Vec<_>>(), model.device())?;
        criterion.check_labels(&no_grad(|| model.forward(&batch.inputs, false))?, &batch)?;
    }
    Ok(())
}

/// Changes with everything that a fit depends on.
pub(crate) fn fingerprint(
    defect: Option<&str>,
    model: &Model,
    train: &Examples,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<String> {
    let defect = defect.map_or("None".to_owned(), |name| format!("Some({name})"));
    let settings = format!(
        "{defect} {} {:?} {} {} {} {} {}",
        criterion.name(),
        criterion.kd_loss(),
        options.epochs,
        options.batch_size,
        options.learning_rate,
        options.seed,
        options.precision
    );
    let weights = digest_tensors(&model.state())?;
    Ok(digest(&[settings.as_bytes(), weights.as_bytes(), train.key().as_bytes(), validation.key().as_bytes()]))
}

/// Whether a fit's name can be the name of its folder.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let wrong = if name.is_empty() {
        "is empty"
    } else if name.starts_with('.') {
        "begins with a dot"
    } else if name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        "holds a slash or a control character"
    } else if name.len() > 200 {
        "is longer than 200 bytes"
    } else {
        return Ok(());
    };
    Err(Error::Input(format!("the name of a fit is the name of its folder, and {name:?} {wrong}; try \"student\"")))
}

/// What network and loss come to on a few images, before any step: a fingerprint that also sees an edited function,
/// whose name and weights are the same as before.
fn probe(model: &Model, train: &Examples, criterion: &Criterion, options: &FitOptions) -> Result<Vec<f64>> {
    let indices: Vec<i64> = (0..train.len().min(8) as i64).collect();
    tch::manual_seed(options.seed as i64);
    no_grad(|| {
        let batch = train.batch(&indices, model.device())?;
        let logits = model.forward(&batch.inputs, false)?;
        let loss = criterion.loss(&logits, &batch, criterion.kd_loss())?;
        let mut found = Vec::<f64>::try_from(logits.f_select(0, 0)?.f_flatten(0, -1)?.f_to_kind(tch::Kind::Double)?)?;
        found.push(loss.f_double_value(&[])?);
        Ok(found)
    })
}
