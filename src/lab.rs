//! The lab that every notebook opens first: device, profile, and the work of earlier notebooks.

mod board;
mod plan;
mod results;
mod teacher;

use crate::data::{DataOptions, Dataset, Split, Transform};
use crate::models::{Backbone, LoadReport, Model, Precision, TorchScript, device_name, head};
use crate::profile::{Profile, variable};
use crate::show::{SharedChart, Table, counted, debug_as_display, live_progress, live_sweep, print_progress};
use crate::show::{short_or_empty, show_as_text};
use crate::store;
use crate::study::mistakes::Mistake;
use crate::study::{Cluster, OtherTeacher, Sweep, SweepInputs, SweepReport, make_fit};
use crate::train::{CachedTensor, Control, Criterion, Examples, FitOptions, Group, History, Queue, Run};
use crate::train::{check_name, features_in, fit, script_logits, teacher_logits};
use crate::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use tch::{Cuda, Device, nn};

pub use teacher::Teacher;

/// Device, profile and folders of one walk through the notebooks.
pub struct Lab {
    /// Sizes and lengths of the run; a cell may change each field.
    pub profile: Profile,
    /// Where models and batches are.
    pub device: Device,
    /// Precision of the backbone's passes and the students' fits, from `KDLAB_PRECISION` (`f32` or `bf16`). `None`
    /// takes the faster one for device and image size. The teacher's head always uses f32. `evaluate` uses the model's
    /// own precision: f32, except for `Backbone::with_head`.
    pub precision: Option<Precision>,
    /// Folder of this profile's results, in `KDLAB_RUNS` or in `runs` of the repository.
    pub folder: PathBuf,
    /// Folder of downloaded data and weights.
    pub cache: PathBuf,
    /// Fits in the background, and the chart in which the live kernel shows them.
    queue: Queue,
    chart: SharedChart,
    /// The processes that train together, in a program that [`Lab::train_plan`] runs.
    group: Option<Group>,
}

impl Lab {
    /// Opens the lab. `KDLAB_DEVICE` (`cpu` or `cuda`) names the device, otherwise it is CUDA where there is one;
    /// `KDLAB_PROFILE` names the profile.
    ///
    /// # Errors
    /// When such a variable has a value that it can't have, or CUDA was asked for and is absent.
    pub fn open() -> Result<Self> {
        let cuda = Cuda::is_available();
        let device = match variable("KDLAB_DEVICE").as_deref() {
            None => Device::cuda_if_available(),
            Some("cpu") => Device::Cpu,
            Some("cuda") if cuda => Device::Cuda(0),
            Some("cuda") => {
                return Err(Error::Input(
                    "KDLAB_DEVICE asks for cuda, but libtorch sees no CUDA device; run `cargo lab doctor`, or set \
                     KDLAB_DEVICE=cpu"
                        .into(),
                ));
            }
            Some(other) => return Err(Error::Input(format!("KDLAB_DEVICE is {other:?}; it may be cpu or cuda"))),
        };
        // All batches but the last have one size, so cuDNN may try its algorithms once and keep the fastest.
        Cuda::cudnn_set_benchmark(device.is_cuda());
        let parse = |name: String| name.parse().map_err(|e| Error::Input(format!("KDLAB_PRECISION: {e}")));
        let precision = variable("KDLAB_PRECISION").map(parse).transpose()?;
        let profile = Profile::detect(device.is_cuda())?;
        let root = store::variable("KDLAB_ROOT").unwrap_or_else(|| PathBuf::from("."));
        let runs = store::variable("KDLAB_RUNS").unwrap_or_else(|| root.join("runs"));
        let folder = runs.join(&profile.name);
        let (queue, chart) = (Queue::default(), SharedChart::default());
        let cache = DataOptions::default().cache;
        Ok(Self { folder, cache, profile, device, precision, queue, chart, group: None })
    }

    /// Loads CIFAR-10, or the data that `KDLAB_DATA` names, in the profile's sizes.
    ///
    /// # Errors
    /// When the data can't be downloaded or read.
    pub fn dataset(&self) -> Result<Dataset> {
        let p = &self.profile;
        crate::data::open(&DataOptions {
            seed: p.seed,
            train_images: p.train_images,
            validation_images: p.validation_images,
            test_images: p.test_images,
            folder_size: p.teacher_size,
            framing: p.framing,
            cache: self.cache.clone(),
            ..DataOptions::default()
        })
    }

