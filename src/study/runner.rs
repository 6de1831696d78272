//! Runs a sweep: every fit of its grid that is not on disk yet, one after the other.

use super::grid::{Augmentation, Setting, Sweep, SweepMethod, TeacherLabels};
use super::report::{Corrected, mean};
use super::{SweepReport, SweepRun};
use crate::data::{Dataset, Split, Transform, Views};
use crate::error::lock;
use crate::models::{Arch, Backbone, Layers, Mode, Model, Precision, Student, head};
use crate::store::atomic::{make_room, try_lock};
use crate::store::digest::digest;
use crate::train::{
    CachedTensor, Criterion, Evaluation, Event, Examples, FeatureMethod, FitOptions, Listener, LoopSettings,
    OnlineTeacher, Progress, Task, UNLABELLED, evaluate, fingerprint, fit, in_foreground, layer_features,
    teacher_logits, view_logits,
};
use crate::{Error, Result};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tch::{Device, Kind, Tensor, nn, no_grad};

/// Batch size of evaluations, which only memory limits.
const EVALUATION_BATCH: usize = 256;

/// Progress of a sweep.
#[derive(Clone, Debug)]
pub(crate) struct SweepProgress {
    /// The current run; `None` when all are done.
    pub run: Option<String>,
    /// Number of the current run, from 1.
    pub number: usize,
    /// Number of all runs.
    pub total: usize,
    /// Progress of a fit, or of the teacher's pass over all views.
    pub progress: Option<Progress>,
    /// Estimate for all runs that are left; `None` before the first fit.
    pub seconds_left: Option<f64>,
}

/// A teacher of a sweep besides that of notebook 2: a network from a TorchScript file, or a table of answers.
pub struct OtherTeacher<'a> {
    /// Its name in [`TeacherLabels::Elsewhere`] and in the report.
    pub name: &'a str,
    /// Its logits for the training images.
    pub train: &'a CachedTensor,
    /// Its logits for the validation images.
    pub validation: &'a CachedTensor,
}

/// Inputs that all runs of a sweep share.
pub(crate) struct SweepInputs<'a> {
    pub data: &'a Dataset,
    pub device: Device,
    pub profile: &'a str,
    pub backbone: &'a Backbone,
    /// The teacher's head, trained on all labels.
    pub head: &'a Model,
    /// Transform of the backbone's images.
    pub teacher_transform: &'a Transform,
    pub train_features: &'a CachedTensor,
    pub validation_features: &'a CachedTensor,
    /// Teachers from elsewhere.
    pub others: &'a [OtherTeacher<'a>],
    /// Options for heads that are trained on the student's labels.
    pub head_options: &'a FitOptions,
    /// The student's network.
    pub student: &'a dyn Fn(&nn::Path) -> Layers,
    /// Folder for the logits of views.
    pub cache: &'a Path,
    /// Code of a cell that shows the report, for a page that did not see the sweep.
    pub afterwards: &'a str,
}

/// Callback for the progress of a sweep, called a few times a second.
pub(crate) type SweepListener = Arc<dyn Fn(&SweepReport, &SweepProgress) + Send + Sync>;

