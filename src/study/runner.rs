//! Runs a sweep: every fit of its grid that is not on disk yet, one after the other.

use super::grid::{Augmentation, Setting, Sweep, TeacherLabels};
use super::report::mean;
use super::{Corrected, SweepReport, SweepRun};
use crate::data::{Dataset, Split, Transform, Views};
use crate::error::lock;
use crate::models::{Backbone, Layers, Model, head};
use crate::store::atomic::try_lock;
use crate::store::digest::digest;
use crate::train::{
    CachedTensor, Criterion, Evaluation, Event, Examples, FitOptions, KdLoss, Listener, Pass, Progress, UNLABELLED,
    evaluate, fingerprint, fit, teacher_logits, view_logits,
};
use crate::{Error, Result};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tch::{Device, Tensor, nn};

/// A batch in evaluation, where only memory limits it.
const EVALUATION_BATCH: usize = 256;

/// Where a sweep stands.
#[derive(Clone, Debug)]
pub struct SweepNow {
    /// The run that goes on; none when all are done.
    pub run: Option<String>,
    /// It is the `number`th of `total`, from 1.
    pub number: usize,
    pub total: usize,
    /// Of a fit, or of the teacher's pass over all views.
    pub progress: Option<Progress>,
    /// Of all that is left; none before anything is known.
    pub seconds_left: Option<f64>,
}

/// What all runs of a sweep share.
pub struct SweepInputs<'a> {
    pub data: &'a Dataset,
    pub device: Device,
    pub profile: &'a str,
    pub backbone: &'a Backbone,
    /// The teacher's head, trained on all labels.
    pub head: &'a Model,
    /// As the backbone sees images.
    pub teacher_transform: &'a Transform,
    pub train_features: &'a CachedTensor,
    pub validation_features: &'a CachedTensor,
    /// How heads are trained on the student's labels.
    pub head_options: &'a FitOptions,
    /// The student's network.
    pub student: &'a dyn Fn(&nn::Path) -> Layers,
    /// Where logits of views are kept.
    pub cache: &'a Path,
}

/// Hears of a sweep a few times a second.
pub type SweepListener = Arc<dyn Fn(&SweepReport, &SweepNow) + Send + Sync>;

impl Sweep {
    /// Makes every run that `folder` does not hold yet, and gives them all. It may be killed and called again: a run
    /// that was cut short goes on after its last epoch, and runs of equal settings are taken from there, whatever grid
    /// they were made for.
    ///
    /// Interrupt ends it, on the live kernel: what is done is given, with `stopped` set.
    ///
    /// # Errors
    /// When a value is out of its range, and as [`fit`].
    pub fn run(&self, inputs: &SweepInputs, folder: &Path, tell: &SweepListener) -> Result<SweepReport> {
        let data = inputs.data;
        self.check(data.classes.len())?;
        let ground = Ground::new(self, inputs)?;
        let _ours = lock_folder(&self.name, folder)?;
        let path = folder.join("sweep.json");
        let before = SweepReport::runs_before(folder)?;
        let report = SweepReport {
            sweep: self.clone(),
            profile: inputs.profile.to_owned(),
            data: data.name.clone(),
            images: ground.split.len(),
            runs: Vec::new(),
            stopped: None,
        };
        let state = Arc::new(Mutex::new(report));
        let pass = Pass::new(&self.name);
        let all = self.all_runs();
        let mut spent = Vec::new();
        let mut teachers = Teachers { sweep: self, ground: &ground, own: Vec::new(), views: None };
        for (i, (setting, seed)) in all.iter().enumerate() {
            if let Some(reason) = pass.asked() {
                lock(&state).stopped = Some(reason);
                break;
            }
            let name = format!("{setting}-seed{seed}");
            // Each run left takes as long as those so far did.
            let later = mean(&spent).map(|seconds: f64| seconds * (all.len() - i - 1) as f64);
            let now = SweepNow {
                run: Some(name.clone()),
                number: i + 1,
                total: all.len(),
                progress: None,
                seconds_left: later,
            };
            let (known, hear) = (Arc::clone(&state), Arc::clone(tell));
            let listener = Listener::new(move |event| {
                if let Event::Progress(progress) = event {
                    let seconds_left = now.seconds_left.map(|later| later + progress.seconds_left);
                    let now = SweepNow { progress: Some(progress.clone()), seconds_left, ..now.clone() };
                    let report = lock(&known).clone();
                    hear(&report, &now);
                }
            });
            let begun = Instant::now();
            match teachers.run(setting, *seed, &name, &folder.join(&name), listener, &before).or_else(interrupted)? {
                Done::Before(run) => lock(&state).runs.push(run),
                Done::Now(run) => {
                    spent.push(begun.elapsed().as_secs_f64());
                    run.save(&folder.join(&name))?;
                    let mut report = lock(&state);
                    report.runs.push(*run);
                    report.save(&path, &before)?;
                    drop(report);
                    // Of use only to go on with.
                    let _ = std::fs::remove_file(folder.join(&name).join("checkpoint.safetensors"));
                }
                Done::Stopped(reason) => {
                    lock(&state).stopped = Some(reason);
                    break;
                }
            }
        }
        let report = lock(&state).clone();
        report.save(&path, &before)?;
        let number = report.runs.len();
        tell(&report, &SweepNow { run: None, number, total: all.len(), progress: None, seconds_left: None });
        Ok(report)
    }
}

