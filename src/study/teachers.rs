//! What a sweep's fits learn from: its teachers, each made when a fit first needs it, and what they say of the images.

use super::SweepRun;
use super::board::Board;
use super::grid::{Augmentation, Setting, Sweep, SweepMethod, TeacherLabels};
use super::one_fit::{Fit, FitMaker, TeacherOutputs, fit_name};
use crate::data::{Dataset, Transform};
use crate::models::{Arch, Backbone, Layers, Mode, Model, Precision, head};
use crate::store::atomic::make_room;
use crate::train::{
    CachedTensor, Criterion, Examples, FitOptions, Listener, OnlineTeacher, Task, fingerprint, fit, layer_features,
    teacher_logits, view_logits,
};
use crate::{Error, Result};
use std::path::Path;
use tch::{Device, Kind, Tensor, nn, no_grad};

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
            has(&student, self.size, &self.student_layer(*method))?;
            // Of the usual layers it has both.
            if self.layers.is_some() {
                has(&Backbone::untrained(arch, Device::Cpu, 0)?.model, 32, &self.teacher_layer(*method, arch))?;
            }
        }
        Ok(())
    }
}

/// What is computed once from the inputs, for all seeds and settings.
pub(super) struct SweepData<'a> {
    pub inputs: &'a SweepInputs<'a>,
    pub maker: FitMaker<'a>,
    features: CachedTensor,
    logits: CachedTensor,
    validation_logits: CachedTensor,
    /// Names and logits of teachers from elsewhere: for the training images here, and for the validation images.
    others: Vec<(&'a str, CachedTensor, &'a CachedTensor)>,
}

impl<'a> SweepData<'a> {
    pub fn new(sweep: &'a Sweep, inputs: &'a SweepInputs<'a>) -> Result<Self> {
        let SweepInputs { data, head, train_features, validation_features, device, student, .. } = *inputs;
        let (maker, kept) = (FitMaker::new(sweep, data, device, student)?, FitMaker::kept(sweep, data)?);
        let features = train_features.select(&data.train, &kept)?;
        let logits = teacher_logits(head, &maker.split, &features, None)?;
        let validation_logits = teacher_logits(head, &data.validation, validation_features, None)?;
        let named = inputs.others.iter().filter(|other| sweep.elsewhere().any(|name| name == other.name));
        let others = named
            .map(|other| Ok((other.name, other.train.select(&data.train, &kept)?, other.validation)))
            .collect::<Result<_>>()?;
        Ok(Self { inputs, maker, features, logits, validation_logits, others })
    }
}

/// Makes the runs of a sweep, and their teachers when a run first needs them.
pub(super) struct Runner<'a> {
    pub sweep: &'a Sweep,
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
pub(super) enum Next {
    /// It was made earlier.
    Done(Box<SweepRun>),
    Fit(Box<Fit>),
}

impl<'a> Runner<'a> {
    pub fn new(sweep: &'a Sweep, data: &'a SweepData<'a>) -> Self {
        Self { sweep, data, own: Vec::new(), views: None, layers: Vec::new() }
    }

