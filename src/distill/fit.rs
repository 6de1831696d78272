//! The one training loop: teacher head, student alone and student distilled differ only in examples and criterion.

use super::checkpoint::{Checkpoint, Snapshot};
use super::evaluate::{Sums, Ticker, check_classes, validate};
use super::teaching::Defect;
use super::{Adam, Control, Criterion, EpochRecord, Event, Examples, History, KdLoss};
use crate::files::{digest, digest_tensors};
use crate::models::{Mode, Model};
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
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
    /// Where checkpoint, best weights and history are kept; none keeps nothing on disk.
    pub folder: Option<PathBuf>,
    /// Stop, and temperature and alpha while the fit runs.
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
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return Err(Error::Input(format!("learning rate must be > 0, got {}; try 1e-3", self.learning_rate)));
        }
        Ok(())
    }
}

/// Trains `model` on `train` and returns the curve; `model` ends with the weights of the best validation epoch.
///
/// One Adam lives through all epochs. With a folder, each epoch is checkpointed, and calling `fit` again with the same
/// model, data and options goes on where a killed or stopped run ended, with the history of an unbroken one. A finished
/// run is not continued: it is trained anew. A run of other settings in that folder is renamed, not overwritten.
///
/// The test split is refused as `validation`: weights that it picked would be flattered by it.
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
    fit_as(None, model, train, validation, criterion, options)
}