/// What is the same for all seeds and settings.
struct Ground<'a> {
    inputs: &'a SweepInputs<'a>,
    /// The images that students are trained on.
    split: Split,
    features: CachedTensor,
    logits: CachedTensor,
    validation_logits: CachedTensor,
    transform: Transform,
    test: Examples,
    views: Views,
}

impl<'a> Ground<'a> {
    fn new(sweep: &Sweep, inputs: &'a SweepInputs<'a>) -> Result<Self> {
        let SweepInputs { data, head, train_features, validation_features, .. } = inputs;
        let taken = match sweep.images {
            Some(n) if n == 0 || n > data.train.len() => {
                return Err(Error::Input(format!("sweep {}: {n} images of {}", sweep.name, data.train.len())));
            }
            Some(n) => n,
            None => data.train.len(),
        };
        let labels = Vec::<i64>::try_from(data.train.labels()?)?;
        let kept: Vec<i64> = (0..taken as i64).filter(|&i| Some(labels[i as usize]) != sweep.omitted).collect();
        let split = data.train.select(&kept)?;
        let features = train_features.select(&data.train, &kept)?;
        let logits = teacher_logits(head, &split, &features, None)?;
        let validation_logits = teacher_logits(head, &data.validation, validation_features, None)?;
        let transform = Transform::imagenet(sweep.size);
        let test = Examples::images(&data.test, &transform)?;
        let views = Views::cross(sweep.shift)?;
        Ok(Self { inputs, split, features, logits, validation_logits, transform, test, views })
    }

    /// The labels that the student gets with this seed: which images have one, and all labels, wrong ones among them.
    fn told(&self, setting: &Setting, seed: u64) -> Result<(Vec<i64>, Tensor)> {
        Ok((self.split.labelled_subset(setting.labelled, seed)?, self.split.noisy_labels(setting.noise, seed)?))
    }

    /// The labelled images again and again, as many as there are images.
    fn repeated(&self, told: &[i64]) -> Vec<i64> {
        told.iter().copied().cycle().take(self.split.len()).collect()
    }

    fn validation(&self, logits: &CachedTensor) -> Result<Examples> {
        Examples::images(&self.inputs.data.validation, &self.transform)?.with_teacher(logits)
    }
}

/// Two sweeps that write one folder would each drop the runs of the other.
fn lock_folder(name: &str, folder: &Path) -> Result<std::fs::File> {
    let path = folder.join("sweep.lock");
    try_lock(&path)?.ok_or_else(|| {
        let holder = std::fs::read_to_string(&path).unwrap_or_default();
        Error::Input(format!(
            "sweep {name} is already running, in process {}; wait for it, stop it, or give this one another name",
            holder.trim()
        ))
    })
}

/// Interrupt during a pass that is no fit ends the sweep as it does during a fit.
fn interrupted(error: Error) -> Result<Done> {
    match error {
        Error::Interrupted(why) => Ok(Done::Stopped(why)),
        error => Err(error),
    }
}

enum Done {
    /// An earlier sweep made it.
    Before(SweepRun),
    Now(Box<SweepRun>),
    Stopped(String),
}

/// The teachers of a sweep, made when a run first needs them.
struct Teachers<'a> {
    sweep: &'a Sweep,
    ground: &'a Ground<'a>,
    /// Logits for train and validation, of teachers trained on the student's labels: by share, noise and seed.
    own: Vec<((f64, f64, u64), CachedTensor, CachedTensor)>,
    views: Option<CachedTensor>,
}

