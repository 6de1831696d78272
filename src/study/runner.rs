//! Runs a sweep: every fit of its grid that is not on disk yet, as many side by side as there are cores.

use super::board::{Board, SweepListener};
use super::grid::{Augmentation, Setting, Sweep, SweepMethod, TeacherLabels};
use super::report::{Corrected, mean};
use super::{SweepReport, SweepRun};
use crate::data::{Dataset, Split, Transform, Views};
use crate::error::lock;
use crate::models::{Arch, Backbone, Layers, Mode, Model, Precision, Student, head};
use crate::store::atomic::{make_room, try_lock};
use crate::store::digest::digest;
use crate::train::{
    CachedTensor, Control, Criterion, Evaluation, Examples, FeatureMethod, FitOptions, Listener, LoopSettings,
    OnlineTeacher, Task, UNLABELLED, caught, evaluate, fingerprint, fit, fit_with, layer_features, teacher_logits,
    view_logits,
};
use crate::{Error, Result};
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor, nn, no_grad};

/// Batch size of evaluations, which only memory limits.
const EVALUATION_BATCH: usize = 256;

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

impl Sweep {
    /// Runs everything that `folder` does not hold yet, and returns all runs of the grid. After a kill, call it again:
    /// a run that was cut short continues after its last epoch. Runs of equal settings are taken from the folder,
    /// whatever grid they were made for.
    ///
    /// On the CPU each fit takes one thread, and as many run side by side as libtorch would take threads: small fits
    /// scale badly over threads. So results do not depend on the number of cores.
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
        let before = SweepReport::runs_before(folder)?;
        let controls = Arc::new(Mutex::new(Vec::<Control>::new()));
        let stop_all = {
            let controls = Arc::clone(&controls);
            move |reason: &str| lock(&controls).iter().for_each(|control| control.stop(reason))
        };
        let interrupt = kdlab_client::watch(&self.name, stop_all.clone());
        interrupt.afterwards(inputs.afterwards);
        let report = SweepReport {
            sweep: self.clone(),
            profile: inputs.profile.to_owned(),
            data: inputs.data.name.clone(),
            images: data.split.len(),
            runs: Vec::new(),
            stopped: None,
        };
        let board = Board::new(report, self.all_runs().len(), listener);
        let mut runner = Runner { sweep: self, data: &data, own: Vec::new(), views: None, layers: Vec::new() };
        let all = self.all_runs();
        let mut failure = runner.prepare(&all, &board).err();
        let threads = ThreadsOfFits::on(inputs.device);
        std::thread::scope(|scope| -> Result<()> {
            let (sender, ended) = channel();
            let (mut waiting, mut running) = (all.iter().enumerate(), 0);
            loop {
                while running < threads.side_by_side && failure.is_none() {
                    if let Some(reason) = interrupt.reason() {
                        failure = Some(Error::Interrupted(reason));
                        break;
                    }
                    let Some((place, (setting, seed))) = waiting.next() else { break };
                    let name = format!("{setting}-seed{seed}");
                    board.begin(place, &name);
                    match runner.next(setting, *seed, name, folder, board.listener(place), &before) {
                        Ok(Next::Done(run)) => board.finish(place, *run),
                        Ok(Next::Fit(fit)) => {
                            lock(&controls).push(fit.options.control.clone());
                            let sender = sender.clone();
                            let work = move || {
                                let result = caught(|| fit.run());
                                let _ = sender.send((place, result));
                            };
                            let thread = std::thread::Builder::new().name("kdlab-sweep".into());
                            thread
                                .spawn_scoped(scope, work)
                                .map_err(|e| Error::Io(format!("starting a thread for a fit: {e}")))?;
                            running += 1;
                            // It may have come before the control was known.
                            if let Some(reason) = interrupt.reason() {
                                stop_all(&reason);
                            }
                        }
                        Err(error) => failure = Some(error),
                    }
                }
                if running == 0 {
                    return Ok(());
                }
                let Ok((place, result)) = ended.recv() else { return Ok(()) };
                running -= 1;
                match result.and_then(|run| board.keep(place, run, folder, &before)) {
                    Ok(()) => (),
                    Err(error) => {
                        stop_all("another run failed");
                        failure.get_or_insert(error);
                    }
                }
            }
        })?;
        board.end(failure, &folder.join("sweep.json"), &before)
    }
}

/// Threads of the CPU while a sweep runs: one for each fit. Dropping it gives libtorch back what it had.
struct ThreadsOfFits {
    /// Number of fits at once.
    side_by_side: usize,
    before: Option<i32>,
}

