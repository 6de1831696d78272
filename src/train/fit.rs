//! The training loop. The fits of a teacher's head, of a student alone and of a distilled student differ only in their
//! examples and criterion.

use super::checkpoint::{Checkpoint, Claim, Resumed, Snapshot};
use super::checks::{Task, cause_of_divergence, check_fit, check_splits, fingerprint, probe};
use super::evaluate::validate;
use super::features::FeatureTerm;
use super::hyperparameters::Overrides;
use super::loss::HardLabels;
use super::metrics::Sums;
use super::progress::Ticker;
use super::record::{StoppedEpoch, TrainedEpoch, UnfinishedEpoch};
use super::{
    Change, Criterion, EpochRecord, Event, Examples, FitOptions, Group, History, Hyperparameters, Listener, Metrics,
    Optimizer,
};
use crate::data::dropout_seed;
use crate::models::{Mode, Model};
use crate::store::tensors::digest_tensors;
use crate::store::threads::Threads;
use crate::{Error, Result};
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// Choices of the training loop itself. The defaults are correct; [`crate::study::mistakes`] fills in others.
#[derive(Default)]
pub(crate) struct LoopSettings {
    /// Name of what deviates from correct training: part of the history and of the checkpoint's fingerprint.
    pub mistake: Option<String>,
    /// Fixed order of samples: batch k gets the teacher's logits for the k-th batch of this order. With `None`, each
    /// sample gets the logits that belong to it.
    pub teacher_order: Option<Vec<i64>>,
    /// Builds a new optimizer in every epoch.
    pub optimizer_per_epoch: bool,
    /// Puts frozen BatchNorm layers in training mode too.
    pub frozen_norm_trains: bool,
    /// Accepts the test split for validation.
    pub validate_on_test: bool,
}

/// Trains `model` on `train` and returns the curve. `model` ends with the weights of the best validation epoch; with
/// [`Recipe::average`](super::Recipe::average), with their moving average at that epoch.
///
/// With a folder, the fit writes a checkpoint after each epoch and when it is stopped. A later call with the same
/// model, data and options continues it, after the last batch of a fit that was stopped and after the last epoch of one
/// that was killed, and ends with the same weights as an unbroken run. After a finished run, training starts
/// anew; the old files stay until the new run has finished. A run of other settings in that folder is renamed, not
/// overwritten. While another process or thread trains in that folder, the fit waits for it, and stderr says for whom;
/// if that was the same fit, this one returns its result.
///
/// In a [group](FitOptions::group) of processes, each computes its part of every batch, and the results are those of
/// one process up to rounding, for losses that are means over the images. Rank 0 writes the files and reports progress,
/// of its own part within an epoch. A stop of any process ends the fit on all.
///
/// On the live kernel, Interrupt ends the fit as [`super::Control::stop`] does: after the current batch. The model then
/// has the best weights so far, or its first weights if no epoch was finished, and the history says why in `stopped`.
///
/// # Errors
/// When options, examples, criterion and model do not fit each other, and when the test split was given to train or to
/// validate on. Also when the loss is no longer finite: the model then has the best weights so far, and `history.json`
/// keeps the finished epochs.
pub fn fit(
    model: &mut Model,
    train: &Examples,
    validation: &Examples,
    criterion: &Criterion,
    options: &FitOptions,
) -> Result<History> {
    fit_and_show(&LoopSettings::default(), Task { model, train, validation, criterion, options })
}

/// Runs a fit in the cell that asked for it, and names code that shows its curve to a page that did not see the fit.
pub(crate) fn fit_and_show(settings: &LoopSettings, task: Task) -> Result<History> {
    let folder = task.options.folder.as_ref().and_then(|folder| folder.file_name());
    let curve = folder.map(|name| format!("curves(&[&lab.history({:?})?])?", name.to_string_lossy()));
    in_foreground(settings, task, curve.as_deref())
}

/// Runs a fit in the cell that asked for it: Interrupt stops it. `afterwards` is code that shows the result.
fn in_foreground(settings: &LoopSettings, task: Task, afterwards: Option<&str>) -> Result<History> {
    let options = task.options;
    // A stop from before this fit began is not meant for it.
    options.control.take_stop();
    let control = options.control.clone();
    let watch = kdlab_client::watch(&options.name, move |reason| control.stop(reason));
    if let Some(code) = afterwards {
        watch.afterwards(code);
    }
    fit_with(settings, task)
}

