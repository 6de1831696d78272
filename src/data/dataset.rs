//! A dataset: labelled images in three splits, and how a reader's images are divided among them.

use super::framing::Framing;
use super::pool::Pool;
use super::sampling::{Purpose, stratified};
use super::split::Split;
use crate::store::{cache_folder, digest::sha256, variable};
use crate::{Error, Result};
use std::fmt;
use std::path::PathBuf;

/// Labelled images in three disjoint splits.
pub struct Dataset {
    /// Such as "CIFAR-10"; the name of the folder for the user's own images.
    pub name: String,
    /// Class names; a label is an index into this.
    pub classes: Vec<String>,
    /// For fitting weights.
    pub train: Split,
    /// For selecting the best weights and settings.
    pub validation: Split,
    /// For one measurement at the end.
    pub test: Split,
    /// Messages for the user: why this data was chosen, what was missing, what was skipped.
    pub notices: Vec<String>,
    /// Hex SHA-256 over pixels, labels and the rows of the splits.
    pub key: String,
    /// How its pictures became squares, which pictures that a student meets later must become too.
    pub framing: Framing,
    /// Rows in the pool of the images without a label.
    pub(super) unlabelled: Vec<i64>,
}

impl Dataset {
    /// Returns the images on which a student is distilled: the training split, followed by the images without a label,
    /// if there are any. Their label is -100. A loss takes the teacher's soft targets of all images, and cross-entropy
    /// of those with a label.
    pub fn transfer_set(&self) -> Split {
        match self.unlabelled.as_slice() {
            [] => self.train.clone(),
            rows => self.train.followed_by(rows),
        }
    }
}

/// Which data to open and how to divide it.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Share of the training images to hold out for validation, inside (0, 1).
    pub validation: f64,
    /// Seed of every random choice: the splits, the subsets, and the order of an image folder.
    pub seed: u64,
    /// Number of training images to use (stratified, after the validation split); `None` for all.
    pub train_images: Option<usize>,
    /// Number of validation images to use; `None` for all.
    pub validation_images: Option<usize>,
    /// Number of test images to use; `None` for all.
    pub test_images: Option<usize>,
    /// The user's own data; `KDLAB_DATA` by default.
    pub folder: Option<PathBuf>,
    /// Folder for downloads: `KDLAB_CACHE` by default, or `kdlab` in the user's cache folder.
    pub cache: PathBuf,
    /// Whether missing data may be downloaded.
    pub download: bool,
    /// Height and width in pixels to which [`open`](super::open) resizes the images of a folder.
    pub folder_size: i64,
    /// How the images of a folder become squares.
    pub framing: Framing,
    /// Most bytes of decoded images of a folder that are held in memory. If there are more, they lie in a file in
    /// `cache/pixels`, which is written once, and each batch is read from there. `None` allows half of the memory that
    /// this process may use.
    pub memory: Option<u64>,
}

impl Default for DataOptions {
    fn default() -> Self {
        DataOptions {
            validation: 0.1,
            seed: 0,
            train_images: None,
            validation_images: None,
            test_images: None,
            folder: variable("KDLAB_DATA"),
            cache: cache_folder(),
            download: true,
            folder_size: 64,
            framing: Framing::Squeeze,
            memory: None,
        }
    }
}

impl DataOptions {
    /// Refuses options that no data could satisfy, before anything is downloaded or read.
    pub(super) fn check(&self) -> Result<()> {
        if !(self.validation > 0.0 && self.validation < 1.0) {
            let fraction = self.validation;
            let why = format!("validation fraction {fraction}: it must lie inside (0, 1), 0.1 is usual");
            return Err(Error::Input(why));
        }
        let sizes = [
            ("train_images", self.train_images),
            ("validation_images", self.validation_images),
            ("test_images", self.test_images),
        ];
        match sizes.iter().find(|(_, n)| *n == Some(0)) {
            Some((name, _)) => Err(Error::Input(format!("{name} 0: a split needs images; None takes all of them"))),
            None => Ok(()),
        }
    }
}

/// What a reader found: images with labels, and which of them belong to which split.
pub(super) struct Found {
    /// Name of the dataset.
    pub name: String,
    pub classes: Vec<String>,
    pub pool: Pool,
    /// Rows of the pool for each split.
    pub train: Vec<i64>,
    /// `None` if the validation split is to be held out of `train`.
    pub validation: Option<Vec<i64>>,
    pub test: Vec<i64>,
    /// Rows of images without a label.
    pub unlabelled: Vec<i64>,
    pub notices: Vec<String>,
}

impl Found {
    /// Divides the images into the three splits.
    pub fn into_dataset(self, options: &DataOptions) -> Result<Dataset> {
        let Found { name, classes, pool, train, validation, test, unlabelled, mut notices } = self;
        if classes.len() < 2 {
            return Err(Error::Data(format!(
                "the dataset {name} has one class only ({}): add a subfolder with images of a second one",
                classes.join("")
            )));
        }
        let (train, validation) = match validation {
            Some(validation) => (train, validation),
            None => {
                let n = (train.len() as f64 * options.validation).round() as usize;
                let (held, rest) = stratified(&train, &pool.labels, n.max(1), Purpose::ValidationSplit, options.seed);
                (rest, held)
            }
        };
        let mut split = |split: &str, rows: Vec<i64>, wanted: Option<usize>| -> Result<Split> {
            let has = |class: usize| rows.iter().any(|&row| pool.labels[row as usize] == class as i64);
            if let Some(class) = (0..classes.len()).find(|&class| !has(class)) {
                return Err(Error::Data(format!(
                    "class \"{}\" has no image in the {split} split of {name}: add images of it (3 are the least), or \
                     leave the class out",
                    classes[class]
                )));
            }
            let rows = match wanted {
                Some(n) if n < classes.len() => {
                    let of = classes.len();
                    return Err(Error::Input(format!(
                        "{split}_images {n}: less than one for each of the {of} classes; give {of} or more, or None"
                    )));
                }
                Some(n) if n < rows.len() => stratified(&rows, &pool.labels, n, Purpose::Subset, options.seed).0,
                Some(n) if n > rows.len() => {
                    notices.push(format!("{n} {split} images were asked for; all {} there are used", rows.len()));
                    rows
                }
                _ => rows,
            };
            Ok(Split::new(split, &pool, rows, classes.len()))
        };
        let train = split("train", train, options.train_images)?;
        let validation = split("validation", validation, options.validation_images)?;
        let test = split("test", test, options.test_images)?;
        let key = sha256([train.key.as_bytes(), validation.key.as_bytes(), test.key.as_bytes()]);
        let framing = Framing::Squeeze;
        Ok(Dataset { name, classes, train, validation, test, notices, key, framing, unlabelled })
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (height, width) = self.train.size();
        let Dataset { name, classes, train, validation, test, notices, .. } = self;
        writeln!(f, "{name}: {} classes ({}),", classes.len(), classes.join(", "))?;
        // On its own line: JupyterLab breaks a long line anywhere, even inside a number.
        let framing = if self.framing.is_squeeze() { "" } else { " cropped from the centre" };
        write!(f, "{height}x{width} pixels{framing}, ")?;
        write!(f, "{} train, {} validation, {} test images", train.len(), validation.len(), test.len())?;
        if !self.unlabelled.is_empty() {
            write!(f, ", {} without a label", self.unlabelled.len())?;
        }
        notices.iter().try_for_each(|notice| write!(f, "\nNote: {notice}"))
    }
}