    /// Makes what many runs share and a pass of the teacher gives, before any fit runs: the pass takes all cores.
    pub fn prepare(&mut self, all: &[(Setting, u64)], board: &Board) -> Result<()> {
        for (setting, _) in all {
            let Some(distillation) = &setting.distillation else { continue };
            let name = "teacher";
            board.begin(usize::MAX, name);
            let listener = board.listener(usize::MAX);
            if matches!(distillation.method, SweepMethod::Features(_)) {
                self.layer_features(distillation.method, &listener)?;
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
    pub fn next(
        &mut self,
        setting: &Setting,
        seed: u64,
        folder: &Path,
        listener: Listener,
        before: &[SweepRun],
    ) -> Result<Next> {
        let data = self.data;
        let teacher = self.outputs(setting, seed, &listener)?;
        let fit = data.maker.make(setting, seed, folder, listener, &teacher)?;
        if let Some(run) = before.iter().find(|run| run.key == fit.key) {
            // Two settings may lead to the same fit, such as a share of wrong labels that rounds to none.
            return Ok(Next::Done(Box::new(SweepRun { setting: setting.clone(), seed, ..run.clone() })));
        }
        // A fit recognises an earlier run by its checkpoint, which a finished run of a sweep no longer has.
        let own = folder.join(fit_name(setting, seed));
        if SweepRun::load(&own).is_some_and(|run| run.key != fit.key) {
            make_room(&own)?;
        }
        Ok(Next::Fit(Box::new(fit)))
    }

    /// Returns what a setting's teacher says. Makes it first if no run has needed it yet.
    pub fn outputs(&mut self, setting: &Setting, seed: u64, listener: &Listener) -> Result<TeacherOutputs<'_>> {
        let data = self.data;
        let with = |train, validation| Ok(TeacherOutputs { train: Some(train), online: None, validation });
        let Some(distillation) = &setting.distillation else {
            return Ok(TeacherOutputs { train: None, online: None, validation: &data.validation_logits });
        };
        if matches!(distillation.method, SweepMethod::Features(_)) {
            return with(self.layer_features(distillation.method, listener)?, &data.validation_logits);
        }
        match (setting.augmentation, &distillation.teacher) {
            (Augmentation::None, TeacherLabels::All) => with(&data.logits, &data.validation_logits),
            (Augmentation::None, TeacherLabels::Student) => {
                let [train, validation] = self.own_teacher(setting, seed, listener)?;
                with(train, validation)
            }
            (Augmentation::None, TeacherLabels::Elsewhere(name)) => {
                let other = data.others.iter().find(|(of, ..)| of == name);
                let (_, train, validation) = other
                    .ok_or_else(|| Error::Input(format!("there is no teacher {name:?}; give it to sweep_with")))?;
                with(train, validation)
            }
            (Augmentation::Online, _) => {
                let online = Some(self.online()?);
                Ok(TeacherOutputs { train: None, online, validation: &data.validation_logits })
            }
            (Augmentation::Same | Augmentation::Apart, _) => with(self.view_logits(listener)?, &data.validation_logits),
        }
    }

    /// Returns the logits, for the training and the validation images, of a head that is trained on the student's
    /// labels.
    fn own_teacher(&mut self, setting: &Setting, seed: u64, listener: &Listener) -> Result<&[CachedTensor; 2]> {
        let wanted = (setting.labelled, setting.noise, seed);
        let index = match self.own.iter().position(|(labels, _)| *labels == wanted) {
            Some(index) => index,
            None => {
                let SweepData { inputs, maker, features, .. } = self.data;
                let (split, (labelled, labels)) = (&maker.split, maker.labels(setting, seed)?);
                let seen = maker.repeated(&labelled);
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
                let criterion = Criterion::cross_entropy();
                let task = Task {
                    model: &own,
                    train: &part,
                    validation: &validation,
                    criterion: &criterion,
                    options: &options,
                };
                // Trained once: another kind of CPU would train a slightly different one, and the runs would differ.
                let kept = inputs.cache.join(format!("head-{}.safetensors", &fingerprint(None, &task)?[..16]));
                if own.load(&kept).is_err() {
                    let history = fit(&mut own, &part, &validation, &criterion, &options)?;
                    if let Some(why) = history.stopped {
                        return Err(Error::Interrupted(why));
                    }
                    own.save(&kept)?;
                }
                let train = teacher_logits(&own, split, features, None)?;
                let validation = teacher_logits(&own, &data.validation, inputs.validation_features, None)?;
                self.own.push((wanted, [train, validation]));
                self.own.len() - 1
            }
        };
        Ok(&self.own[index].1)
    }

    /// Returns the teacher's features of the training images after the layer that a method compares.
    fn layer_features(&mut self, method: SweepMethod, listener: &Listener) -> Result<&CachedTensor> {
        let SweepData { inputs, maker, features, .. } = self.data;
        let layer = &self.sweep.teacher_layer(method, inputs.backbone.arch);
        if layer == inputs.backbone.arch.compared_layers()[1] {
            return Ok(features); // known already
        }
        let index = match self.layers.iter().position(|(name, _)| name == layer) {
            Some(index) => index,
            None => {
                let (teacher, cache) = (&inputs.backbone.model, Some(inputs.cache));
                let (transform, batch) = (inputs.teacher_transform, self.sweep.batch_size);
                let made = layer_features(teacher, layer, &maker.split, transform, batch, cache, listener)?;
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
                let SweepData { inputs, maker, .. } = self.data;
                let teacher = inputs.backbone.with_head(inputs.head)?;
                let batch = self.sweep.batch_size;
                let (split, views) = (&maker.split, &maker.views);
                view_logits(&teacher, split, inputs.teacher_transform, views, batch, inputs.cache, listener)?
            }
        };
        Ok(self.views.insert(made))
    }
}
