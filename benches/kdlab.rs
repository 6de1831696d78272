//! Our side of `cargo lab bench`. Its last argument is the task in JSON; then it runs one round for every line that it
//! reads and answers with a line. `side.py` does the same for Python.

#[allow(dead_code)] // the rest measures pictures
#[path = "../examples/onnx/src/measure.rs"]
mod measure;

use kdlab::data::{DataOptions, Dataset, Split, Transform, Views, batches, open, read_image, shuffled};
use kdlab::models::{Arch, Backbone, Layers, Model, ModelCard, Precision, head, student};
use kdlab::show::save_examples;
use kdlab::train::{CachedTensor, Criterion, Event, Examples, FitOptions, KdLoss, Listener};
use kdlab::train::{backbone_features, evaluate, fit, predict, view_logits};
use kdlab::{Error, Lab, Result};
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tch::{Device, Kind, Tensor, nn};

const SEED: u64 = 1;

fn main() {
    // `cargo bench` adds options of its own.
    let given: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if given.is_empty() {
        println!("this is one side of a benchmark: run `cargo lab bench`");
        return;
    }
    if let Err(error) = run(&given) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(given: &[String]) -> Result<()> {
    let bad = |e: serde_json::Error| Error::Input(format!("the task: {e}"));
    let mut spec: Value = serde_json::from_str(&given[given.len() - 1]).map_err(bad)?;
    if given[0] == "prepare" {
        prepare(&mut spec)?;
        println!("{spec}");
        return Ok(());
    }
    match spec["workload"].as_str() {
        Some("networks") => return networks(&spec),
        Some("pictures") => return one_by_one(&spec),
        Some("difference") => {
            let pairs: Vec<(bool, bool)> = serde_json::from_value(spec["right"].take()).map_err(bad)?;
            println!("{}", json!(measure::difference(&pairs)));
            return Ok(());
        }
        _ => {}
    }
    let task = Task::new(spec)?;
    match task.text("workload") {
        "student" => task.student(),
        "teacher" => task.teacher(),
        "features" => task.features(),
        "batches" => task.batches(),
        "rows" => task.kept_rows(),
        "fits" => task.fits(),
        "data" => data(&task),
        "million" => million(&task),
        other => Err(Error::Input(format!("no workload {other:?}"))),
    }
}

struct Task {
    spec: Value,
    data: Dataset,
}

/// Opens the images that a task asks for, from the data that is there.
fn dataset(spec: &Value) -> Result<Dataset> {
    let count = |name: &str| spec[name].as_u64().map(|n| n as usize);
    open(&DataOptions {
        train_images: count("train"),
        validation_images: count("validation"),
        test_images: count("test").or(count("validation")),
        ..DataOptions::default()
    })
}

/// Returns the number of the student's outputs: the task's, else that of the data's classes.
fn classes(spec: &Value, data: &Dataset) -> i64 {
    spec["classes"].as_i64().unwrap_or(data.classes.len() as i64)
}

impl Task {
    fn new(spec: Value) -> Result<Self> {
        tch::set_num_threads(spec["threads"].as_i64().unwrap_or(1) as i32);
        tch::Cuda::cudnn_set_benchmark(true);
        Ok(Self { data: dataset(&spec)?, spec })
    }

    fn text(&self, name: &str) -> &str {
        self.spec[name].as_str().unwrap_or_default()
    }

    fn number(&self, name: &str) -> usize {
        self.spec[name].as_u64().unwrap_or_default() as usize
    }

    fn folder(&self) -> PathBuf {
        self.text("folder").into()
    }

    fn device(&self) -> Device {
        match self.text("device") {
            "cuda" => Device::Cuda(0),
            _ => Device::Cpu,
        }
    }

    fn transform(&self) -> Transform {
        let three = |name: &str| std::array::from_fn(|i| self.spec[name][i].as_f64().unwrap_or_default());
        Transform { size: self.number("size") as i64, mean: three("mean"), std: three("std") }
    }

    fn backbone(&self) -> Result<Backbone> {
        let file = self.folder().join("backbone.safetensors");
        let mut backbone = Backbone::from_file(self.text("arch").parse()?, self.device(), &file)?.0;
        backbone.model.precision = self.precision();
        self.lay_out(&backbone.model)?;
        Ok(backbone)
    }

    fn precision(&self) -> Precision {
        match self.spec["f32"] == true {
            true => Precision::F32,
            false => Precision::of(self.device(), self.number("size") as i64),
        }
    }

    /// Lays weights out channels first, as PyTorch does by default, if the task says so.
    fn lay_out(&self, model: &Model) -> Result<()> {
        if self.spec["channels_first"] == true {
            for (_, mut tensor) in model.state() {
                let plain = tensor.detach().f_contiguous()?;
                tensor.f_set_data(&plain)?;
            }
        }
        Ok(())
    }

    fn classes(&self) -> i64 {
        classes(&self.spec, &self.data)
    }

    fn options(&self, epochs: usize, listener: Listener) -> FitOptions {
        FitOptions { epochs, batch_size: self.number("batch"), seed: SEED, listener, ..FitOptions::default() }
    }

    /// Runs one fit whose epochs are the rounds: each waits for its line.
    fn student(&self) -> Result<()> {
        let classes = self.classes();
        let mut model = Model::new("student", self.device(), SEED, &|vs| student(vs, classes))?;
        model.load(self.folder().join("student.safetensors"))?;
        self.lay_out(&model)?;
        let split = &self.data.train;
        let teacher = CachedTensor::new(split, logits(split, classes), "bench")?;
        let train = Examples::images(split, &self.transform())?.with_teacher(&teacher)?;
        let held = &self.data.validation;
        let teacher = CachedTensor::new(held, logits(held, classes), "bench")?;
        let validation = Examples::images(held, &self.transform())?.with_teacher(&teacher)?;
        let of = |name: &str| self.spec[name].as_f64().unwrap_or_default();
        let criterion = Criterion::kd(KdLoss::new(of("temperature"), of("alpha"))?);
        let device = self.device();
        let begun = Mutex::new(Timer::start(device));
        let listener = Listener::new(move |event| {
            let mut begun = begun.lock().unwrap_or_else(|e| e.into_inner());
            if let Event::Epoch { record, .. } = event {
                answer(begun.stop(json!({"loss": record.train.loss})));
            }
            if matches!(event, Event::Started { .. } | Event::Epoch { .. }) {
                if matches!(event, Event::Started { .. }) {
                    answer(json!({"ready": true}));
                }
                if !asked() {
                    std::process::exit(0);
                }
                *begun = Timer::start(device);
            }
        });
        let options = FitOptions { precision: self.precision(), ..self.options(self.number("rounds"), listener) };
        fit(&mut model, &train, &validation, &criterion, &options)?;
        Ok(())
    }

    /// Trains and tests so many students one after the other, each on all threads: as sweeps ran before a fit took one.
    fn fits(&self) -> Result<()> {
        let (classes, transform) = (self.classes(), Transform::imagenet(self.number("size") as i64));
        let examples = |split: &Split| {
            let teacher = CachedTensor::new(split, logits(split, classes), "bench")?;
            Examples::images(split, &transform)?.with_teacher(&teacher)
        };
        let (train, validation) = (examples(&self.data.train)?, examples(&self.data.validation)?);
        let test = Examples::images(&self.data.test, &transform)?;
        for seed in 0..self.number("fits") as u64 {
            let mut model = Model::new("student", self.device(), seed, &|vs| student(vs, classes))?;
            let options = FitOptions {
                seed,
                precision: self.precision(),
                ..self.options(self.number("epochs"), Listener::default())
            };
            fit(&mut model, &train, &validation, &Criterion::kd(KdLoss::new(4.0, 0.9)?), &options)?;
            evaluate(&model, &test, 256)?;
        }
        Ok(())
    }

    /// Runs the teacher's whole stage: features of both splits, then the head's epochs on them.
    fn teacher(&self) -> Result<()> {
        let backbone = self.backbone()?;
        let (epochs, classes) = (self.number("epochs"), self.classes());
        self.rounds(&|| {
            let mut head = head(backbone.arch.features(), classes, self.device(), SEED)?;
            head.load(self.folder().join("head.safetensors"))?;
            let of = |split: &Split| Examples::features(split, &self.rows(&backbone, split)?);
            let (train, validation) = (of(&self.data.train)?, of(&self.data.validation)?);
            let options = self.options(epochs, Listener::default());
            let history = fit(&mut head, &train, &validation, &Criterion::cross_entropy(), &options)?;
            Ok(json!({"loss": history.records.last().map(|r| r.train.loss), "epochs": epochs}))
        })
    }

    fn features(&self) -> Result<()> {
        let backbone = self.backbone()?;
        let mean = |rows: &Tensor| Ok(json!({"loss": f64::try_from(rows.abs().mean(Kind::Float))?}));
        if self.spec["one_by_one"] == true {
            let images = Examples::through_backbone(&self.data.train, &self.transform(), &backbone)?;
            let order: Vec<i64> = (0..images.len() as i64).collect();
            let row = |indices: Vec<i64>| Ok(images.batch(&indices, self.device())?.inputs);
            return self.rounds(&|| {
                let rows = batches(&order, self.number("batch"))?.into_iter().map(row).collect::<Result<Vec<_>>>()?;
                mean(&Tensor::f_cat(&rows, 0)?)
            });
        }
        self.rounds(&|| mean(&self.rows(&backbone, &self.data.train)?.tensor))
    }

    /// Measures the batches of a student's epoch alone.
    fn batches(&self) -> Result<()> {
        let train = Examples::images(&self.data.train, &self.transform())?;
        let order = shuffled(train.len(), SEED, 1);
        self.rounds(&|| {
            for indices in batches(&order, self.number("batch"))? {
                train.batch(&indices, self.device())?;
            }
            Ok(json!({}))
        })
    }

    /// Measures the reading of ResNet-50's features, stored as f32 or as f16, for ten epochs of a head.
    fn kept_rows(&self) -> Result<()> {
        let kind = if self.spec["f16"] == true { Kind::Half } else { Kind::Float };
        let rows = Tensor::f_rand([5000, 2048], (Kind::Float, self.device()))?.f_to_kind(kind)?;
        self.rounds(&|| {
            for epoch in 1..=10 {
                for indices in batches(&shuffled(5000, SEED, epoch), self.number("batch"))? {
                    let picked = Tensor::f_from_slice(&indices)?.f_to_device(self.device())?;
                    let _ = rows.f_index_select(0, &picked)?.f_to_kind(Kind::Float)?;
                }
            }
            Ok(json!({}))
        })
    }

    fn rows(&self, backbone: &Backbone, split: &Split) -> Result<CachedTensor> {
        backbone_features(backbone, split, &self.transform(), self.number("batch"), None, &Listener::default())
    }

    fn rounds(&self, round: &dyn Fn() -> Result<Value>) -> Result<()> {
        answer(json!({"ready": true}));
        while asked() {
            let timer = Timer::start(self.device());
            answer(timer.stop(round()?));
        }
        Ok(())
    }
}

/// Measures the seconds of a round by the clock, and on a GPU also between two points of its queue.
struct Timer {
    clock: Instant,
    begin: Option<cuda::Event>,
}

impl Timer {
    fn start(device: Device) -> Self {
        let begin = if device.is_cuda() { cuda::Event::record() } else { None };
        Self { clock: Instant::now(), begin }
    }

    /// Adds the seconds to what was measured.
    fn stop(&self, mut measured: Value) -> Value {
        if let Some(seconds) = self.begin.as_ref().and_then(|begin| begin.seconds_until(&cuda::Event::record()?)) {
            measured["device_seconds"] = json!(seconds);
        }
        measured["seconds"] = json!(self.clock.elapsed().as_secs_f64());
        measured
    }
}

/// CUDA's events. tch does not wrap them, so they are looked up in the CUDA runtime that libtorch has loaded.
mod cuda {
    use std::ffi::{CStr, c_char, c_void};
    use std::ptr::null_mut;

    pub struct Event(*mut c_void);
    // SAFETY: the runtime takes an event from any thread.
    unsafe impl Send for Event {}

    unsafe extern "C" {
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    /// Calls a function of two pointers. Returns whether the function exists and succeeded.
    fn call(name: &CStr, first: *mut c_void, second: *mut c_void) -> bool {
        // SAFETY: a null library means everything that is loaded. The functions named below take one or two pointers
        // each and return `cudaError_t`; a function of one pointer ignores the second.
        unsafe {
            let found = dlsym(null_mut(), name.as_ptr());
            let function: Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> i32> = std::mem::transmute(found);
            function.is_some_and(|function| function(first, second) == 0)
        }
    }

    impl Event {
        /// Records an event in libtorch's queue, which is the default one.
        pub fn record() -> Option<Self> {
            let mut event: *mut c_void = null_mut();
            let made = call(c"cudaEventCreate", (&raw mut event).cast(), null_mut());
            let event = made.then(|| Self(event))?;
            call(c"cudaEventRecord", event.0, null_mut()).then_some(event)
        }

        /// Waits for the later event and returns the seconds between the two.
        pub fn seconds_until(&self, end: &Self) -> Option<f64> {
            let mut milliseconds = 0f32;
            // SAFETY: as in `call`, with three pointers.
            unsafe {
                let found = dlsym(null_mut(), c"cudaEventElapsedTime".as_ptr());
                let function: Option<unsafe extern "C" fn(*mut f32, *mut c_void, *mut c_void) -> i32> =
                    std::mem::transmute(found);
                let done = call(c"cudaEventSynchronize", end.0, null_mut());
                (done && function?(&mut milliseconds, self.0, end.0) == 0).then_some(f64::from(milliseconds) / 1e3)
            }
        }
    }

    impl Drop for Event {
        fn drop(&mut self) {
            call(c"cudaEventDestroy", self.0, null_mut());
        }
    }
}

/// Reads CIFAR-10 as its authors ship it, 60,000 images, from disk into a data set.
fn data(task: &Task) -> Result<()> {
    let folder = task.folder().join("cifar");
    if !folder.exists() {
        std::fs::create_dir_all(&folder).map_err(|e| Error::Io(e.to_string()))?;
        for name in (1..=5).map(|i| format!("data_batch_{i}")).chain(["test_batch".into()]) {
            let byte = |i: u32| if i.is_multiple_of(3073) { (i / 3073 % 10) as u8 } else { i as u8 };
            write(&folder.join(name + ".bin"), &(0..30_730_000).map(byte).collect::<Vec<u8>>())?;
        }
    }
    let resident = |name: &str| status(name).unwrap_or_default();
    // The maximum over the rounds, because the allocator keeps what one round frees for the next.
    let most = std::cell::Cell::new(0.0f64);
    task.rounds(&|| {
        let before = resident("VmRSS:");
        let _ = std::fs::write("/proc/self/clear_refs", "5"); // the peak counts from here, on Linux
        let data = open(&DataOptions { folder: Some(folder.clone()), ..DataOptions::default() })?;
        let images = data.train.len() + data.validation.len() + data.test.len();
        most.set(most.get().max((resident("VmHWM:") - before) * 1e6 / (images * 3072) as f64));
        Ok(json!({"images": images, "ratio": most.get()}))
    })
}

/// Computes a teacher's logits over 1,000 classes for a million small images (2 GB), and trains a student on both for
/// one epoch. Answers with the speed of the first and of the last tenth, and the peak memory besides the images.
fn million(task: &Task) -> Result<()> {
    let (images, side, classes) = (1_000_000, 8, 1000);
    let folder = task.folder();
    let idx = |name: &str, sizes: &[u32], bytes: usize, byte: &dyn Fn(usize) -> u8| {
        let header = [0, 0, 8, sizes.len() as u8].into_iter().chain(sizes.iter().flat_map(|n| n.to_be_bytes()));
        write(&folder.join(name), &header.chain((0..bytes).map(byte)).collect::<Vec<u8>>())
    };
    let pixel = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
    for (name, n) in [("train", images), ("t10k", 1000)] {
        let sizes = [n as u32, side, side];
        idx(&format!("{name}-images-idx3-ubyte"), &sizes, n * (side * side) as usize, &pixel)?;
        idx(&format!("{name}-labels-idx1-ubyte"), &sizes[..1], n, &|i| (i % 10) as u8)?;
    }
    let options = DataOptions { folder: Some(folder.clone()), validation: 0.001, ..DataOptions::default() };
    let data = open(&options)?;
    let transform = Transform::imagenet(side.into());
    let net = |seed| {
        Model::new("net", Device::Cpu, seed, &|vs| {
            let linear = nn::linear(vs / "fc", 3 * i64::from(side * side), classes, Default::default());
            Layers::new().func("flatten", |x| x.flatten(1, -1)).add("fc", linear)
        })
    };
    task.rounds(&|| {
        let (teacher, mut student) = (net(1)?, net(2)?);
        let before = status("RssAnon:").unwrap_or_default();
        // (seconds since the start, images done, memory besides the images)
        let points = Arc::new(Mutex::new(vec![]));
        let (seen, start) = (Arc::clone(&points), Instant::now());
        let listener = Listener::new(move |event| {
            if let Event::Progress(p) = event {
                let point = (start.elapsed().as_secs_f64(), p.done, status("RssAnon:").unwrap_or_default());
                seen.lock().unwrap_or_else(|e| e.into_inner()).push(point);
            }
        });
        let summary = || {
            let points = std::mem::take(&mut *points.lock().unwrap_or_else(|e| e.into_inner()));
            let speed = |part: &[(f64, usize, f64)]| match (part.first(), part.last()) {
                (Some(a), Some(b)) => (b.1 - a.1) as f64 / (b.0 - a.0),
                _ => f64::NAN,
            };
            let tenth = points.len() / 10;
            json!({"first_tenth_per_second": speed(&points[..tenth]).round(),
                "last_tenth_per_second": speed(&points[points.len() - tenth..]).round(),
                "most_mb": points.iter().map(|p| p.2 - before).fold(0.0, f64::max).round()})
        };
        let one_view = Views::new(false, &[])?;
        // In a folder of the round's own, because logits that are there are not computed again.
        let kept = tempfile::tempdir_in(&folder).map_err(|e| Error::Io(e.to_string()))?;
        let whole = |split| view_logits(&teacher, split, &transform, &one_view, 512, kept.path(), &listener);
        let train = Examples::images(&data.train, &transform)?.with_teacher_of_views(&whole(&data.train)?, false)?;
        let pass = summary();
        let held = CachedTensor::new(
            &data.validation,
            predict(&teacher, &Examples::images(&data.validation, &transform)?, 512)?,
            "teacher",
        )?;
        let validation = Examples::images(&data.validation, &transform)?.with_teacher(&held)?;
        let criterion = Criterion::kd(KdLoss::new(2.0, 0.9)?);
        let options = FitOptions { batch_size: 512, ..task.options(1, listener.clone()) };
        fit(&mut student, &train, &validation, &criterion, &options)?;
        Ok(json!({"images": data.train.len(), "logits": pass, "student": summary()}))
    })
}

/// Trains a teacher and a student in the laptop profile, or finds those of an earlier run, and writes their files, the
/// test images, and what the networks cost.
fn networks(spec: &Value) -> Result<()> {
    let mut lab = Lab::open()?;
    lab.folder = spec["folder"].as_str().unwrap_or_default().into();
    lab.profile.train_images = spec["train"].as_u64().map(|images| images as usize);
    lab.profile.test_images = spec["test"].as_u64().map(|images| images as usize);
    let data = lab.dataset()?;
    let classes = data.classes.len() as i64;
    let teacher = lab.teacher(&data)?;
    let of = |split: &Split| teacher.examples(split, &lab.student_transform());
    let mut pupil = Model::new("student", lab.device, SEED, &|vs| student(vs, classes))?;
    let (criterion, options) = (Criterion::kd(KdLoss::new(4.0, 0.9)?), lab.fit_options("student"));
    fit(&mut pupil, &of(&data.train)?, &of(&data.validation)?, &criterion, &options)?;

    let mut costs = json!({"classes": data.classes, "data": data.name, "precision": options.precision.to_string()});
    let whole = teacher.backbone.with_head(&teacher.head)?;
    for (name, model, transform) in
        [("teacher", &whole, lab.teacher_transform()), ("student", &pupil, lab.student_transform())]
    {
        let side = transform.size;
        let (classes, stored_size) = (data.classes.clone(), data.train.size().0);
        let card = ModelCard { classes, stored_size, framing: data.framing, transform, threshold: 0.0 };
        model.save_with(lab.folder.join(name).with_extension("safetensors"), &card)?;
        model.save_onnx(lab.folder.join(name).with_extension("onnx"), &card)?;
        if name == "student" {
            model.save_onnx_int8(lab.folder.join("student-int8.onnx"), &card, &data.train)?;
        }
        let macs = model.summary([3, side, side])?.macs;
        costs[name] = json!({"parameters": model.parameters(), "macs": macs, "side": side});
    }
    costs["arch"] = json!(lab.profile.arch.to_string());
    save_examples(
        lab.folder.join("examples.json"),
        &data.test,
        &data.classes,
        &teacher.logits(&data.test)?,
        data.test.len(),
    )?;
    write(&lab.folder.join("networks.json"), costs.to_string().as_bytes())
}

/// Classifies pictures one by one, as `examples/classify.rs` does.
fn one_by_one(spec: &Value) -> Result<()> {
    let file = spec["file"].as_str().unwrap_or_default();
    let card = ModelCard::read(file)?;
    let classes = card.classes.len() as i64;
    let arch: Option<Arch> = spec["arch"].as_str().map(str::parse).transpose()?;
    let layers = |vs: &nn::Path| arch.map_or_else(|| student(vs, classes), |arch| arch.layers(vs, Some(classes)));
    let mut model = Model::new("network", Device::Cpu, SEED, &layers)?;
    model.load(file)?;
    model.precision = spec["precision"].as_str().unwrap_or("f32").parse()?;
    let (mut milliseconds, mut answers) = (vec![], vec![]);
    for path in spec["pictures"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let image = read_image(path, card.stored_size, card.framing)?.unsqueeze(0);
        let begin = Instant::now();
        let x = card.transform.apply(&image, Device::Cpu)?;
        let probabilities = tch::no_grad(|| model.forward(&x, false))?.softmax(1, Kind::Float);
        answers.push(probabilities.argmax(1, false).int64_value(&[0]));
        milliseconds.push(1e3 * begin.elapsed().as_secs_f64());
    }
    answer(json!({"milliseconds": milliseconds, "answers": answers}));
    Ok(())
}

/// Returns logits of a teacher that is good but not certain. They are the same for all sides.
fn logits(split: &Split, classes: i64) -> Tensor {
    tch::manual_seed(SEED as i64);
    let noise = Tensor::randn([split.len() as i64, classes], (Kind::Float, Device::Cpu));
    let right = split.labels().expect("labels of a split").one_hot(classes).to_kind(Kind::Float);
    noise + 4.0 * right
}

/// Writes what all sides begin with, and adds to the task what depends on the data.
fn prepare(spec: &mut Value) -> Result<()> {
    let data = dataset(spec)?;
    let folder = PathBuf::from(spec["folder"].as_str().unwrap_or_default());
    std::fs::create_dir_all(&folder).map_err(|e| Error::Io(e.to_string()))?;
    let classes = classes(spec, &data);
    let (mut images, mut labels) = (vec![], vec![]);
    for split in [&data.train, &data.validation] {
        let all: Vec<i64> = (0..split.len() as i64).collect();
        images.extend(Vec::<u8>::try_from(split.batch(&all)?.images.flatten(0, -1))?);
        labels.extend(Vec::<i64>::try_from(split.labels()?)?.iter().map(|&l| l as u8));
    }
    write(&folder.join("images.u8"), &images)?;
    write(&folder.join("labels.u8"), &labels)?;
    let epochs = spec["rounds"].as_u64().max(spec["epochs"].as_u64()).unwrap_or(1);
    // In the order in which `fit` visits them: epochs count from 1.
    let order = (1..=epochs).flat_map(|epoch| shuffled(data.train.len(), SEED, epoch));
    write(&folder.join("order.i64"), &order.flat_map(i64::to_le_bytes).collect::<Vec<u8>>())?;
    Tensor::write_safetensors(&[("logits", logits(&data.train, classes))], folder.join("logits.safetensors"))?;
    Model::new("student", Device::Cpu, SEED, &|vs| student(vs, classes))?.save(folder.join("student.safetensors"))?;
    let mut transform = Transform::imagenet(32);
    if let Some(arch) = spec["arch"].as_str() {
        let arch: Arch = arch.parse()?;
        let weights = DataOptions::default().cache.join("weights").join(arch.weight_file());
        let backbone = match Backbone::from_file(arch, Device::Cpu, &weights) {
            Ok((pretrained, _)) => pretrained,
            Err(_) => Backbone::untrained(arch, Device::Cpu, SEED)?,
        };
        backbone.model.save(folder.join("backbone.safetensors"))?;
        head(arch.features(), classes, Device::Cpu, SEED)?.save(folder.join("head.safetensors"))?;
        (transform.mean, transform.std) = arch.normalisation();
    }
    let (height, width) = data.train.size();
    let known = json!({"train": data.train.len(), "height": height, "width": width, "data": data.name,
        "mean": transform.mean, "std": transform.std});
    for (name, value) in known.as_object().into_iter().flatten() {
        spec[name] = value.clone();
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::Io(format!("writing {}: {e}", path.display())))
}

/// Waits for a line. Returns `false` when the other side is done.
fn asked() -> bool {
    std::io::stdin().lock().read_line(&mut String::new()).is_ok_and(|bytes| bytes > 0)
}

fn answer(mut line: Value) {
    line["peak_mb"] = json!(status("VmHWM:"));
    println!("{line}");
    let _ = std::io::stdout().flush();
}

/// Returns a line of Linux's status of this process, in MB.
fn status(name: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kb = text.lines().find(|line| line.starts_with(name))?.split_whitespace().nth(1)?;
    Some(kb.parse::<f64>().ok()? * 1024.0 / 1e6)
}
