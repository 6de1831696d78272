//! One fit of a sweep: made of its setting, its seed and what its teacher says of the images, by whichever process.

use super::grid::{Augmentation, Setting, Sweep, SweepMethod};
use super::report::{Corrected, mean};
use super::{Distillation, SweepRun};
use crate::data::{Dataset, Split, Transform, Views};
use crate::error::lock;
use crate::models::{Layers, Model};
use crate::store::cores::cpu_name;
use crate::store::digest::digest;
use crate::train::{
    CachedTensor, Criterion, Evaluation, Event, Examples, FitOptions, Listener, LoopSettings, OnlineTeacher, Task,
    UNLABELLED, evaluate, fingerprint, fit_with,
};
use crate::{Error, Result};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tch::{Device, Tensor, nn};

/// Batch size of evaluations, which only memory limits.
const EVALUATION_BATCH: usize = 256;

/// What the fits of a sweep share besides their teachers.
pub(super) struct FitMaker<'a> {
    pub sweep: &'a Sweep,
    pub data: &'a Dataset,
    pub device: Device,
    /// The student's network.
    pub student: &'a dyn Fn(&nn::Path) -> Layers,
    /// The images on which students are trained.
    pub split: Split,
    transform: Transform,
    pub views: Views,
}

/// What the teacher of a fit says of its images.
pub(super) struct TeacherOutputs<'a> {
    /// Logits, logits of views, or features of the training images; `None` for the student alone, and for a teacher
    /// that judges each batch.
    pub train: Option<&'a CachedTensor>,
    /// The teacher that judges each batch.
    pub online: Option<OnlineTeacher>,
    /// Its logits for the validation images.
    pub validation: &'a CachedTensor,
}

/// A fit of a sweep, with all that it needs on a thread of its own.
pub(super) struct Fit {
    setting: Setting,
    seed: u64,
    /// Digest of everything that the fit depends on.
    pub key: String,
    model: Model,
    train: Examples,
    validation: Examples,
    test: Examples,
    criterion: Criterion,
    pub options: FitOptions,
    /// Validation accuracy of the teacher.
    teacher: Option<f64>,
    omitted: Option<i64>,
    device: Device,
}

/// Name of a fit and of its folder.
pub(super) fn fit_name(setting: &Setting, seed: u64) -> String {
    format!("{setting}-seed{seed}")
}

impl<'a> FitMaker<'a> {
    pub fn new(
        sweep: &'a Sweep,
        data: &'a Dataset,
        device: Device,
        student: &'a dyn Fn(&nn::Path) -> Layers,
    ) -> Result<Self> {
        let split = data.train.select(&Self::kept(sweep, data)?)?;
        let (transform, views) = (Transform::imagenet(sweep.size), Views::cross(sweep.shift)?);
        Ok(Self { sweep, data, device, student, split, transform, views })
    }

    /// The sample indices of the images that students see.
    pub fn kept(sweep: &Sweep, data: &Dataset) -> Result<Vec<i64>> {
        let taken = sweep.images.unwrap_or(data.train.len());
        let labels = Vec::<i64>::try_from(data.train.labels()?)?;
        Ok((0..taken as i64).filter(|&i| Some(labels[i as usize]) != sweep.omitted).collect())
    }

    /// Returns the indices of the images with a label for this seed, and the labels of all images, wrong ones included.
    pub fn labels(&self, setting: &Setting, seed: u64) -> Result<(Vec<i64>, Tensor)> {
        Ok((self.split.labelled_subset(setting.labelled, seed)?, self.split.noisy_labels(setting.noise, seed)?))
    }

    /// Repeats the labelled images up to the number of all images, so that every run takes as many steps.
    pub fn repeated(&self, labelled: &[i64]) -> Vec<i64> {
        labelled.iter().copied().cycle().take(self.split.len()).collect()
    }

    /// Makes the fit of a setting and a seed, with its `folder` below that of the sweep.
    pub fn make(
        &self,
        setting: &Setting,
        seed: u64,
        folder: &Path,
        listener: Listener,
        teacher: &TeacherOutputs,
    ) -> Result<Fit> {
        let Self { sweep, data, device, .. } = *self;
        let name = fit_name(setting, seed);
        let (train, criterion) = self.examples(setting, seed, teacher)?;
        let validation = Examples::images(&data.validation, &self.transform)?.with_teacher(teacher.validation)?;
        let of_teacher = match setting.distillation {
            Some(_) => Some(Evaluation::new(&teacher.validation.tensor, &validation.labels())?.accuracy()),
            None => None,
        };
        let model = Model::new(&name, device, seed, self.student)?;
        let options = FitOptions {
            folder: Some(folder.join(&name)),
            name,
            epochs: sweep.epochs,
            batch_size: sweep.batch_size,
            learning_rate: sweep.learning_rate,
            recipe: setting.recipe.clone(),
            seed,
            precision: sweep.precision,
            listener,
            ..FitOptions::default()
        };
        let task =
            Task { model: &model, train: &train, validation: &validation, criterion: &criterion, options: &options };
        let fit_key = fingerprint(None, &task)?;
        let omitted = format!("{:?}", sweep.omitted);
        let key = digest(&[fit_key.as_bytes(), data.test.key.as_bytes(), omitted.as_bytes()]);
        let test = Examples::images(&data.test, &self.transform)?;
        let (setting, omitted, teacher) = (setting.clone(), sweep.omitted, of_teacher);
        Ok(Fit { setting, seed, key, model, train, validation, test, criterion, options, teacher, omitted, device })
    }