impl Sweep {
    /// Runs everything that `folder` does not hold yet, and returns all runs of the grid. After a kill, call it again:
    /// a run that was cut short continues after its last epoch. Runs of equal settings are taken from the folder,
    /// whatever grid they were made for.
    ///
    /// On the live kernel, Interrupt ends the sweep: it returns the runs that are done, with `stopped` set.
    ///
    /// # Errors
    /// When a value is out of its range, another process runs this sweep, and as [`fit`].
    pub(crate) fn run(&self, inputs: &SweepInputs, folder: &Path, listener: &SweepListener) -> Result<SweepReport> {
        self.check(inputs.data)?;
        self.check_others(inputs.others, inputs.data)?;
        self.check_networks(inputs.student, inputs.backbone.arch)?;
        let data = SweepData::new(self, inputs)?;
        let _lock = lock_folder(&self.name, folder)?;
        let path = folder.join("sweep.json");
        let before = SweepReport::runs_before(folder)?;
        let report = Arc::new(Mutex::new(SweepReport {
            sweep: self.clone(),
            profile: inputs.profile.to_owned(),
            data: inputs.data.name.clone(),
            images: data.split.len(),
            runs: Vec::new(),
            stopped: None,
        }));
        let interrupt = kdlab_client::watch(&self.name, |_| ());
        interrupt.afterwards(inputs.afterwards);
        let all = self.all_runs();
        let total = all.len();
        let mut spent = Vec::new();
        let mut runner =
            Runner { sweep: self, data: &data, own: Vec::new(), views: None, layers: Vec::new(), online: None };
        for (i, (setting, seed)) in all.iter().enumerate() {
            if let Some(reason) = interrupt.reason() {
                lock(&report).stopped = Some(reason);
                break;
            }
            let name = format!("{setting}-seed{seed}");
            // The estimate for each run that is left is the mean of those so far.
            let later = mean(&spent).map(|seconds| seconds * (total - i - 1) as f64);
            let now =
                SweepProgress { run: Some(name.clone()), number: i + 1, total, progress: None, seconds_left: later };
            let (so_far, sweep_listener) = (Arc::clone(&report), Arc::clone(listener));
            let fit_listener = Listener::new(move |event| {
                if let Event::Progress(progress) = event {
                    let seconds_left = now.seconds_left.map(|later| later + progress.seconds_left);
                    let progress = Some(progress.clone());
                    sweep_listener(&lock(&so_far), &SweepProgress { progress, seconds_left, ..now.clone() });
                }
            });
            let (begun, folder) = (Instant::now(), folder.join(&name));
            match runner.run(setting, *seed, &name, &folder, fit_listener, &before) {
                Ok((run, false)) => lock(&report).runs.push(run),
                Ok((run, true)) => {
                    spent.push(begun.elapsed().as_secs_f64());
                    run.save(&folder)?;
                    let mut report = lock(&report);
                    report.runs.push(run);
                    report.save(&path, &before)?;
                    // Only an unfinished run needs its checkpoint.
                    let _ = std::fs::remove_file(folder.join("checkpoint.safetensors"));
                }
                Err(Error::Interrupted(reason)) => {
                    lock(&report).stopped = Some(reason);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let report = lock(&report).clone();
        report.save(&path, &before)?;
        let number = report.runs.len();
        listener(&report, &SweepProgress { run: None, number, total, progress: None, seconds_left: None });
        Ok(report)
    }
}

impl Sweep {
    /// Checks that the teachers from elsewhere that the grid names are there and fit the data.
    pub(crate) fn check_others(&self, others: &[OtherTeacher], data: &Dataset) -> Result<()> {
        for name in self.elsewhere() {
            let Some(other) = others.iter().find(|other| other.name == name) else {
                let given: Vec<&str> = others.iter().map(|other| other.name).collect();
                return Err(Error::Input(format!(
                    "sweep {}: there is no teacher {name:?} among those given ({}); give it to sweep_with",
                    self.name,
                    if given.is_empty() { "none".to_owned() } else { given.join(", ") }
                )));
            };
            for (split, logits) in [(&data.train, other.train), (&data.validation, other.validation)] {
                logits.check(&split.key, split.len(), &format!("logits of {name}"))?;
                let (size, classes) = (logits.tensor.size(), data.classes.len());
                if size != [split.len() as i64, classes as i64] {
                    return Err(Error::Input(format!(
                        "sweep {}: the logits of {name} are {size:?}, and [images, {classes}] is needed",
                        self.name
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Sweep {
    /// Checks that the student takes the sweep's images, and that it and the teacher have the layers that are compared.
    pub(crate) fn check_networks(&self, student: &dyn Fn(&nn::Path) -> Layers, arch: Arch) -> Result<()> {
        let black = |size: i64| {
            let image = Tensor::f_zeros([1, 3, 1, 1], (Kind::Uint8, Device::Cpu))?;
            Transform::imagenet(size).apply(&image, Device::Cpu)
        };
        let student = Model::new("student", Device::Cpu, 0, student)?;
        let _logits = no_grad(|| student.forward(&black(self.size)?, false))?;
        let has = |model: &Model, size: i64, layer: &str| {
            no_grad(|| model.forward_to(&black(size)?, Mode::Evaluation, Precision::F32, layer)).map(drop)
        };
        for method in self.methods.iter().filter(|method| method.features().is_some()) {
            let [of_student, of_teacher] = self.compared_layers(*method, arch);
            has(&student, self.size, &of_student)?;
            // Of the usual layers it has both.
            if self.layers.is_some() {
                has(&Backbone::untrained(arch, Device::Cpu, 0)?.model, 32, &of_teacher)?;
            }
        }
        Ok(())
    }

    /// The layers of student and teacher that a method compares.
    fn compared_layers(&self, method: SweepMethod, arch: Arch) -> [String; 2] {
        let last = usize::from(matches!(method, SweepMethod::Features(FeatureMethod::Relational { .. })));
        let usual = || [Student::COMPARED_LAYERS, arch.compared_layers()].map(|pair| pair[last].to_owned());
        self.layers.clone().unwrap_or_else(usual)
    }
}

/// Locks the folder of a sweep: two sweeps that write one folder would each drop the runs of the other.
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

/// What is computed once from the inputs, for all seeds and settings.
struct SweepData<'a> {
    inputs: &'a SweepInputs<'a>,
    /// The images on which students are trained.
    split: Split,
    features: CachedTensor,
    logits: CachedTensor,
    validation_logits: CachedTensor,
    /// Names and logits of teachers from elsewhere: for the training images here, and for the validation images.
    others: Vec<(&'a str, CachedTensor, &'a CachedTensor)>,
    transform: Transform,
    test: Examples,
    views: Views,
}

impl<'a> SweepData<'a> {
    fn new(sweep: &Sweep, inputs: &'a SweepInputs<'a>) -> Result<Self> {
        let SweepInputs { data, head, train_features, validation_features, .. } = inputs;
        let taken = sweep.images.unwrap_or(data.train.len());
        let labels = Vec::<i64>::try_from(data.train.labels()?)?;
        let kept: Vec<i64> = (0..taken as i64).filter(|&i| Some(labels[i as usize]) != sweep.omitted).collect();
        let split = data.train.select(&kept)?;
        let features = train_features.select(&data.train, &kept)?;
        let logits = teacher_logits(head, &split, &features, None)?;
        let validation_logits = teacher_logits(head, &data.validation, validation_features, None)?;
        let named = inputs.others.iter().filter(|other| sweep.elsewhere().any(|name| name == other.name));
        let others = named
            .map(|other| Ok((other.name, other.train.select(&data.train, &kept)?, other.validation)))
            .collect::<Result<_>>()?;
        let transform = Transform::imagenet(sweep.size);
        let test = Examples::images(&data.test, &transform)?;
        let views = Views::cross(sweep.shift)?;
        Ok(Self { inputs, split, features, logits, validation_logits, others, transform, test, views })
    }

    /// Returns the indices of the images with a label for this seed, and the labels of all images, wrong ones included.
    fn labels(&self, setting: &Setting, seed: u64) -> Result<(Vec<i64>, Tensor)> {
        Ok((self.split.labelled_subset(setting.labelled, seed)?, self.split.noisy_labels(setting.noise, seed)?))
    }

    /// Repeats the labelled images up to the number of all images, so that every run takes as many steps.
    fn repeated(&self, labelled: &[i64]) -> Vec<i64> {
        labelled.iter().copied().cycle().take(self.split.len()).collect()
    }
}

/// Makes the runs of a sweep, and their teachers when a run first needs them.
struct Runner<'a> {
    sweep: &'a Sweep,
    data: &'a SweepData<'a>,
    /// Logits of the teachers that were trained on the student's labels, for the training and the validation images; by
    /// share of labels, share of wrong labels, and seed.
    own: Vec<((f64, f64, u64), [CachedTensor; 2])>,
    /// The logits of a teacher of all labels, for every view of the training images.
    views: Option<CachedTensor>,
    /// Features of the teacher by the name of their layer, for the training images.
    layers: Vec<(String, CachedTensor)>,
    /// The same teacher, which judges each batch.
    online: Option<OnlineTeacher>,
}

impl Runner<'_> {
    /// Trains and measures one student, or finds its run among the earlier ones, `before`. Also returns whether it was
    /// trained now.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user stopped the fit or another pass.
    fn run(
        &mut self,
        setting: &Setting,
        seed: u64,
        name: &str,
        folder: &Path,
        listener: Listener,
        before: &[SweepRun],
    ) -> Result<(SweepRun, bool)> {
        let Self { sweep, data, .. } = *self;
        let inputs = data.inputs;
        let (train, criterion, validation_logits) = self.examples(setting, seed, &listener)?;
        let validation = Examples::images(&inputs.data.validation, &data.transform)?.with_teacher(validation_logits)?;
        let teacher = match setting.distillation {
            Some(_) => Some(Evaluation::new(&validation_logits.tensor, &validation.labels())?.accuracy()),
            None => None,
        };
        let model = Model::new(name, inputs.device, seed, inputs.student)?;
        let options = FitOptions {
            name: name.to_owned(),
            epochs: sweep.epochs,
            batch_size: sweep.batch_size,
            learning_rate: sweep.learning_rate,
            recipe: setting.recipe.clone(),
            seed,
            precision: sweep.precision,
            folder: Some(folder.to_owned()),
            listener,
            ..FitOptions::default()
        };
        let task =
            Task { model: &model, train: &train, validation: &validation, criterion: &criterion, options: &options };
        let fit_key = fingerprint(None, &task)?;
        let omitted = format!("{:?}", sweep.omitted);
        let key = digest(&[fit_key.as_bytes(), inputs.data.test.key.as_bytes(), omitted.as_bytes()]);
        if let Some(run) = before.iter().find(|run| run.key == key) {
            // Two settings may lead to the same fit, such as a share of wrong labels that rounds to none.
            return Ok((SweepRun { setting: setting.clone(), seed, ..run.clone() }, false));
        }
        // A fit recognises an earlier run by its checkpoint, which a finished run of a sweep no longer has.
        if SweepRun::load(folder).is_some_and(|run| run.key != key) {
            make_room(folder)?;
        }
        let history = in_foreground(&LoopSettings::default(), task, None)?;
        if let Some(reason) = history.stopped {
            return Err(Error::Interrupted(reason));
        }
        let Some(best) = history.best() else {
            return Err(Error::Input(format!("{name}: no epoch was run; sweep with at least 1")));
        };
        let tested = evaluate(&model, &data.test, EVALUATION_BATCH)?;
        let corrected = match sweep.omitted {
            Some(class) => {
                let bias = evaluate(&model, &validation, EVALUATION_BATCH)?.best_bias(class)?;
                let tested = tested.with_bias(class, bias)?;
                Some(Corrected { bias, test: tested.accuracy(), recall: tested.recall()? })
            }
            None => None,
        };
        let speeds: Vec<f64> = history.records.iter().map(|r| r.images_per_second).collect();
        let run = SweepRun {
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
        };
        Ok((run, true))
    }

    /// Returns training examples and criterion of a setting, and its teacher's logits for the validation split.
    fn examples(
        &mut self,
        setting: &Setting,
        seed: u64,
        listener: &Listener,
    ) -> Result<(Examples, Criterion, &CachedTensor)> {
        let data = self.data;
        let (labelled, labels) = data.labels(setting, seed)?;
        let labels_of =
            |rows: &[i64]| -> Result<Tensor> { Ok(labels.f_index_select(0, &Tensor::f_from_slice(rows)?)?) };
        let Some(distillation) = &setting.distillation else {
            let seen = data.repeated(&labelled);
            let images =
                Examples::images(&data.split.select(&seen)?, &data.transform)?.with_labels(&labels_of(&seen)?)?;
            let images = match setting.augmentation {
                Augmentation::None => images,
                Augmentation::Online => images.augmented(&self.sweep.augment)?,
                Augmentation::Same | Augmentation::Apart => images.with_views(&data.views)?,
            };
            let criterion = match (setting.augmentation, self.sweep.augment.mixup) {
                (Augmentation::Online, Some(_)) => Criterion::mixed_cross_entropy(),
                _ => Criterion::cross_entropy(),
            };
            return Ok((images, criterion, &data.validation_logits));
        };
        let mut known = labels.f_full_like(UNLABELLED)?;
        let _ = known.f_index_copy_(0, &Tensor::f_from_slice(&labelled)?, &labels_of(&labelled)?)?;
        let images = Examples::images(&data.split, &data.transform)?;
        let [layer, of_teacher] = self.sweep.compared_layers(distillation.method, data.inputs.backbone.arch);
        let criterion = distillation.criterion(&layer)?;
        if matches!(distillation.method, SweepMethod::Features(_)) {
            let images = images.with_teacher_features(self.layer_features(&of_teacher, listener)?)?;
            return Ok((images.with_labels(&known)?, criterion, &data.validation_logits));
        }
        let (images, validation_logits) = match (setting.augmentation, &distillation.teacher) {
            (Augmentation::None, TeacherLabels::All) => (images.with_teacher(&data.logits)?, &data.validation_logits),
            (Augmentation::None, TeacherLabels::Student) => {
                let [train, validation] = self.own_teacher(setting, seed, listener)?;
                (images.with_teacher(train)?, validation)
            }
            (Augmentation::None, TeacherLabels::Elsewhere(name)) => {
                let (_, train, validation) = data
                    .others
                    .iter()
                    .find(|(of, ..)| of == name)
                    .ok_or_else(|| Error::Input(format!("there is no teacher {name:?}; give it to sweep_with")))?;
                (images.with_teacher(train)?, *validation)
            }
            (Augmentation::Online, _) => {
                let images = images.augmented(&self.sweep.augment)?.taught_by(self.online()?)?;
                (images, &data.validation_logits)
            }
            (augmentation, _) => {
                let logits = self.view_logits(listener)?;
                let apart = augmentation == Augmentation::Apart;
                (images.with_teacher_of_views(logits, apart)?, &data.validation_logits)
            }
        };
        Ok((images.with_labels(&known)?, criterion, validation_logits))
    }

    /// Returns the logits, for the training and the validation images, of a head that is trained on the student's
    /// labels.
    fn own_teacher(&mut self, setting: &Setting, seed: u64, listener: &Listener) -> Result<&[CachedTensor; 2]> {
        let wanted = (setting.labelled, setting.noise, seed);
        let index = match self.own.iter().position(|(labels, _)| *labels == wanted) {
            Some(index) => index,
            None => {
                let SweepData { inputs, split, features, .. } = self.data;
                let (labelled, labels) = self.data.labels(setting, seed)?;
                let seen = self.data.repeated(&labelled);
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
                let validation = teacher_logits(&own, &data.validation, inputs.validation_features, None)?;
                self.own.push((wanted, [train, validation]));
                self.own.len() - 1
            }
        };
        Ok(&self.own[index].1)
    }

    /// Returns the teacher's features of the training images after one of its layers.
    fn layer_features(&mut self, layer: &str, listener: &Listener) -> Result<&CachedTensor> {
        let SweepData { inputs, split, features, .. } = self.data;
        if layer == inputs.backbone.arch.compared_layers()[1] {
            return Ok(features); // known already
        }
        let index = match self.layers.iter().position(|(name, _)| name == layer) {
            Some(index) => index,
            None => {
                let (teacher, cache) = (&inputs.backbone.model, Some(inputs.cache));
                let (transform, batch) = (inputs.teacher_transform, self.sweep.batch_size);
                let made = layer_features(teacher, layer, split, transform, batch, cache, listener)?;
                self.layers.push((layer.to_owned(), made));
                self.layers.len() - 1
            }
        };
        Ok(&self.layers[index].1)
    }

    /// Returns the teacher that judges each batch.
    fn online(&mut self) -> Result<&OnlineTeacher> {
        let made = match self.online.take() {
            Some(made) => made,
            None => {
                let SweepInputs { backbone, head, teacher_transform, .. } = self.data.inputs;
                OnlineTeacher::network(backbone.with_head(head)?, teacher_transform)?
            }
        };
        Ok(self.online.insert(made))
    }

    /// Returns the teacher's logits of every view of the training images.
    fn view_logits(&mut self, listener: &Listener) -> Result<&CachedTensor> {
        let made = match self.views.take() {
            Some(made) => made,
            None => {
                let SweepData { inputs, split, views, .. } = self.data;
                let teacher = inputs.backbone.with_head(inputs.head)?;
                let batch = self.sweep.batch_size;
                view_logits(&teacher, split, inputs.teacher_transform, views, batch, inputs.cache, listener)?
            }
        };
        Ok(self.views.insert(made))
    }
}