impl ThreadsOfFits {
    fn on(device: Device) -> Self {
        if device != Device::Cpu {
            return Self { side_by_side: 1, before: None };
        }
        let before = tch::get_num_threads();
        tch::set_num_threads(1);
        Self { side_by_side: usize::try_from(before).unwrap_or(1).max(1), before: Some(before) }
    }
}

impl Drop for ThreadsOfFits {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            tch::set_num_threads(before);
        }
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
        let views = Views::cross(sweep.shift)?;
        Ok(Self { inputs, split, features, logits, validation_logits, others, transform, views })
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
}

/// What becomes of the next run of a sweep.
enum Next {
    /// It was made earlier.
    Done(Box<SweepRun>),
    Fit(Box<Fit>),
}

/// A fit of a sweep, with all that it needs on a thread of its own.
struct Fit {
    setting: Setting,
    seed: u64,
    key: String,
    model: Model,
    train: Examples,
    validation: Examples,
    test: Examples,
    criterion: Criterion,
    options: FitOptions,
    /// Validation accuracy of the teacher.
    teacher: Option<f64>,
    omitted: Option<i64>,
    device: Device,
}

impl Fit {
    /// Trains and measures the student.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user stopped the fit.
    fn run(self) -> Result<SweepRun> {
        let Self { model, train, validation, criterion, options, omitted, .. } = &self;
        let threads = (self.device == Device::Cpu).then_some(1);
        if let Some(threads) = threads {
            tch::set_num_threads(threads);
        }
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
            setting: self.setting,
            seed: self.seed,
            key: self.key,
        })
    }
}

impl Runner<'_> {
    /// Makes what many runs share and a pass of the teacher gives, before any fit runs: the pass takes all cores.
    fn prepare(&mut self, all: &[(Setting, u64)], board: &Board) -> Result<()> {
        for (setting, _) in all {
            let Some(distillation) = &setting.distillation else { continue };
            let name = "teacher";
            board.begin(usize::MAX, name);
            let listener = board.listener(usize::MAX);
            if matches!(distillation.method, SweepMethod::Features(_)) {
                let [_, of_teacher] = self.sweep.compared_layers(distillation.method, self.data.inputs.backbone.arch);
                self.layer_features(&of_teacher, &listener)?;
            } else if matches!(setting.augmentation, Augmentation::Same | Augmentation::Apart) {
                self.view_logits(&listener)?;
            }
            board.clear();
        }
        Ok(())
    }

    /// Finds a run among the earlier ones, `before`, or returns the fit that makes it.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user stopped the fit of a teacher.
    fn next(
        &mut self,
        setting: &Setting,
        seed: u64,
        name: String,
        folder: &Path,
        listener: Listener,
        before: &[SweepRun],
    ) -> Result<Next> {
        let Self { sweep, data, .. } = *self;
        let inputs = data.inputs;
        let folder = folder.join(&name);
        let (train, criterion, validation_logits) = self.examples(setting, seed, &listener)?;
        let validation = Examples::images(&inputs.data.validation, &data.transform)?.with_teacher(validation_logits)?;
        let teacher = match setting.distillation {
            Some(_) => Some(Evaluation::new(&validation_logits.tensor, &validation.labels())?.accuracy()),
            None => None,
        };
        let model = Model::new(&name, inputs.device, seed, inputs.student)?;
        let options = FitOptions {
            name,
            epochs: sweep.epochs,
            batch_size: sweep.batch_size,
            learning_rate: sweep.learning_rate,
            recipe: setting.recipe.clone(),
            seed,
            precision: sweep.precision,
            folder: Some(folder.clone()),
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
            return Ok(Next::Done(Box::new(SweepRun { setting: setting.clone(), seed, ..run.clone() })));
        }
        // A fit recognises an earlier run by its checkpoint, which a finished run of a sweep no longer has.
        if SweepRun::load(&folder).is_some_and(|run| run.key != key) {
            make_room(&folder)?;
        }
        let (setting, omitted, device) = (setting.clone(), sweep.omitted, inputs.device);
        let test = Examples::images(&inputs.data.test, &data.transform)?;
        let fit =
            Fit { setting, seed, key, model, train, validation, test, criterion, options, teacher, omitted, device };
        Ok(Next::Fit(Box::new(fit)))
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
                let images = images.augmented(&self.sweep.augment)?.taught_by(&self.online()?)?;
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

    /// Returns a teacher of a fit's own that judges each batch: fits that share one would wait for each other.
    fn online(&self) -> Result<OnlineTeacher> {
        let SweepInputs { backbone, head, teacher_transform, .. } = self.data.inputs;
        OnlineTeacher::network(backbone.with_head(head)?, teacher_transform)
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