    /// Returns training examples and criterion of a setting.
    fn examples(&self, setting: &Setting, seed: u64, teacher: &TeacherOutputs) -> Result<(Examples, Criterion)> {
        let (labelled, labels) = self.labels(setting, seed)?;
        let labels_of =
            |rows: &[i64]| -> Result<Tensor> { Ok(labels.f_index_select(0, &Tensor::f_from_slice(rows)?)?) };
        let Some(distillation) = &setting.distillation else {
            let seen = self.repeated(&labelled);
            let images =
                Examples::images(&self.split.select(&seen)?, &self.transform)?.with_labels(&labels_of(&seen)?)?;
            let images = match setting.augmentation {
                Augmentation::None => images,
                Augmentation::Online => images.augmented(&self.sweep.augment)?,
                Augmentation::Same | Augmentation::Apart => images.with_views(&self.views)?,
            };
            let criterion = match (setting.augmentation, self.sweep.augment.mixup) {
                (Augmentation::Online, Some(_)) => Criterion::mixed_cross_entropy(),
                _ => Criterion::cross_entropy(),
            };
            return Ok((images, criterion));
        };
        let mut known = labels.f_full_like(UNLABELLED)?;
        let _ = known.f_index_copy_(0, &Tensor::f_from_slice(&labelled)?, &labels_of(&labelled)?)?;
        let images = Examples::images(&self.split, &self.transform)?;
        let images = match (&teacher.online, teacher.train) {
            (Some(online), _) => images.augmented(&self.sweep.augment)?.taught_by(online)?,
            (None, Some(outputs)) => self.taught(images, setting.augmentation, distillation, outputs)?,
            (None, None) => return Err(Error::Input(format!("{setting}: its teacher is missing"))),
        };
        let criterion = distillation.criterion(&self.sweep.student_layer(distillation.method))?;
        Ok((images.with_labels(&known)?, criterion))
    }

    fn taught(
        &self,
        images: Examples,
        augmentation: Augmentation,
        distillation: &Distillation,
        outputs: &CachedTensor,
    ) -> Result<Examples> {
        match (distillation.method, augmentation) {
            (SweepMethod::Features(_), _) => images.with_teacher_features(outputs),
            (_, Augmentation::None | Augmentation::Online) => images.with_teacher(outputs),
            (_, Augmentation::Same) => images.with_teacher_of_views(outputs, false),
            (_, Augmentation::Apart) => images.with_teacher_of_views(outputs, true),
        }
    }
}

impl Fit {
    /// Trains and measures the student.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user stopped the fit.
    pub fn run(mut self) -> Result<SweepRun> {
        let threads = threads_of_fit(self.device);
        if let Some(threads) = threads {
            tch::set_num_threads(threads);
        }
        let resumed = Arc::new(Mutex::new(0));
        let (begun, listener) = (Arc::clone(&resumed), self.options.listener.clone());
        self.options.listener = Listener::new(move |event| {
            if let Event::Started { history, .. } = event {
                *lock(&begun) = history.records.len();
            }
            listener.notify(event);
        });
        let Self { model, train, validation, criterion, options, omitted, .. } = &self;
        let history = fit_with(&LoopSettings::default(), Task { model, train, validation, criterion, options })?;
        if let Some(reason) = history.stopped {
            return Err(Error::Interrupted(reason));
        }
        let Some(best) = history.best() else {
            return Err(Error::Input(format!("{}: no epoch was run; sweep with at least 1", options.name)));
        };
        let tested = evaluate(model, &self.test, EVALUATION_BATCH)?;
        let corrected = match *omitted {
            Some(class) => {
                let bias = evaluate(model, validation, EVALUATION_BATCH)?.best_bias(class)?;
                let tested = tested.with_bias(class, bias)?;
                Some(Corrected { bias, test: tested.accuracy(), recall: tested.recall()? })
            }
            None => None,
        };
        let speeds: Vec<f64> = history.records.iter().map(|r| r.images_per_second).collect();
        let resumed_at = *lock(&resumed);
        Ok(SweepRun {
            best_epoch: best.epoch,
            validation: best.validation.accuracy,
            test: tested.accuracy(),
            recall: tested.recall()?,
            corrected,
            teacher: self.teacher,
            seconds: history.seconds(),
            images_per_second: mean(&speeds).unwrap_or_default(),
            threads,
            cpu: Some(cpu_name()),
            resumed_at,
            setting: self.setting,
            seed: self.seed,
            key: self.key,
        })
    }
}

/// Threads that a fit takes: one on a CPU, so that results do not depend on the number of cores.
pub(super) fn threads_of_fit(device: Device) -> Option<i32> {
    (device == Device::Cpu).then_some(1)
}
