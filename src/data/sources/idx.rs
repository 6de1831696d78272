//! MNIST-like data in IDX files, plain or gzipped: Fashion-MNIST and whatever shares its four files.
//!
//! Sources: the format, <http://yann.lecun.com/exdb/mnist/>; Fashion-MNIST,
//! <https://github.com/zalandoresearch/fashion-mnist> (Xiao, Rasul, Vollgraf 2017).

use super::list;
use crate::data::dataset::{DataOptions, Dataset, Rows, assemble, check};
use crate::data::pool::Pool;
use crate::store::digest;
use crate::store::download::{Limits, Remote, Sum, fetch, printer};
use crate::{Error, Result};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The four files in the order train images, train labels, test images, test labels; the MD5 sums are those of the
/// authors' gzip files.
const FILES: [(&str, &str); 4] = [
    ("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    ("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe"),
    ("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79"),
    ("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310"),
];
const CLASSES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];
/// SHA-256 of Fashion-MNIST's 10,000 test labels: tells it from other data in files of the same names.
const FASHION_TEST_LABELS: &str = "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9";
const FOLDER: &str = "fashion-mnist";
/// Where Debian's package `dataset-fashion-mnist` puts its files.
const SYSTEM: &str = "/usr/share/datasets/fashion-mnist";
const PACKAGE: &str = "dataset-fashion-mnist";

/// Fashion-MNIST: 28x28 grey images of ten kinds of clothes (as three equal channels), 60,000 to train on and
/// 10,000 to test.
///
/// Read from [`DataOptions::folder`] where set, else from the cache or Debian's installed package, else downloaded
/// into the cache from the authors, else from Debian's package (which needs no root).
///
/// # Errors
/// [`Error::Network`] when it is neither on disk nor to be had; [`Error::Data`] when a file is missing or its content
/// is not what its header says; [`Error::Input`] when an option is out of range.
pub fn fashion_mnist(options: &DataOptions) -> Result<Dataset> {
    check(options)?;
    if let Some(folder) = &options.folder {
        let files = find(folder)?.ok_or_else(|| {
            Error::Data(format!(
                "{} holds no Fashion-MNIST: {}.gz and three more are expected",
                folder.display(),
                FILES[0].0
            ))
        })?;
        return load(&files, true, options);
    }
    let cache = options.cache.join(FOLDER);
    for folder in [cache.as_path(), Path::new(SYSTEM)] {
        // Files of a download that broke off are no reason to stop here.
        if folder.is_dir()
            && let Ok(Some(files)) = find(folder)
        {
            return load(&files, true, options);
        }
    }
    if !options.download {
        return Err(Error::Network(format!(
            "Fashion-MNIST is not in {} and downloads are switched off; set KDLAB_DATA to a folder that holds it",
            cache.display()
        )));
    }
    match authors(&cache) {
        Err(Error::Network(why)) => debian(&cache).map_err(|also| match also {
            Error::Network(also) => Error::Network(format!("{why}; {also}")),
            other => other,
        })?,
        done => done?,
    }
    match find(&cache)? {
        Some(files) => load(&files, true, options),
        None => {
            Err(Error::Data(format!("{} was filled but holds no IDX files: delete it and run again", cache.display())))
        }
    }
}

/// Downloads the authors' four files into `cache`.
fn authors(cache: &Path) -> Result<()> {
    for (name, md5) in FILES {
        let name = format!("{name}.gz");
        let remote = Remote {
            urls: vec![
                format!("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}"),
                format!("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/{name}"),
            ],
            sum: Sum::Md5(md5.into()),
            otherwise: "or set KDLAB_DATA to a folder that holds the data".into(),
            name: name.clone(),
        };
        fetch(&remote, &cache.join(&name), &Limits::default(), &mut printer(&name))?;
    }
    Ok(())
}