    /// Loads the profile's backbone with its ImageNet weights.
    ///
    /// # Errors
    /// When the weights can't be downloaded or read.
    pub fn backbone(&self) -> Result<Backbone> {
        let mut backbone = Backbone::pretrained(self.profile.arch, self.device, &self.cache)?;
        backbone.model.precision = self.precision_at(self.profile.teacher_size);
        Ok(backbone)
    }

    /// Precision for images with sides of `size` pixels.
    fn precision_at(&self, size: i64) -> Precision {
        self.precision.unwrap_or_else(|| Precision::of(self.device, size))
    }

    /// Returns the transform of the teacher's images: the profile's size, normalised as for the backbone's training.
    pub fn teacher_transform(&self) -> Transform {
        let (mean, std) = self.profile.arch.normalisation();
        Transform { size: self.profile.teacher_size, mean, std }
    }

    /// Returns the transform of the student's images: the profile's size, with ImageNet's mean and deviation as in the
    /// article.
    pub fn student_transform(&self) -> Transform {
        Transform::imagenet(self.profile.student_size)
    }

    /// Computes the backbone's features f32 `[N, D]` of a split, or finds them on disk.
    ///
    /// # Errors
    /// As [`backbone_features`](crate::train::backbone_features).
    pub fn features(&self, backbone: &Backbone, split: &Split) -> Result<CachedTensor> {
        let cache = self.folder.join("cache");
        let (transform, batch_size) = (self.teacher_transform(), self.profile.batch_size);
        features_in(self.group.as_ref(), backbone, split, &transform, batch_size, Some(&cache), &print_progress())
    }

    /// Computes the teacher's logits f32 `[N, C]` of a split by its head on the backbone's features, or finds them on
    /// disk.
    ///
    /// # Errors
    /// When the features belong to another split.
    pub fn logits(&self, head: &Model, split: &Split, features: &CachedTensor) -> Result<CachedTensor> {
        teacher_logits(head, split, features, Some(&self.folder.join("cache")))
    }

    /// Computes the logits f32 `[N, C]` of a teacher from a TorchScript file for a split, or finds them on disk.
    ///
    /// # Errors
    /// As [`script_logits`].
    pub fn script_logits(&self, teacher: &TorchScript, split: &Split) -> Result<CachedTensor> {
        let cache = self.folder.join("cache");
        script_logits(teacher, split, self.profile.batch_size, Some(&cache), &print_progress())
    }

    /// Returns the profile's options for a student; `name` is also the name of the fit's folder.
    ///
    /// The live kernel shows the fit while it runs, with sliders that act on the options' control. To change or stop
    /// the fit by program, clone that control before the fit starts.
    pub fn fit_options(&self, name: &str) -> FitOptions {
        let control = Control::default();
        FitOptions {
            name: name.to_owned(),
            epochs: self.profile.student_epochs,
            batch_size: self.profile.batch_size,
            learning_rate: self.profile.student_learning_rate,
            seed: self.profile.seed,
            precision: self.precision_at(self.profile.student_size),
            folder: Some(self.folder.join(name)),
            listener: live_progress(&control, &self.chart),
            control,
            group: self.group.clone(),
            ..FitOptions::default()
        }
    }

    /// Starts a fit in the background and returns at once. Later cells read the curve so far, and change or stop the
    /// fit. Several runs wait for each other, in the order of their cells; the live kernel draws their curves in one
    /// chart, that of the last. Interrupt stops the cell that runs, not the fit.
    ///
    /// A fit in the foreground meanwhile shares the processor and libtorch's random generator with it, so dropout then
    /// gives other results.
    ///
    /// # Errors
    /// When no thread can be started. [`Run::wait`] returns the errors of the fit itself.
    pub fn spawn(
        &self,
        model: Model,
        train: &Examples,
        validation: &Examples,
        criterion: Criterion,
        options: FitOptions,
    ) -> Result<Run> {
        self.queue.spawn(model, train, validation, criterion, options)
    }

    /// Returns the profile's options for the teacher's head.
    pub fn teacher_options(&self) -> FitOptions {
        FitOptions {
            epochs: self.profile.teacher_epochs,
            learning_rate: self.profile.teacher_learning_rate,
            // A linear layer is fast anyway.
            precision: Precision::F32,
            ..self.fit_options("teacher")
        }
    }