impl Teachers<'_> {
    fn run(
        &mut self,
        setting: &Setting,
        seed: u64,
        name: &str,
        folder: &Path,
        listener: Listener,
        before: &[SweepRun],
    ) -> Result<Done> {
        let Self { sweep, ground, .. } = *self;
        let inputs = ground.inputs;
        let (told, labels) = ground.told(setting, seed)?;
        let rows = |rows: &[i64]| -> Result<Tensor> { Ok(labels.f_index_select(0, &Tensor::f_from_slice(rows)?)?) };
        let mut validation_logits = &ground.validation_logits;
        let (train, criterion) = match &setting.teaching {
            None => {
                let seen = ground.repeated(&told);
                let images =
                    Examples::images(&ground.split.select(&seen)?, &ground.transform)?.with_labels(&rows(&seen)?)?;
                let images = match setting.augmentation {
                    Augmentation::None => images,
                    _ => images.with_views(&ground.views)?,
                };
                (images, Criterion::cross_entropy())
            }
            Some(teaching) => {
                let images = Examples::images(&ground.split, &ground.transform)?;
                let images = match (setting.augmentation, teaching.teacher) {
                    (Augmentation::None, TeacherLabels::All) => images.with_teacher(&ground.logits)?,
                    (Augmentation::None, TeacherLabels::Student) => {
                        let (train, validation) = self.own_teacher(setting, seed, &listener)?;
                        validation_logits = validation;
                        images.with_teacher(train)?
                    }
                    (augmentation, _) => {
                        let logits = self.views(&listener)?;
                        images.with_teacher_of_views(logits, augmentation == Augmentation::Apart)?
                    }
                };
                let mut known = labels.f_full_like(UNLABELLED)?;
                let _ = known.f_index_copy_(0, &Tensor::f_from_slice(&told)?, &rows(&told)?)?;
                let kd = KdLoss::new(teaching.temperature, teaching.alpha)?;
                (images.with_labels(&known)?, Criterion::distil(teaching.method, kd))
            }
        };
        let validation = ground.validation(validation_logits)?;
        let mut model = Model::new(name, inputs.device, seed, inputs.student)?;
        let options = FitOptions {
            name: name.to_owned(),
            epochs: sweep.epochs,
            batch_size: sweep.batch_size,
            learning_rate: sweep.learning_rate,
            seed,
            precision: sweep.precision,
            folder: Some(folder.to_owned()),
            listener,
            ..FitOptions::default()
        };
        let fit_key = fingerprint(None, &model, &train, &validation, &criterion, &options)?;
        let key =
            digest(&[fit_key.as_bytes(), inputs.data.test.key.as_bytes(), format!("{:?}", sweep.omitted).as_bytes()]);
        if let Some(run) = before.iter().find(|run| run.key == key) {
            return Ok(Done::Before(run.clone()));
        }
        let history = fit(&mut model, &train, &validation, &criterion, &options)?;
        if let Some(reason) = history.stopped {
            return Ok(Done::Stopped(reason));
        }
        let Some(best) = history.best() else {
            return Err(Error::Input(format!("{name}: no epoch was run; sweep with at least 1")));
        };
        let tested = evaluate(&model, &ground.test, EVALUATION_BATCH)?;
        let corrected = match sweep.omitted {
            Some(class) => {
                let bias = evaluate(&model, &validation, EVALUATION_BATCH)?.best_bias(class)?;
                let tested = tested.with_bias(class, bias)?;
                Some(Corrected { bias, test: tested.accuracy(), recall: tested.recall()? })
            }
            None => None,
        };
        let teacher = match setting.teaching {
            Some(_) => Some(Evaluation::new(&validation_logits.tensor, &validation.labels())?.accuracy()),
            None => None,
        };
        let speeds: Vec<f64> = history.records.iter().map(|r| r.images_per_second).collect();
        Ok(Done::Now(Box::new(SweepRun {
            setting: setting.clone(),
            seed,
            key,
            best_epoch: best.epoch,
            validation: best.validation.accuracy,
            test: tested.accuracy(),
            recall: tested.recall()?,
            corrected,
            teacher,
            seconds: history.seconds(),
            images_per_second: mean(&speeds).unwrap_or_default(),
        })))
    }

    /// A head on the backbone's features, trained on the labels that the student is told.
    fn own_teacher(
        &mut self,
        setting: &Setting,
        seed: u64,
        listener: &Listener,
    ) -> Result<(&CachedTensor, &CachedTensor)> {
        let wanted = (setting.labelled, setting.noise, seed);
        if !self.own.iter().any(|(of, _, _)| *of == wanted) {
            let Ground { inputs, split, features, .. } = self.ground;
            let (told, labels) = self.ground.told(setting, seed)?;
            let seen = self.ground.repeated(&told);
            let part = Examples::features(&split.select(&seen)?, &features.select(split, &seen)?)?;
            let part = part.with_labels(&labels.f_index_select(0, &Tensor::f_from_slice(&seen)?)?)?;
            let data = inputs.data;
            let validation = Examples::features(&data.validation, inputs.validation_features)?;
            let mut own = head(inputs.backbone.arch.features(), data.classes.len() as i64, inputs.device, seed)?;
            let options = FitOptions {
                name: "teacher of the student's labels".into(),
                seed,
                folder: None,
                listener: listener.clone(),
                ..inputs.head_options.clone()
            };
            let history = fit(&mut own, &part, &validation, &Criterion::cross_entropy(), &options)?;
            if let Some(why) = history.stopped {
                return Err(Error::Interrupted(why));
            }
            let train = teacher_logits(&own, split, features, None)?;
            self.own.push((wanted, train, teacher_logits(&own, &data.validation, inputs.validation_features, None)?));
        }
        let found = self.own.iter().find(|(of, _, _)| *of == wanted);
        found.map(|(_, train, validation)| (train, validation)).ok_or_else(|| Error::Input("no teacher".into()))
    }

    fn views(&mut self, listener: &Listener) -> Result<&CachedTensor> {
        let Ground { inputs, split, views, .. } = self.ground;
        let made = match self.views.take() {
            Some(made) => made,
            None => {
                let teacher = inputs.backbone.with_head(inputs.head)?;
                let batch = self.sweep.batch_size;
                view_logits(&teacher, split, inputs.teacher_transform, views, batch, inputs.cache, listener)?
            }
        };
        Ok(self.views.insert(made))
    }
}