/// Takes the four files out of Debian's package into `cache`; apt checks the package's signature.
fn debian(cache: &Path) -> Result<()> {
    std::fs::create_dir_all(cache).map_err(|e| Error::io("creating", cache, e))?;
    let temporary = tempfile::tempdir_in(cache).map_err(|e| Error::io("writing in", cache, e))?;
    let place = temporary.path();
    println!("Fetching Debian's package {PACKAGE} (31 MB)");
    run(Command::new("apt-get").args(["download", PACKAGE]).current_dir(place))?;
    let package = list(place)?.into_iter().find(|p| p.extension().is_some_and(|e| e == "deb"));
    let package = package.ok_or_else(|| Error::Network(format!("apt-get download {PACKAGE} left no package")))?;
    run(Command::new("dpkg").arg("-x").arg(&package).arg(place))?;
    for (name, _) in FILES {
        let (from, to) = (place.join(&SYSTEM[1..]).join(format!("{name}.gz")), cache.join(format!("{name}.gz")));
        std::fs::rename(&from, &to).map_err(|e| Error::io("unpacking", &from, e))?;
    }
    Ok(())
}

/// Runs a program of the package manager; a failure gives its own last words and what the user can do.
fn run(command: &mut Command) -> Result<()> {
    let failed = |why: String| {
        Error::Network(format!(
            "Debian's package {PACKAGE} could not be fetched ({why}); on Debian or Ubuntu run `apt-get update` as root and \
             try again, or install {PACKAGE}"
        ))
    };
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| failed(format!("{program}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{program}: {}", said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("failed"))))
}

/// The four IDX files of a folder (or of `fashion-mnist` in it); `None` where there is none of them.
pub(super) fn find(folder: &Path) -> Result<Option<[PathBuf; 4]>> {
    for folder in [folder.to_owned(), folder.join(FOLDER)] {
        let place = |(name, _): (&str, &str)| {
            let names = [name.to_owned(), name.replace("-idx", ".idx")];
            let paths = names.iter().flat_map(|n| [folder.join(n), folder.join(format!("{n}.gz"))]);
            paths.into_iter().find(|p| p.is_file())
        };
        match FILES.map(place) {
            [None, None, None, None] => {}
            [Some(a), Some(b), Some(c), Some(d)] => return Ok(Some([a, b, c, d])),
            some => {
                let missing: Vec<&str> =
                    FILES.iter().zip(&some).filter(|(_, p)| p.is_none()).map(|(f, _)| f.0).collect();
                return Err(Error::Data(format!(
                    "{} lacks {} (plain or .gz): all four IDX files are needed",
                    folder.display(),
                    missing.join(", ")
                )));
            }
        }
    }
    Ok(None)
}

/// Reads the four files. `fashion` says that they have to be Fashion-MNIST; else its labels tell.
pub(super) fn load(paths: &[PathBuf; 4], fashion: bool, options: &DataOptions) -> Result<Dataset> {
    let [train_images, train_labels, test_images, test_labels] = paths;
    let (mut train, mut test) = (labels(train_labels)?, labels(test_labels)?);
    let mut notices = Vec::new();
    let fashion = fashion || digest::sha256([test.as_slice()]) == FASHION_TEST_LABELS;
    // EMNIST's letters are 1 to 26.
    let first = u8::from(!fashion && train.iter().chain(&test).copied().min() == Some(1));
    if first == 1 {
        train.iter_mut().chain(&mut test).for_each(|label| *label -= 1);
        notices.push("the labels begin with 1: label 1 is class 0, and each class is named by its label".to_owned());
    }
    let count =
        if fashion { CLASSES.len() } else { 1 + usize::from(train.iter().chain(&test).copied().max().unwrap_or(0)) };
    for (path, labels) in [(train_labels, &train), (test_labels, &test)] {
        if let Some(record) = labels.iter().position(|&l| usize::from(l) >= count) {
            return Err(Error::Data(format!(
                "{} record {record} has label {}, expected 0 to {}",
                path.display(),
                labels[record],
                count - 1
            )));
        }
    }
    let (mut a, mut b) = (Idx::open(train_images, 3)?, Idx::open(test_images, 3)?);
    if a.shape[1..] != b.shape[1..] {
        return Err(Error::Data(format!(
            "{} has images of {:?} pixels and {} of {:?}: both need the same size",
            train_images.display(),
            &a.shape[1..],
            test_images.display(),
            &b.shape[1..]
        )));
    }
    let mut pool = Pool::new(train.len() + test.len(), [1, a.shape[1] as i64, a.shape[2] as i64])?;
    a.images(&train, train_labels, &mut pool)?;
    b.images(&test, test_labels, &mut pool)?;
    let (split, end) = (train.len() as i64, pool.len() as i64);
    let rows = Rows { train: (0..split).collect(), validation: None, test: (split..end).collect() };
    let (name, classes) = if fashion {
        ("Fashion-MNIST".to_owned(), CLASSES.map(String::from).into())
    } else {
        let folder = train_images.parent().unwrap_or(Path::new("."));
        (
            format!("IDX images in {}", folder.display()),
            (0..count).map(|k| (k + usize::from(first)).to_string()).collect(),
        )
    };
    assemble(name, classes, pool, rows, notices, options)
}

