//! What the fuzz targets share: a folder in memory whose files hold the fuzzer's bytes.

use kdlab::data::{DataOptions, Dataset, Framing, Transform, Views};
use kdlab::train::{CachedTensor, Control, Criterion, Event, Examples, FitOptions, History, Listener, fit, view_logits};
use kdlab::models::{Layers, Model};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::{Device, nn};

/// A folder of this process, in memory where the system has such a place.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let make = || {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        tempfile::Builder::new().prefix("kdlab-fuzz-").tempdir_in(parent).expect("a temporary folder")
    };
    FOLDER.get_or_init(make).path()
}

/// Writes `bytes` to the file `name` in [`folder`].
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// A network of one linear layer, the one that the weight files of the tests are for.
pub fn net(vs: &nn::Path) -> Layers {
    Layers::new().add("fc", nn::linear(vs / "fc", 4, 3, Default::default()))
}

/// Reads a weight file in every way that the crate offers. What comes of it is not looked at.
pub fn read_weights(path: &Path) {
    if let Ok(tensors) = kdlab::models::read_weights(path) {
        for (_, tensor) in tensors {
            // Touches every number: a view outside its storage would be seen here.
            let _ = tensor.f_to_kind(tch::Kind::Double).and_then(|t| t.f_sum(tch::Kind::Double));
        }
    }
    let mut model = Model::new("net", Device::Cpu, 0, &net).expect("a network");
    if let Ok(report) = model.load(path) {
        let _ = report.to_string();
    }
    let _ = kdlab::models::ModelCard::read(path);
}

/// A file as `torch.save` writes it, around a pickle: 16 numbers lie in each of its storages.
pub fn zipped(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut add = |name: &str, data: &[u8]| {
        zip.start_file(name, options).expect("a file in the archive");
        zip.write_all(data).expect("a file in the archive");
    };
    add("archive/data.pkl", pickle);
    add("archive/byteorder", b"little");
    for key in ["0", "1", "2", "3"] {
        add(&format!("archive/data/{key}"), &[1; 64]);
    }
    zip.finish().expect("an archive").into_inner()
}

/// Options that look at nothing outside a folder.
pub fn options(folder: &Path) -> DataOptions {
    DataOptions {
        validation: 0.2,
        seed: 0,
        train_images: None,
        validation_images: None,
        test_images: None,
        folder: Some(folder.to_owned()),
        cache: folder.join("cache"),
        download: false,
        folder_size: 8,
        framing: Framing::Squeeze,
        memory: None,
    }
}

/// Four whole IDX files: 20 and 10 images of 2 x 2 pixels in two classes.
pub fn idx_files(name: &str) -> PathBuf {
    for (stem, n) in [("train", 20u8), ("t10k", 10)] {
        let pixels: Vec<u8> = (0..4 * n).collect();
        let labels: Vec<u8> = (0..n).map(|i| i % 2).collect();
        let head = [0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 2, 0, 0, 0, 2];
        write(&format!("{name}/{stem}-images-idx3-ubyte"), &[&head[..], &pixels].concat());
        write(&format!("{name}/{stem}-labels-idx1-ubyte"), &[&[0, 0, 8, 1, 0, 0, 0, n], &labels[..]].concat());
    }
    folder().join(name)
}

/// Uses a data set as a notebook would.
pub fn look_at(data: kdlab::Result<Dataset>) {
    let Ok(data) = data else { return };
    let _ = data.to_string();
    for split in [&data.train, &data.validation, &data.test] {
        assert!(split.labels().is_ok_and(|labels| labels.numel() == split.len()));
        let last = split.len() as i64 - 1;
        assert!(split.batch(&[0, last]).is_ok());
    }
}

/// A fit and a teacher's pass that were begun, and the files they left.
pub struct Left {
    data: Dataset,
    fit: Vec<u8>,
    history: Vec<u8>,
    rows: Vec<u8>,
    rows_at: PathBuf,
}

// Tensors are pointers; a fuzz target has one thread.
unsafe impl Sync for Left {}
unsafe impl Send for Left {}

impl Left {
    pub fn get() -> &'static Left {
        static LEFT: OnceLock<Left> = OnceLock::new();
        LEFT.get_or_init(|| {
            let data = kdlab::data::open(&options(&idx_files("data"))).expect("a data set");
            let mut left = Left { data, fit: vec![], history: vec![], rows: vec![], rows_at: PathBuf::new() };
            let stop = Control::default();
            let asked = stop.clone();
            let listener = Listener::new(move |event| {
                if let Event::Epoch { record, .. } = event
                    && record.epoch == 2
                {
                    asked.stop("the fuzzer's");
                }
            });
            left.fit(stop, listener).expect("a fit");
            left.fit = std::fs::read(folder().join("fit/checkpoint.safetensors")).expect("a checkpoint");
            left.history = std::fs::read(folder().join("fit/history.json")).expect("a history");
            left.rows_at = left.pass().expect("a pass").path.expect("a file");
            left.rows = std::fs::read(&left.rows_at).expect("rows");
            left
        })
    }

    /// The files as they were left: seeds for the fuzzer.
    pub fn seeds(&self) -> [&[u8]; 3] {
        [&self.fit, &self.history, &self.rows]
    }

    pub fn put(&self, which: u8, bytes: &[u8]) {
        let _ = std::fs::remove_dir_all(folder().join("fit"));
        let _ = std::fs::remove_dir_all(folder().join("cache"));
        let path = match which % 4 {
            0 => folder().join("fit/checkpoint.safetensors"),
            1 => folder().join("fit/history.json"),
            2 => self.rows_at.clone(),
            _ => self.rows_at.with_extension("part"),
        };
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
        if which % 4 == 1 {
            std::fs::write(folder().join("fit/checkpoint.safetensors"), &self.fit).expect("a file");
        }
    }

    pub fn go_on(&self, which: u8) {
        if which % 4 < 2 {
            let _ = self.fit(Control::default(), Listener::default());
            let _ = std::fs::remove_dir_all(folder().join("fit-1"));
        } else if let Ok(rows) = self.pass() {
            let _ = rows.tensor.f_sum(tch::Kind::Float);
        }
    }

    fn fit(&self, control: Control, listener: Listener) -> kdlab::Result<History> {
        let transform = Transform::imagenet(2);
        let of = |split| Examples::images(split, &transform);
        let mut model = Model::new("net", Device::Cpu, 0, &small)?;
        let options = FitOptions {
            epochs: 3,
            batch_size: 8,
            folder: Some(folder().join("fit")),
            control,
            listener,
            ..FitOptions::default()
        };
        let (train, validation) = (of(&self.data.train)?, of(&self.data.validation)?);
        fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &options)
    }

    fn pass(&self) -> kdlab::Result<CachedTensor> {
        let model = Model::new("net", Device::Cpu, 0, &small)?;
        let (transform, views) = (Transform::imagenet(2), Views::new(true, &[])?);
        let cache = folder().join("cache");
        view_logits(&model, &self.data.train, &transform, &views, 8, &cache, &Listener::default())
    }
}

fn small(vs: &nn::Path) -> Layers {
    Layers::new().func("flatten", |x| x.flatten(1, -1)).add("fc", nn::linear(vs / "fc", 12, 2, Default::default()))
}
