//! The IDX format of MNIST and of the datasets that share its four file names; plain or gzipped.
//!
//! Source: <http://yann.lecun.com/exdb/mnist/>.

use crate::data::dataset::{DataOptions, Dataset, Found};
use crate::data::pool::Pool;
use crate::store::digest::sha256;
use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Train images, train labels, test images, test labels.
pub(super) const FILES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];
/// Images appended at a time. The key of the dataset depends on it.
const PIECE: usize = 1000;
const FASHION_CLASSES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];
/// SHA-256 of Fashion-MNIST's 10,000 test labels, which distinguish it from other data under the same names.
const FASHION_TEST_LABELS: &str = "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9";

/// The four IDX files of a folder, or of `fashion-mnist` in it; `None` if there is no such file.
pub(super) fn find(folder: &Path) -> Result<Option<[PathBuf; 4]>> {
    for folder in [folder.to_owned(), folder.join("fashion-mnist")] {
        let place = |name: &str| {
            let names = [name.to_owned(), name.replace("-idx", ".idx")];
            let paths = names.iter().flat_map(|n| [folder.join(n), folder.join(format!("{n}.gz"))]);
            paths.into_iter().find(|p| p.is_file())
        };
        match FILES.map(place) {
            [None, None, None, None] => {}
            [Some(a), Some(b), Some(c), Some(d)] => return Ok(Some([a, b, c, d])),
            some => {
                let missing: Vec<&str> = (0..4).filter(|&i| some[i].is_none()).map(|i| FILES[i]).collect();
                let (folder, missing) = (folder.display(), missing.join(", "));
                let what = format!("{folder} lacks {missing} (plain or .gz): all four IDX files are needed");
                return Err(Error::Data(what));
            }
        }
    }
    Ok(None)
}

/// Reads the four files. With `fashion` they must hold Fashion-MNIST's ten classes; else the test labels decide.
pub(super) fn load(paths: &[PathBuf; 4], fashion: bool, options: &DataOptions) -> Result<Dataset> {
    let [train_images, train_labels, test_images, test_labels] = paths;
    let (size, train_pixels, mut train) = read_pair(train_images, train_labels)?;
    let (other, test_pixels, mut test) = read_pair(test_images, test_labels)?;
    if size != other {
        let (train, test) = (train_images.display(), test_images.display());
        return Err(Error::Data(format!(
            "{train} has images of {size:?} pixels and {test} of {other:?}: both need the same size"
        )));
    }
    let mut notices = Vec::new();
    let fashion = fashion || sha256([test.as_slice()]) == FASHION_TEST_LABELS;
    // EMNIST's letters are 1 to 26.
    let first = u8::from(!fashion && train.iter().chain(&test).min() == Some(&1));
    if first == 1 {
        train.iter_mut().chain(&mut test).for_each(|label| *label -= 1);
        notices.push("the labels begin with 1: label 1 is class 0, and each class is named by its label".to_owned());
    }
    let largest = train.iter().chain(&test).max().copied().unwrap_or(0);
    let count = if fashion { FASHION_CLASSES.len() } else { 1 + usize::from(largest) };
    for (path, labels) in [(train_labels, &train), (test_labels, &test)] {
        if let Some(record) = labels.iter().position(|&label| usize::from(label) >= count) {
            let (path, label, last) = (path.display(), labels[record], count - 1);
            return Err(Error::Data(format!("{path} record {record} has label {label}, expected 0 to {last}")));
        }
    }
    let mut pool = Pool::new(train.len() + test.len(), [1, size[0] as i64, size[1] as i64])?;
    for (labels, pixels) in [(&train, train_pixels), (&test, test_pixels)] {
        for (labels, pixels) in labels.chunks(PIECE).zip(pixels.chunks(PIECE * size[0] * size[1])) {
            pool.push(pixels, &labels.iter().map(|&label| label.into()).collect::<Vec<i64>>())?;
        }
    }
    let (name, classes) = if fashion {
        ("Fashion-MNIST".to_owned(), FASHION_CLASSES.map(String::from).into())
    } else {
        let folder = train_images.parent().unwrap_or(Path::new("."));
        let first = usize::from(first);
        (format!("IDX images in {}", folder.display()), (first..first + count).map(|k| k.to_string()).collect())
    };
    let (first_test, end) = (train.len() as i64, pool.len() as i64);
    let (train, test) = ((0..first_test).collect(), (first_test..end).collect());
    Found { name, classes, pool, train, validation: None, test, unlabelled: vec![], notices }.into_dataset(options)
}

/// Reads a file of images and that of their labels: height and width, pixels, labels.
fn read_pair(images: &Path, labels: &Path) -> Result<([usize; 2], Vec<u8>, Vec<u8>)> {
    let ((shape, pixels), (_, found)) = (read(images, 3)?, read(labels, 1)?);
    if shape[0] != found.len() {
        let (images, n, labels, of) = (images.display(), shape[0], labels.display(), found.len());
        return Err(Error::Data(format!(
            "{images} holds {n} images and {labels} {of} labels: the files do not belong together"
        )));
    }
    Ok(([shape[1], shape[2]], pixels, found))
}

/// Reads an IDX file of unsigned bytes in `dimensions` dimensions: its shape and its values.
fn read(path: &Path, dimensions: u8) -> Result<(Vec<usize>, Vec<u8>)> {
    let failed = |e| Error::io("reading", path, e);
    let wrong =
        |what: String| Error::Data(format!("{} {what}; replace it, or delete it from the cache", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let file = std::io::BufReader::new(file);
    let gzipped = path.extension().is_some_and(|e| e == "gz");
    let mut body: Box<dyn Read> = if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut fill = |bytes: &mut [u8], shape: &[usize]| {
        body.read_exact(bytes).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => wrong(format!("is truncated: its header says {shape:?}")),
            ErrorKind::InvalidInput | ErrorKind::InvalidData => wrong(format!("is damaged ({e})")),
            _ => failed(e),
        })
    };
    let (mut word, mut shape) = ([0; 4], Vec::new());
    fill(&mut word, &shape)?;
    if word != [0, 0, 8, dimensions] {
        let expected = format!("expected [0, 0, 8, {dimensions}]: it is no IDX file of this kind");
        return Err(wrong(format!("starts with {word:?}, {expected}")));
    }
    for _ in 0..dimensions {
        fill(&mut word, &shape)?;
        shape.push(u32::from_be_bytes(word) as usize);
    }
    // Deflate compresses at most 1032 to 1. A damaged header must not make us take memory for more than that.
    let bytes = shape.iter().try_fold(1u64, |all, &n| all.checked_mul(n as u64));
    let Some(bytes) = bytes.filter(|&bytes| bytes > 0 && bytes <= length.saturating_mul(1032)) else {
        return Err(wrong(format!("claims the shape {shape:?}, which a file of {length} bytes cannot hold")));
    };
    let mut values = vec![0; bytes as usize];
    fill(&mut values, &shape)?;
    // Reading to the end also checks gzip's own checksum.
    match body.read(&mut [0]) {
        Ok(0) => Ok((shape, values)),
        Ok(_) => Err(wrong(format!("is oversized: its header says {shape:?}"))),
        Err(e) => Err(wrong(format!("is damaged ({e})"))),
    }
}