/// [`fit`], or with the one mistake that [`super::teaching::fit_with_defect`] asks for.
pub(super) fn fit_as(
    defect: Option<Defect>,
    model: &mut Model,
    train: &Examples,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<History> {
    options.check()?;
    let kd = criterion.kd_loss();
    if validation.split_name == "test" && defect != Some(Defect::BestOnTest) {
        return Err(Error::Input(
            "the test split was given for validation: it would pick the best weights and flatter them; give the \
             validation split and evaluate on test once, at the end"
                .into(),
        ));
    }
    check_fit(model, train, validation, criterion)?;
    let mut adam = Adam::new(model.trainable())?;
    let checkpoint = match &options.folder {
        Some(folder) => {
            Some(Checkpoint::new(folder, fingerprint(defect, model, train, validation, criterion, options)?))
        }
        None => None,
    };
    let mut history = History {
        name: options.name.clone(),
        criterion: criterion.name().to_owned(),
        data_key: train.key().to_owned(),
        epochs: options.epochs,
        records: Vec::new(),
        stopped: None,
        defect,
    };
    let mut best = Snapshot::of(model)?;
    if let Some((resumed, snapshot, (temperature, alpha))) =
        checkpoint.as_ref().map(|c| c.resume(model, &mut adam)).transpose()?.flatten()
    {
        (history, best) = (resumed, snapshot);
        history.stopped = None;
        if let Some(t) = temperature {
            options.control.set_temperature(t)?;
        }
        if let Some(a) = alpha {
            options.control.set_alpha(a)?;
        }
        options.listener.tell(Event::Resumed { name: options.name.clone(), epoch: history.records.len() });
    }
    if let Some(folder) = checkpoint.as_ref().map(Checkpoint::set_aside_other).transpose()?.flatten() {
        options.listener.tell(Event::SetAside { name: options.name.clone(), folder });
    }
    // A stop that was asked for before this fit began is not meant for it.
    options.control.take_stop();

    for epoch in history.records.len() + 1..=options.epochs {
        let start = Instant::now();
        if defect == Some(Defect::AdamRebuilt) {
            adam = Adam::new(model.trainable())?;
        }
        let trained = train_epoch(defect, model, &mut adam, train, criterion, options, epoch);
        let (metrics, images_per_second) = match trained {
            Ok(Some(done)) => done,
            Ok(None) => {
                history.stopped = options.control.take_stop();
                break;
            }
            Err(e) => {
                best.restore(model)?;
                return Err(e);
            }
        };
        let now = kd.map(|kd| options.control.apply(kd)).transpose()?;
        let measured = validate(model, validation, criterion, now, options.batch_size)?;
        if !measured.loss.is_finite() {
            best.restore(model)?;
            return Err(diverged(options, measured.loss, &format!("on the validation split after epoch {epoch}")));
        }
        let record = EpochRecord {
            epoch,
            train: metrics,
            validation: measured,
            learning_rate: options.learning_rate,
            temperature: now.map(|kd| kd.temperature()),
            alpha: now.map(|kd| kd.alpha()),
            seconds: start.elapsed().as_secs_f64(),
            images_per_second,
        };
        if history.best().is_none_or(|b| record.better_than(b)) {
            best = Snapshot::of(model)?;
        }
        history.records.push(record);
        if let Some(checkpoint) = &checkpoint {
            checkpoint.save(model, &best, &adam, &history, options.control.live())?;
        }
        options.listener.tell(Event::Epoch { name: options.name.clone(), record, epochs: options.epochs });
    }
    best.restore(model)?;
    options.listener.tell(Event::Finished(history.clone()));
    Ok(history)
}

/// None when a stop was asked for.
fn train_epoch(
    defect: Option<Defect>,
    model: &Model,
    adam: &mut Adam,
    train: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
    epoch: usize,
) -> Result<Option<(super::Metrics, f64)>> {
    // Order and dropout depend on seed and epoch alone: a resumed epoch draws what the unbroken one drew.
    tch::manual_seed((options.seed as i64).wrapping_mul(1_000_003).wrapping_add(epoch as i64));
    let order = crate::data::shuffled(train.len(), options.seed, epoch as u64);
    let mut sums = Sums::new(model.device(), criterion.kd_loss().is_some())?;
    let mut ticker = Ticker::epoch(&options.name, epoch, options.epochs, train.len());
    let batches = crate::data::batches(&order, options.batch_size)?;
    // Whose logits each batch is given: its own.
    let teachers = match defect {
        Some(Defect::MismatchedTeacher) => {
            let once = crate::data::shuffled(train.len(), options.seed, 0);
            crate::data::batches(&once, options.batch_size)?
        }
        _ => batches.clone(),
    };
    let mode = if defect == Some(Defect::BatchNormDrift) { Mode::TrainingFrozenToo } else { Mode::Training };
    for (indices, teachers) in batches.iter().zip(&teachers) {
        if options.control.stopping().is_some() {
            return Ok(None);
        }
        let kd: Option<KdLoss> = criterion.kd_loss().map(|kd| options.control.apply(kd)).transpose()?;
        let batch = train.batch_with_teacher_of(indices, teachers, model.device())?;
        let logits = model.forward_in(&batch.inputs, mode)?; // [B, C]
        let loss = criterion.loss(&logits, &batch, kd)?;
        adam.zero_grad();
        loss.f_backward()?;
        adam.step(options.learning_rate)?;
        sums.add(&loss, &logits, &batch, kd)?;
        // Looking at the loss waits for the device, so it is done only when something is shown.
        if let Some(mut progress) = ticker.advance(indices.len()) {
            let loss = sums.metrics()?.loss;
            if !loss.is_finite() {
                let place = format!("in epoch {epoch} at image {} of {}", progress.done, progress.total);
                return Err(diverged(options, loss, &place));
            }
            progress.loss = Some(loss);
            options.listener.tell(Event::Progress(progress));
        }
    }
    Ok(Some((sums.metrics()?, ticker.images_per_second())))
}

fn diverged(options: &FitOptions, loss: f64, place: &str) -> Error {
    Error::Diverged(format!(
        "{}: the loss became {loss} {place}; the best weights so far were put back; try a learning rate below {}",
        options.name, options.learning_rate
    ))
}

/// Everything that would fail in the first batch, said before it.
fn check_fit(model: &Model, train: &Examples, validation: &Examples, criterion: &Criterion) -> Result<()> {
    let probe = train.batch(&[0], model.device())?;
    let logits = no_grad(|| model.forward(&probe.inputs, false))?;
    check_classes(&logits, &train.labels())?;
    check_classes(&logits, &validation.labels())?;
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
    }
    Ok(())
}

fn fingerprint(
    defect: Option<Defect>,
    model: &Model,
    train: &Examples,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<String> {
    let settings = format!(
        "{defect:?} {} {:?} {} {} {} {}",
        criterion.name(),
        criterion.kd_loss(),
        options.epochs,
        options.batch_size,
        options.learning_rate,
        options.seed
    );
    let weights = digest_tensors(&model.state())?;
    Ok(digest(&[settings.as_bytes(), weights.as_bytes(), train.key().as_bytes(), validation.key().as_bytes()]))
}