/// Runs a fit, and tells its listener when it fails.
pub(crate) fn fit_with(settings: &LoopSettings, task: Task) -> Result<History> {
    let silent = FitOptions { listener: Listener::default(), ..task.options.clone() };
    let options = if task.options.rank() == 0 { task.options } else { &silent };
    let task = Task { options, ..task };
    let _on_panic = OnPanic(options);
    let on_gpu = task.model.device().is_cuda();
    let done = run(settings, task);
    if on_gpu {
        // libtorch keeps the memory of what is dropped, and others may share the GPU.
        let _ = crate::native::release_gpu_memory();
    }
    if let Err(e) = &done {
        options.listener.notify(&Event::Failed { name: options.name.clone(), error: e.to_string() });
    }
    done
}

/// Tells the listener when a network or a loss panics, so that it closes its display.
struct OnPanic<'a>(&'a FitOptions);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.listener.notify(&Event::Failed { name: self.0.name.clone(), error: "it panicked".into() });
        }
    }
}

fn run(settings: &LoopSettings, task: Task) -> Result<History> {
    let Task { model, train, validation, criterion, options } = task;
    let (name, listener, control) = (&options.name, &options.listener, &options.control);
    options.check()?;
    check_splits(&task, settings.validate_on_test)?;
    let Some(claim) = Claim::take(options)? else { return Ok(stopped_before(&task)) };
    let threads = share_of(model);
    check_fit(&task)?;
    let resident = (train.resident(model.device())?, validation.resident(model.device())?);
    let (train, validation) = (resident.0.as_ref().unwrap_or(train), resident.1.as_ref().unwrap_or(validation));
    let task = Task { train, validation, ..task };
    let hard = HardLabels::new(&options.recipe, model.kind(), model.device())?;
    let features = criterion.features();
    let new_term = |(method, layer)| FeatureTerm::new(method, layer, model, train, options.seed);
    let features = features.map(new_term).transpose()?;
    let mut optimizer = Optimizer::new(&options.recipe, all_trainable(model, features.as_ref()))?;
    let identity = || fingerprint(settings.mistake.as_deref(), &task);
    if let Some(group) = &options.group {
        check_same(group, &identity()?, "model, data or options: give all of them the same")?;
    }
    let mut checkpoint = match &options.folder {
        Some(folder) => Some(Checkpoint::new(folder, identity()?, probe(&task, &hard)?)),
        None => None,
    };
    let mut history = History { mistake: settings.mistake.clone(), ..options.history(criterion, train) };
    let mut best = Snapshot::of(model)?;
    let (mut average, mut unfinished) = (None, None);
    if let Some(checkpoint) = &checkpoint
        // If the same fit has just ended elsewhere, this one ends with its result.
        && let Some(resumed) = checkpoint.resume(claim.waited, model, &mut optimizer, &projected(features.as_ref()))?
    {
        let mut overrides;
        Resumed { history, best, average, unfinished, overrides } = resumed;
        history.stopped = None;
        // Values that the user has set since the stop override those of the checkpoint.
        overrides.update(control.overrides());
        control.set(overrides)?;
    }
    if let Some(group) = &options.group {
        let begun = format!("{} {}", history.records.len(), digest_tensors(&model.state())?);
        check_same(group, &begun, "checkpoint: give all of them one folder that all see (KDLAB_RUNS names the lab's)")?;
        // Only now, because all have read the folder.
        checkpoint = checkpoint.filter(|_| group.rank() == 0);
    }
    if let Some(folder) = checkpoint.as_ref().map_or(Ok(None), Checkpoint::set_aside_other)? {
        listener.notify(&Event::SetAside { name: name.clone(), folder });
    }
    let own = options.hyperparameters(criterion);
    let now = options.agreed()?.1.over(own);
    let done = history.records.len() as f64;
    // A change during the validation of an epoch was recorded at the end of that epoch.
    let changed = history.changes.last().filter(|change| change.epoch >= done).map(|change| change.after);
    let in_force = changed.or(history.records.last().map(|record| record.hyperparameters)).unwrap_or(now);
    listener.notify(&Event::Started { history: history.clone(), hyperparameters: now });

    let mut training = Training {
        settings,
        task,
        threads,
        hard,
        features,
        checkpoint,
        optimizer,
        history,
        best,
        average,
        own,
        in_force,
    };
    let ended = training.epochs(unfinished);
    training.best.restore(model)?;
    ended?;
    if let Some(group) = &options.group {
        // The files are on disk when any of them returns.
        group.wait()?;
    }
    listener.notify(&Event::Finished(training.history.clone()));
    Ok(training.history)
}