/// All labels of a file.
fn labels(path: &Path) -> Result<Vec<u8>> {
    let mut idx = Idx::open(path, 1)?;
    let mut labels = vec![0; idx.shape[0]];
    idx.fill(&mut labels)?;
    idx.end()?;
    Ok(labels)
}

/// An IDX file behind its header.
struct Idx<'a> {
    path: &'a Path,
    shape: Vec<usize>,
    body: Box<dyn Read>,
}

impl<'a> Idx<'a> {
    /// Checks the magic number (unsigned bytes in `dimensions` dimensions) and that the sizes in the header can be true.
    fn open(path: &'a Path, dimensions: u8) -> Result<Self> {
        let failed = |e| Error::io("reading", path, e);
        let file = std::fs::File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let file = std::io::BufReader::new(file);
        let gzipped = path.extension().is_some_and(|e| e == "gz");
        let body: Box<dyn Read> =
            if gzipped { Box::new(flate2::read::MultiGzDecoder::new(file)) } else { Box::new(file) };
        let mut idx = Idx { path, shape: Vec::new(), body };
        let mut word = [0; 4];
        idx.fill(&mut word)?;
        if word != [0, 0, 8, dimensions] {
            return Err(idx.wrong(&format!(
                "starts with {word:?}, expected [0, 0, 8, {dimensions}]: it is no IDX file of this kind"
            )));
        }
        for _ in 0..dimensions {
            idx.fill(&mut word)?;
            idx.shape.push(u32::from_be_bytes(word) as usize);
        }
        // Deflate packs at most 1032 to 1, so a header cannot make us reserve what the file cannot hold.
        let most = length.saturating_mul(1032);
        let bytes = idx.shape.iter().try_fold(1u64, |all, &n| all.checked_mul(n as u64));
        if bytes.is_none_or(|b| b == 0 || b > most) {
            return Err(
                idx.wrong(&format!("claims the shape {:?}, which a file of {length} bytes cannot hold", idx.shape))
            );
        }
        Ok(idx)
    }

    fn wrong(&self, what: &str) -> Error {
        Error::Data(format!("{} {what}; replace it, or delete it from the cache", self.path.display()))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.body.read_exact(bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.wrong(&format!("is truncated: its header says {:?}", self.shape)),
            std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
                self.wrong(&format!("is damaged ({e})"))
            }
            _ => Error::io("reading", self.path, e),
        })
    }

    /// Nothing may follow the last element; reading to the end also checks gzip's own sum.
    fn end(&mut self) -> Result<()> {
        match self.body.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.wrong(&format!("is oversized: its header says {:?}", self.shape))),
            Err(e) => Err(self.wrong(&format!("is damaged ({e})"))),
        }
    }

    /// Reads every image into the pool.
    fn images(&mut self, labels: &[u8], labels_path: &Path, pool: &mut Pool) -> Result<()> {
        if self.shape[0] != labels.len() {
            return Err(Error::Data(format!(
                "{} holds {} images and {} {} labels: the files do not belong together",
                self.path.display(),
                self.shape[0],
                labels_path.display(),
                labels.len()
            )));
        }
        let size = self.shape[1] * self.shape[2];
        let mut pixels = vec![0; size * 1000.min(labels.len())];
        for labels in labels.chunks(1000) {
            let pixels = &mut pixels[..size * labels.len()];
            self.fill(pixels)?;
            pool.push(pixels, &labels.iter().map(|&l| i64::from(l)).collect::<Vec<_>>())?;
        }
        self.end()
    }
}