    /// Loads the head that notebook 2 trained on these features, for `classes` classes; `None` if there is none, it is
    /// half-trained, or it was trained on other features.
    fn kept_head(&self, classes: i64, train_features: &CachedTensor) -> Option<Model> {
        let history = self.history("teacher").ok()?;
        if history.data_key != train_features.key || !history.is_complete() {
            return None;
        }
        let mut model = head(self.profile.arch.features(), classes, self.device, self.profile.seed).ok()?;
        model.load(self.folder.join("teacher/best.safetensors")).ok()?;
        Some(model)
    }

    /// Loads the best weights of an earlier fit into `model`; `train` are the examples on which it was trained.
    ///
    /// # Errors
    /// When there is no such run, it was trained on other examples, or its network differs. `model` is then unchanged.
    pub fn load_best(&self, name: &str, model: &mut Model, train: &Examples) -> Result<LoadReport> {
        check_name(name)?;
        let path = self.folder.join(name).join("best.safetensors");
        if !path.exists() {
            return Err(Error::Data(format!(
                "no run {name:?} at {}; run notebook 04_distillation, or take a name from notebook 5's table",
                path.display()
            )));
        }
        if self.history(name)?.data_key != train.key() {
            return Err(Error::Data(format!(
                "the run {name:?} was trained on other images, at another size or with another teacher; train it again"
            )));
        }
        model.load(&path)
    }

    /// Returns the teacher of notebook 2. Its head is trained now if it isn't yet, or was trained on other data.
    ///
    /// # Errors
    /// When weights can't be loaded, and when the training of the head was stopped.
    pub fn teacher(&self, data: &Dataset) -> Result<Teacher> {
        let backbone = self.backbone()?;
        let features = self.features(&backbone, &data.train)?;
        let classes = data.classes.len() as i64;
        let head = match self.kept_head(classes, &features) {
            Some(head) => head,
            None => {
                let mut head = head(self.profile.arch.features(), classes, self.device, self.profile.seed)?;
                let validation = Examples::features(&data.validation, &self.features(&backbone, &data.validation)?)?;
                let train = Examples::features(&data.train, &features)?;
                let criterion = Criterion::cross_entropy();
                let history = fit(&mut head, &train, &validation, &criterion, &self.teacher_options())?;
                if history.stopped.is_some() {
                    return Err(half_trained(&history));
                }
                head
            }
        };
        let (transform, batch_size, group) = (self.teacher_transform(), self.profile.batch_size, self.group.clone());
        Ok(Teacher { backbone, head, transform, batch_size, cache: self.folder.join("cache"), group })
    }

    /// Returns a sweep in the profile's sizes: three seeds of plain distillation at T = 4, alpha = 0.9. Override the
    /// axes that you want to compare.
    pub fn sweep_plan(&self, name: &str) -> Sweep {
        Sweep {
            name: name.to_owned(),
            epochs: self.profile.sweep_epochs,
            student: self.profile.student,
            size: self.profile.sweep_size,
            batch_size: self.profile.batch_size,
            learning_rate: self.profile.student_learning_rate,
            precision: self.precision_at(self.profile.sweep_size),
            ..Sweep::default()
        }
    }

    /// Runs a sweep of students with the teacher of notebook 2. It prints first what difference the sweep could find.
    /// The live kernel shows its progress.
    ///
    /// Runs that are on disk are not repeated, whatever sweep of this name they were made for. After a kill, call it
    /// again: a run that was cut short continues after its last epoch. Interrupt ends the sweep; the report then holds
    /// the runs that are done, and `stopped`.
    ///
    /// # Errors
    /// When a value of the sweep is out of its range, another process runs this sweep, and as [`fit`].
    pub fn sweep(&self, sweep: &Sweep, data: &Dataset) -> Result<SweepReport> {
        self.sweep_with(sweep, data, &[])
    }

