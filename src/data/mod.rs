//! Images with labels: found or downloaded, checked, held in memory once as bytes, and handed out by sample index.
//!
//! ```no_run
//! use kdlab::data::{self, DataOptions};
//! let data = data::open(&DataOptions::default())?;
//! println!("{data}"); // says also which data this is, and why
//! for rows in data::batches(&data::shuffled(data.train.len(), 0, 0), 64)? {
//!     let batch = data.train.batch(&rows)?; // images u8 [64, 3, 32, 32], labels i64 [64]
//! }
//! # Ok::<(), kdlab::Error>(())
//! ```

mod cifar;
pub mod download;
mod folder;
mod idx;
mod pool;
mod roboflow;
mod split;
mod transform;
mod views;

pub use cifar::cifar10;
pub use folder::{image_folder, read_image};
pub use idx::fashion_mnist;
pub use pool::{Batch, Split};
pub use split::{batches, shuffled};
pub use transform::Transform;
pub(crate) use views::Drawn;
pub use views::Views;

use crate::{Error, Result};
use pool::Pool;
use split::{Purpose, stratified};
use std::fmt;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// A copy of `values` on a device. A GPU is not waited for: it is still at work on the batch before.
pub(crate) fn upload<T: tch::kind::Element>(values: &[T], device: Device) -> Result<Tensor> {
    let here = Tensor::f_from_slice(values)?;
    match device {
        Device::Cpu => Ok(here),
        // CUDA has read memory like this when the call returns.
        _ => Ok(here.f_internal_to_copy((here.kind(), device), device.is_cuda())?),
    }
}

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

/// A set and non-empty environment variable that holds a path.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// Where kdlab keeps data and weights: `KDLAB_CACHE`, else `kdlab` in the user's cache folder, else in the
/// system's folder for temporary files.
pub fn cache_folder() -> PathBuf {
    cache_folder_on(std::env::consts::OS, &variable)
}

fn cache_folder_on(os: &str, variable: &dyn Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let user = || match os {
        "macos" => variable("HOME").map(|h| h.join("Library/Caches")),
        "windows" => variable("LOCALAPPDATA"),
        // The XDG specification has relative paths ignored.
        _ => variable("XDG_CACHE_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| variable("HOME").map(|h| h.join(".cache"))),
    };
    variable("KDLAB_CACHE").unwrap_or_else(|| user().unwrap_or_else(std::env::temp_dir).join("kdlab"))
}

/// The user's own data where [`DataOptions::folder`] is set (CIFAR-10, IDX files or a folder of images per class);
/// else CIFAR-10 from the cache or the network; else Fashion-MNIST, with a notice that says why.
///
/// # Errors
/// When the folder is set but not usable: it is never passed over for other data. When neither CIFAR-10 nor
/// Fashion-MNIST can be had: both reasons are given. When a file is damaged or an option is out of range.
pub fn open(options: &DataOptions) -> Result<Dataset> {
    if let Some(folder) = &options.folder {
        return own(folder, options);
    }
    let why = match cifar10(options) {
        Err(Error::Network(why)) => why,
        done => return done,
    };
    let mut data = fashion_mnist(options).map_err(|e| match e {
        Error::Network(also) => Error::Network(format!("no data set could be had: {why}; {also}")),
        other => other,
    })?;
    data.notices.insert(0, format!("Fashion-MNIST instead of CIFAR-10, because {why}"));
    Ok(data)
}

/// Opens the user's folder as whatever it holds.
fn own(folder: &Path, options: &DataOptions) -> Result<Dataset> {
    list(folder)?;
    if cifar::find(folder).is_some() {
        cifar10(options)
    } else if let Some(files) = idx::find(folder)? {
        idx::load(&files, false, options)
    } else if cifar::is_python(folder) {
        Err(Error::Data(format!(
            "{} holds CIFAR-10 as Python pickles: take the \"binary version\" (cifar-10-binary.tar.gz) from the same page",
            folder.display()
        )))
    } else if folder::find(folder)? {
        image_folder(folder, options.folder_size, options)
    } else {
        Err(Error::Data(format!(
            "the data folder {} (KDLAB_DATA) is not usable: it should hold CIFAR-10 (data_batch_*.bin), IDX files \
             (train-images-idx3-ubyte) or one folder of png or jpg images per class",
            folder.display()
        )))
    }
}

/// The entries of a folder in order of name, hidden ones left out.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| {
        Error::Io(format!("reading the data folder {}: {e}; check the path (KDLAB_DATA)", folder.display()))
    };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            entries.push(entry.path());
        }
    }
    entries.sort();
    Ok(entries)
}

/// The last part of a path, for names in messages.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Rows of a pool that are given to train, validation and test; validation is held out of train where it is `None`.
struct Rows {
    train: Vec<i64>,
    validation: Option<Vec<i64>>,
    test: Vec<i64>,
}

/// Refuses options that no data could satisfy, before anything is downloaded or read.
fn check(options: &DataOptions) -> Result<()> {
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
fn assemble(
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
    let key = crate::files::sha256([train.key.as_bytes(), validation.key.as_bytes(), test.key.as_bytes()]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_system_wants_it() {
        let place = |os: &str, set: &[(&str, &str)]| {
            cache_folder_on(os, &|name| set.iter().find(|s| s.0 == name).map(|s| PathBuf::from(s.1)))
        };
        let (home, xdg) = (("HOME", "/h"), ("XDG_CACHE_HOME", "/x"));
        assert_eq!(place("linux", &[home]), Path::new("/h/.cache/kdlab"));
        assert_eq!(place("linux", &[home, xdg]), Path::new("/x/kdlab"));
        assert_eq!(place("linux", &[home, ("XDG_CACHE_HOME", "x")]), Path::new("/h/.cache/kdlab"));
        assert_eq!(place("macos", &[home, xdg]), Path::new("/h/Library/Caches/kdlab"));
        assert_eq!(place("macos", &[home, ("KDLAB_CACHE", "/k")]), Path::new("/k"));
        assert_eq!(place("linux", &[]), std::env::temp_dir().join("kdlab"));
    }
}