/// The history of a fit that was stopped while another one had its folder.
fn stopped_before(task: &Task) -> History {
    let stopped = task.options.control.take_stop();
    let history = History { stopped, ..task.options.history(task.criterion, task.train) };
    task.options.listener.notify(&Event::Finished(history.clone()));
    history
}

/// The share of the cores for a fit of this model.
fn share_of(model: &Model) -> Option<Threads> {
    (model.device() == Device::Cpu).then(Threads::take)
}

/// Refuses a group whose processes would train different things.
fn check_same(group: &Group, text: &str, what: &str) -> Result<()> {
    match group.is_same(text)? {
        true => Ok(()),
        false => Err(Error::Input(format!("the processes of the group do not begin with the same {what}"))),
    }
}

/// Everything that learns: the model's variables, and the projection of its features.
fn all_trainable(model: &Model, features: Option<&FeatureTerm>) -> Vec<(String, Tensor)> {
    let mut all = model.trainable();
    all.extend(projected(features));
    all
}

/// Weights of the projection of features, if there is one.
fn projected(features: Option<&FeatureTerm>) -> Vec<(String, Tensor)> {
    features.and_then(|term| term.projection.as_ref()).map_or_else(Vec::new, |projection| projection.state())
}

/// State of a running fit.
struct Training<'a> {
    settings: &'a LoopSettings,
    task: Task<'a>,
    /// Its share of the cores; `None` on a GPU.
    threads: Option<Threads>,
    hard: HardLabels,
    features: Option<FeatureTerm>,
    checkpoint: Option<Checkpoint>,
    optimizer: Optimizer,
    history: History,
    best: Snapshot,
    /// Moving average of the weights from the first step on, where the recipe has one.
    average: Option<Snapshot>,
    /// Values of options and criterion; they hold where the user set none.
    own: Hyperparameters,
    in_force: Hyperparameters,
}