    /// Runs a sweep as [`Lab::sweep`] does, in which teachers from elsewhere also teach: name them in
    /// [`Sweep::teachers`], and give their logits here.
    ///
    /// ```no_run
    /// use kdlab::Lab;
    /// use kdlab::models::Outputs;
    /// use kdlab::study::{OtherTeacher, Sweep, TeacherLabels};
    /// use kdlab::train::LogitsTable;
    ///
    /// let lab = Lab::open()?;
    /// let data = lab.dataset()?;
    /// let clip = LogitsTable::read("clip.csv", &data, Outputs::Logits)?;
    /// let (train, validation) = (clip.logits(&data.train)?, clip.logits(&data.validation)?);
    /// let others = [OtherTeacher { name: "clip", train: &train, validation: &validation }];
    /// let teachers = vec![TeacherLabels::All, TeacherLabels::Elsewhere("clip".into())];
    /// let report = lab.sweep_with(&Sweep { teachers, ..lab.sweep_plan("teachers") }, &data, &others)?;
    /// # Ok::<(), kdlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a teacher that the sweep names is not given, or its logits are of other data; else as [`Lab::sweep`].
    pub fn sweep_with(&self, sweep: &Sweep, data: &Dataset, others: &[OtherTeacher]) -> Result<SweepReport> {
        self.run_sweep(sweep, data, others, None)
    }

    /// Runs a sweep as [`Lab::sweep`] does, on the workers of a Dask cluster: `local:2` starts two on this machine,
    /// `slurm:8` eight jobs; `tls://head:8786` and `tcp://127.0.0.1:8786` are schedulers that run already. The results
    /// are those of [`Lab::sweep`]. The machines need a common folder for `KDLAB_RUNS`. A worker that dies is replaced,
    /// and its fit goes on after its last epoch.
    ///
    /// # Errors
    /// When Dask is not installed (`cargo lab setup --dask` does it), the cluster can't be used, or a scheduler without
    /// TLS could be reached from other machines; else as [`Lab::sweep`].
    pub fn sweep_on(&self, sweep: &Sweep, data: &Dataset, on: &str) -> Result<SweepReport> {
        self.run_sweep(sweep, data, &[], Some(&Cluster::new(on)?))
    }

    /// Makes one fit of a sweep that another process prepared: the number `fit` of its `work.json`. It is what a
    /// cluster's machines run; `with_parent` ends it when stdin closes. Each line of stdout is an event in JSON.
    ///
    /// # Errors
    /// When the file is no such file, the fit is not in it, and as [`fit`].
    pub fn fit_of_sweep(&self, work: &Path, fit: usize, with_parent: bool) -> Result<()> {
        make_fit(work, fit, self.device, with_parent)
    }

    fn run_sweep(
        &self,
        sweep: &Sweep,
        data: &Dataset,
        others: &[OtherTeacher],
        cluster: Option<&Cluster>,
    ) -> Result<SweepReport> {
        // Refuses wrong values before the teacher is trained, which may take a minute.
        sweep.check(data)?;
        sweep.check_others(others, data)?;
        let classes = data.classes.len() as i64;
        let student = |vs: &nn::Path| sweep.student.layers(vs, classes, sweep.size);
        sweep.check_networks(&student, self.profile.arch)?;
        println!("{sweep}");
        let teacher = self.teacher(data)?;
        let file = format!("sweeps/{}/sweep.json", sweep.name);
        let inputs = SweepInputs {
            data,
            device: self.device,
            profile: &self.profile.name,
            backbone: &teacher.backbone,
            head: &teacher.head,
            teacher_transform: &teacher.transform,
            train_features: &teacher.features(&data.train)?,
            validation_features: &teacher.features(&data.validation)?,
            others,
            head_options: &FitOptions { folder: None, ..self.teacher_options() },
            student: &student,
            cache: &teacher.cache,
            afterwards: &format!("kdlab::study::SweepReport::load(lab.folder.join({file:?}))?"),
        };
        sweep.run(&inputs, &self.folder.join("sweeps").join(&sweep.name), &live_sweep(), cluster)
    }

    /// Reads the curve of an earlier fit by its name.
    ///
    /// # Errors
    /// When there is no such fit, or its file is damaged.
    pub fn history(&self, name: &str) -> Result<History> {
        check_name(name)?;
        let file = self.folder.join(name).join("history.json");
        if !file.exists() {
            let have: Vec<String> = self.saved().into_iter().map(|(name, _)| name).collect();
            return Err(Error::Data(format!(
                "there is no finished epoch of a fit {name:?} in {}; fits there: {}",
                self.folder.display(),
                if have.is_empty() { "none".to_owned() } else { have.join(", ") }
            )));
        }
        History::load(file)
    }

