//! A data set: labelled images in three splits, and how they are divided.

use super::pool::{Pool, Split};
use super::split::{Purpose, stratified};
use crate::store::{cache_folder, digest::sha256, variable};
use crate::{Error, Result};
use std::fmt;
use std::path::PathBuf;

/// Labelled images in three disjoint splits.
///
/// `validation` is held out of the training images and picks the best weights; `test` is for one look at the end.
pub struct Dataset {
    pub name: String,
    /// Class names; a label is an index into this.
    pub classes: Vec<String>,
    pub train: Split,
    pub validation: Split,
    pub test: Split,
    /// What the user should know: why this data was chosen, what was missing, what was skipped.
    pub notices: Vec<String>,
    /// Hex SHA-256 over pixels, labels and the membership of the splits.
    pub key: String,
}

/// Which data to open and how to divide it.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Share of the training images held out for validation, inside (0, 1).
    pub validation: f64,
    /// Seed of the hold-out and of the subsets.
    pub seed: u64,
    /// Use only so many training images (stratified, after the hold-out); `None` for all.
    pub train_images: Option<usize>,
    pub validation_images: Option<usize>,
    pub test_images: Option<usize>,
    /// The user's own data; `KDLAB_DATA` by default.
    pub folder: Option<PathBuf>,
    /// Where downloads are kept; see [`cache_folder`].
    pub cache: PathBuf,
    /// Whether missing data may be downloaded.
    pub download: bool,
    /// Height and width that [`open`] loads an image folder at, in pixels.
    pub folder_size: i64,
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
        }
    }
}

/// Rows of a pool that are given to train, validation and test; validation is held out of train where it is `None`.
pub(super) struct Rows {
    pub train: Vec<i64>,
    pub validation: Option<Vec<i64>>,
    pub test: Vec<i64>,
}

/// Refuses options that no data could satisfy, before anything is downloaded or read.
pub(super) fn check(options: &DataOptions) -> Result<()> {
    if !(options.validation > 0.0 && options.validation < 1.0) {
        return Err(Error::Input(format!(
            "validation fraction {}: it must lie inside (0, 1), 0.1 is usual",
            options.validation
        )));
    }
    let sizes = [
        ("train_images", options.train_images),
        ("validation_images", options.validation_images),
        ("test_images", options.test_images),
    ];
    match sizes.iter().find(|(_, n)| *n == Some(0)) {
        Some((name, _)) => Err(Error::Input(format!("{name} 0: a split needs images; None takes all of them"))),
        None => Ok(()),
    }
}

/// Divides a filled pool into the three splits.
pub(super) fn assemble(
    name: String,
    classes: Vec<String>,
    pool: Pool,
    rows: Rows,
    mut notices: Vec<String>,
    options: &DataOptions,
) -> Result<Dataset> {
    check(options)?;
    if classes.len() < 2 {
        return Err(Error::Data(format!(
            "the dataset {name} has one class only ({}): add a subfolder with images of a second one",
            classes.join("")
        )));
    }
    let stock = pool.finish()?;
    let (train, validation) = match rows.validation {
        Some(validation) => (rows.train, validation),
        None => {
            let n = (rows.train.len() as f64 * options.validation).round() as usize;
            let (held, rest) = stratified(&rows.train, &stock.labels, n.max(1), Purpose::Validation, options.seed);
            (rest, held)
        }
    };
    let mut part = |part: &str, rows: Vec<i64>, wanted: Option<usize>| -> Result<Split> {
        if let Some(class) = (0..classes.len()).find(|&k| !rows.iter().any(|&r| stock.labels[r as usize] == k as i64)) {
            return Err(Error::Data(format!(
                "class \"{}\" has no image in the {part} split of {name}: add images of it (3 are the least), or \
                 leave the class out",
                classes[class]
            )));
        }
        let rows = match wanted {
            Some(n) if n < classes.len() => {
                return Err(Error::Input(format!(
                    "{part}_images {n}: less than one for each of the {} classes",
                    classes.len()
                )));
            }
            Some(n) if n < rows.len() => stratified(&rows, &stock.labels, n, Purpose::Subset, options.seed).0,
            Some(n) if n > rows.len() => {
                notices.push(format!("{n} {part} images were asked for; all {} there are used", rows.len()));
                rows
            }
            _ => rows,
        };
        Ok(Split::new(part, &stock, rows, classes.len()))
    };
    let train = part("train", train, options.train_images)?;
    let validation = part("validation", validation, options.validation_images)?;
    let test = part("test", rows.test, options.test_images)?;
    let key = sha256([train.key.as_bytes(), validation.key.as_bytes(), test.key.as_bytes()]);
    Ok(Dataset { name, classes, train, validation, test, notices, key })
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (height, width) = self.train.size();
        let Dataset { name, classes, train, validation, test, notices, .. } = self;
        writeln!(f, "{name}: {} classes ({}),", classes.len(), classes.join(", "))?;
        // On a line of its own: JupyterLab breaks a long one anywhere, and 500 behind the end of it reads as 50 and 0.
        write!(f, "{height}x{width} pixels, ")?;
        write!(f, "{} train, {} validation, {} test images", train.len(), validation.len(), test.len())?;
        notices.iter().try_for_each(|notice| write!(f, "\nNote: {notice}"))
    }
}