impl Training<'_> {
    /// Runs the epochs that are left, or fewer if the user stops the fit or its patience ends. `unfinished` is the
    /// epoch in which an earlier run was stopped.
    fn epochs(&mut self, mut unfinished: Option<UnfinishedEpoch>) -> Result<()> {
        let (settings, Task { model, options, .. }) = (self.settings, self.task);
        for epoch in self.history.records.len() + 1..=options.epochs {
            if self.history.is_over() {
                break;
            }
            if settings.optimizer_per_epoch && unfinished.is_none() {
                self.optimizer = Optimizer::new(&options.recipe, all_trainable(model, self.features.as_ref()))?;
            }
            let done = match unfinished.take() {
                Some(UnfinishedEpoch::Trained(done)) => UnfinishedEpoch::Trained(done),
                Some(UnfinishedEpoch::Stopped(begun)) => self.train(epoch, Some(begun))?,
                None => self.train(epoch, None)?,
            };
            let UnfinishedEpoch::Trained(done) = done else { return self.stop(done) };
            let measuring = Instant::now();
            let now = self.hyperparameters_at(epoch as f64, options.agreed()?.1);
            let Some(measured) = self.validate(now)? else {
                return self.stop(UnfinishedEpoch::Trained(done));
            };
            if !measured.loss.is_finite() {
                return Err(self.diverged(measured.loss, &format!("on the validation split after epoch {epoch}")));
            }
            let record = EpochRecord {
                epoch,
                train: done.metrics,
                validation: measured,
                hyperparameters: now,
                seconds: done.seconds + measuring.elapsed().as_secs_f64(),
                images_per_second: done.images_per_second,
            };
            if self.history.best().is_none_or(|best| record.better_than(best)) {
                self.best = self.average.as_ref().map_or_else(|| Snapshot::of(model), Snapshot::copy)?;
            }
            self.history.records.push(record);
            self.save(None)?;
            options.listener.notify(&Event::Epoch { name: options.name.clone(), record, epochs: options.epochs });
        }
        Ok(())
    }

    /// Measures the weights' average, or the weights themselves where there is none; `None` when the user stopped it.
    fn validate(&self, now: Hyperparameters) -> Result<Option<Metrics>> {
        let Task { model, validation, criterion, options, .. } = self.task;
        let measure = || validate(model, validation, criterion, now.kd_loss()?, &self.hard, options);
        let Some(average) = &self.average else { return measure() };
        let weights = Snapshot::of(model)?;
        average.restore(model)?;
        let measured = measure();
        weights.restore(model)?;
        measured
    }

    /// Ends the fit early, in this epoch.
    fn stop(&mut self, epoch: UnfinishedEpoch) -> Result<()> {
        self.history.stopped = self.task.options.control.take_stop();
        if let Some(checkpoint) = &self.checkpoint {
            // Written before the checkpoint, so that a kill in between cannot leave a run that looks finished.
            checkpoint.save_stop(&self.history)?;
        }
        match &epoch {
            // The checkpoint of the epoch before is as far, or the fit has failed and nobody has noticed.
            UnfinishedEpoch::Stopped(part) if part.batches == 0 || part.sums.iter().any(|sum| !sum.is_finite()) => {
                Ok(())
            }
            _ => self.save(Some(&epoch)),
        }
    }

    fn save(&self, unfinished: Option<&UnfinishedEpoch>) -> Result<()> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        let overrides = self.task.options.control.overrides();
        let (best, average, projection) = (&self.best, self.average.as_ref(), projected(self.features.as_ref()));
        checkpoint.save(
            self.task.model,
            best,
            average,
            &projection,
            &self.optimizer,
            &self.history,
            unfinished,
            overrides,
        )
    }

    /// The values in force from here on, of which the user set some. Records and reports a change.
    fn hyperparameters_at(&mut self, epoch: f64, set: Overrides) -> Hyperparameters {
        let options = self.task.options;
        let now = set.over(self.own);
        if now != self.in_force {
            let change = Change { epoch, before: self.in_force, after: now };
            self.history.changes.push(change);
            self.in_force = now;
            options.listener.notify(&Event::Changed { name: options.name.clone(), change });
        }
        now
    }

    /// Waits while the user has paused the fit, and leaves its share of the cores to others meanwhile.
    fn wait_while_paused(&mut self) -> Duration {
        let control = &self.task.options.control;
        if control.is_paused() {
            self.threads = None;
        }
        let pause = control.wait_while_paused();
        if self.threads.is_none() {
            self.threads = share_of(self.task.model);
        }
        pause
    }

    /// Takes as many threads as its share of the cores has now, and records another number than before.
    fn follow_share(&mut self, epochs: f64) -> Option<usize> {
        let now = self.threads.as_mut().map(Threads::look)?;
        if self.history.threads.last().is_none_or(|(_, before)| *before != now) {
            self.history.threads.push((epochs, now));
        }
        Some(now)
    }

    /// Trains one epoch, or what is left of one that was `begun`.
    fn train(&mut self, epoch: usize, begun: Option<StoppedEpoch>) -> Result<UnfinishedEpoch> {
        let (settings, Task { model, train, criterion, options, .. }) = (self.settings, self.task);
        let start = Instant::now();
        // Order and dropout depend on seed, epoch and batch alone, so a resumed run draws the same numbers as an
        // unbroken one.
        let order = crate::data::shuffled(train.len(), options.seed, epoch as u64);
        let (device, with_teacher) = (model.device(), criterion.kd_loss().is_some());
        let mut sums = match &begun {
            Some(begun) if options.rank() == 0 => Sums::resumed(device, with_teacher, &begun.sums)?,
            _ => Sums::new(device, with_teacher)?,
        };
        let mut ticker = Ticker::epoch(&options.name, epoch, options.epochs, train.len());
        let batches = crate::data::batches(&order, options.batch_size)?;
        let teachers = match &settings.teacher_order {
            Some(order) => crate::data::batches(order, options.batch_size)?,
            None => batches.clone(),
        };
        let draws = train.draw(options.seed, epoch);
        let (plan, soft_share) = (self.history.plan(), criterion.soft_share(epoch));
        let mode = if settings.frozen_norm_trains { Mode::TrainingFrozenToo } else { Mode::Training };
        let (first, before) = begun.map_or((0, 0.0), |begun| (begun.batches.min(batches.len()), begun.seconds));
        let (mut done, mut paused) = (batches[..first].iter().map(Vec::len).sum(), Duration::ZERO);
        ticker.resume(done, before);
        for (batch_number, (indices, teachers)) in batches.iter().zip(&teachers).enumerate().skip(first) {
            let pause = self.wait_while_paused();
            ticker.skip(pause);
            paused += pause;
            let (stopped, set) = options.agreed()?;
            if stopped {
                let (batches, sums) = (batch_number, sums.values(options.group.as_ref())?);
                let seconds = before + start.elapsed().saturating_sub(paused).as_secs_f64();
                return Ok(UnfinishedEpoch::Stopped(StoppedEpoch { batches, sums, seconds }));
            }
            // Dropout differs between the parts of a batch, as it does between its images.
            tch::manual_seed(dropout_seed(options.seed, epoch as u64, batch_number as u64, options.rank() as u64));
            let epochs = (epoch - 1) as f64 + done as f64 / train.len() as f64;
            let threads = self.follow_share(epochs);
            let now = self.hyperparameters_at(epochs, set);
            let kd = now.kd_loss()?;
            train.read_ahead(batches.get(batch_number + 1).map(|next| options.part(next)), Some(&draws));
            let (share, step) = (options.share(indices.len()), Some((&draws, batch_number)));
            let batch = train.part_in(indices, teachers, step, &share, &self.hard, model.device())?;
            let (logits, tapped) = match &self.features {
                Some(term) => {
                    let (logits, tapped) = model.forward_to(&batch.inputs, mode, options.precision, &term.layer)?;
                    (logits, Some((term, tapped)))
                }
                None => (model.forward_in(&batch.inputs, mode, options.precision)?, None),
            }; // [B, C]
            let mut loss = criterion.loss(&logits, &batch, kd, &self.hard, soft_share)?;
            if self.optimizer.is_new() {
                criterion.check_terms(&loss, &logits, &batch, kd)?;
            }
            if let Some(((term, student), teacher)) = tapped.zip(batch.features.as_ref()) {
                loss = loss.f_add(&term.loss(&student, teacher)?)?;
            }
            let factor = plan.factor((epoch - 1) * batches.len() + batch_number);
            let weighted = if share.weight == 1.0 { loss.shallow_clone() } else { loss.f_mul_scalar(share.weight)? };
            self.optimizer.backward_step(&weighted, now.learning_rate * factor, options.group.as_ref())?;
            if let Some(decay) = options.recipe.average {
                match &self.average {
                    Some(average) => average.approach(model, 1.0 - decay)?,
                    None => self.average = Some(Snapshot::of(model)?),
                }
            }
            if share.weight > 0.0 {
                sums.add(&loss, &logits, &batch, kd)?;
            }
            done += indices.len();
            // Reading the loss waits for the device, so the loop reads it only when progress is due.
            if let Some(mut progress) = ticker.advance(indices.len(), threads).filter(|_| options.rank() == 0) {
                let metrics = sums.metrics(None)?;
                if !metrics.loss.is_finite() {
                    let place = format!("in epoch {epoch} at image {} of {}", progress.done, progress.total);
                    return Err(self.diverged(metrics.loss, &place));
                }
                progress.metrics = Some(metrics);
                options.listener.notify(&Event::Progress(progress));
            }
        }
        let (metrics, images_per_second) = (sums.metrics(options.group.as_ref())?, ticker.images_per_second());
        let seconds = before + start.elapsed().saturating_sub(paused).as_secs_f64();
        Ok(UnfinishedEpoch::Trained(TrainedEpoch { metrics, images_per_second, seconds }))
    }

    fn diverged(&self, loss: f64, place: &str) -> Error {
        Error::Diverged(format!(
            "{}: the loss became {loss} {place}; the best weights so far were put back; {}",
            self.task.options.name,
            cause_of_divergence(self.task.train, self.task.model, self.in_force.learning_rate)
        ))
    }
}