    /// All fits of this profile, oldest first: the names of their folders and their histories.
    fn saved(&self) -> Vec<(String, Result<History>)> {
        let mut found = Vec::new();
        for folder in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let (name, path) = (folder.file_name().to_string_lossy().into_owned(), folder.path().join("history.json"));
            if let Ok(written) = std::fs::metadata(&path).and_then(|m| m.modified()) {
                let history = History::load(&path).map(|history| History { name: name.clone(), ..history });
                found.push((written, name, history));
            }
        }
        found.sort_by_key(|(written, ..)| *written);
        found.into_iter().map(|(_, name, history)| (name, history)).collect()
    }

    /// Returns the curves of all fits of this profile, oldest first, each with the name of its folder. Damaged ones are
    /// left out; [`Lab::runs`] names them.
    pub fn histories(&self) -> Vec<History> {
        self.saved().into_iter().filter_map(|(_, history)| history.ok()).collect()
    }

    /// Returns a table of all fits of this profile, a row each; T and alpha are those of the best epoch.
    pub fn runs(&self) -> Table {
        let fit = ["run", "loss", "T", "alpha", "epochs", "changes", "best epoch"];
        let header = [&fit[..], &["val accuracy (%)", "val CE", "seconds"]].concat();
        self.saved().into_iter().fold(Table::new(&header), |table, (name, found)| {
            let Ok(h) = found else {
                return table.row(&[name, "damaged: its history.json can't be read; fit it again".into()]);
            };
            match h.best() {
                None => table,
                Some(best) => table.row(&[
                    h.name.clone(),
                    Mistake::of(&h).map_or(h.criterion.clone(), |d| format!("{} (on purpose: {d})", h.criterion)),
                    short_or_empty(best.hyperparameters.temperature),
                    short_or_empty(best.hyperparameters.alpha),
                    format!("{}/{}", h.records.len(), h.epochs),
                    if h.changes.is_empty() { String::new() } else { h.changes.len().to_string() },
                    best.epoch.to_string(),
                    format!("{:.1}", 100.0 * best.validation.accuracy),
                    format!("{:.4}", best.validation.cross_entropy),
                    format!("{:.1}", h.seconds()),
                ]),
            }
        })
    }
}

/// The error of a teacher that was stopped or killed before its last epoch.
fn half_trained(history: &History) -> Error {
    let why = history.stopped.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    Error::Interrupted(format!(
        "the teacher is half-trained: it ended after {} of {} epochs{why}; run it again (notebook 02_teacher), it goes \
         on from there, or set `lab.profile.teacher_epochs` to what you have time for",
        history.records.len(),
        history.epochs
    ))
}

debug_as_display!(Lab);
show_as_text!(Lab);

impl fmt::Display for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = &self.profile;
        let count = |n: Option<usize>| n.map_or("all".to_owned(), |n| format!("up to {n}"));
        let [teacher, student] = [p.teacher_size, p.student_size].map(|size| self.precision_at(size));
        write!(f, "device    {}, {teacher}", device_name(self.device))?;
        writeln!(f, "{}", if student == teacher { String::new() } else { format!(", students in {student}") })?;
        if let Some(share) = variable("KDLAB_GPU_SHARE").filter(|_| self.device.is_cuda()) {
            writeln!(f, "memory    {share} are yours")?;
        }
        writeln!(f, "profile   {} (KDLAB_PROFILE=article|laptop|smoke chooses another)", p.name)?;
        writeln!(
            f,
            "images    {} train, {} validation, {} test",
            count(p.train_images),
            count(p.validation_images),
            count(p.test_images)
        )?;
        writeln!(f, "teacher   {} at {} px, {}", p.arch, p.teacher_size, counted(p.teacher_epochs, "epoch"))?;
        let student = counted(p.student_epochs, "epoch");
        writeln!(f, "student   at {} px, {student}, batches of {}", p.student_size, p.batch_size)?;
        // Relative to the repository, because executed notebooks are shared with others.
        let root = std::env::var_os("KDLAB_ROOT").unwrap_or_default();
        write!(f, "runs      {}", self.folder.strip_prefix(root).unwrap_or(&self.folder).display())?;
        if p.name == "article" && self.device == Device::Cpu {
            write!(f, "\nnote      this profile is meant for CUDA; on a CPU its teacher pass alone takes hours")?;
        }
        Ok(())
    }
}
