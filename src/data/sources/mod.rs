//! Where images come from: the user's own folder, or datasets that are downloaded.

mod cifar;
mod classes;
mod decode;
mod fashion_mnist;
mod files;
mod folder;
mod idx;
mod layout;
mod originals;
mod picture;
mod pixels;
mod shards;
mod synsets;
mod tables;

pub use decode::read_image;
pub use folder::image_folder;
pub(crate) use layout::shortened;
pub(in crate::data) use originals::{Crops, Originals};

use super::dataset::{DataOptions, Dataset};
use crate::{Error, Result};
use files::list;
use std::path::Path;

/// Opens the user's own data, CIFAR-10 or Fashion-MNIST, whichever is there first:
///
/// 1. What [`DataOptions::folder`] holds, if it is set: CIFAR-10's binary files, the four IDX files of MNIST and its
///    relatives, images in one folder per class, or WebDataset shards (see [`image_folder`]).
/// 2. CIFAR-10: 32x32 colour images of ten classes, 50,000 for training and 10,000 for the test. It is read from
///    [`DataOptions::cache`], or downloaded into it.
/// 3. Fashion-MNIST, with a notice that says why: 28x28 grey images (as three equal channels) of ten kinds of clothes,
///    60,000 for training and 10,000 for the test. It is read from the cache or from Debian's installed package
///    `dataset-fashion-mnist`, or downloaded into the cache.
///
/// # Errors
/// [`Error::Data`] when the folder is set but not usable (other data never replaces it), or when a file is damaged.
/// [`Error::Network`] when neither CIFAR-10 nor Fashion-MNIST is available, with both reasons. [`Error::Input`] when
/// an option is out of range.
pub fn open(options: &DataOptions) -> Result<Dataset> {
    options.check()?;
    if let Some(folder) = &options.folder {
        return own(folder, options);
    }
    let why = match cifar::cached(options) {
        Err(Error::Network(why)) => why,
        done => return done,
    };
    let mut data = fashion_mnist::cached(options).map_err(|e| match e {
        Error::Network(also) => {
            Error::Network(format!("neither CIFAR-10 nor Fashion-MNIST is available: {why}; {also}"))
        }
        other => other,
    })?;
    data.notices.insert(0, format!("Fashion-MNIST instead of CIFAR-10, because {why}"));
    Ok(data)
}

/// Opens the user's folder as whatever it holds.
fn own(folder: &Path, options: &DataOptions) -> Result<Dataset> {
    list(folder)?;
    if let Some(batches) = cifar::find(folder) {
        cifar::load(&batches, options)
    } else if let Some(files) = idx::find(folder)? {
        idx::load(&files, false, options)
    } else if cifar::is_python(folder) {
        Err(Error::Data(format!(
            "{} holds CIFAR-10 as Python pickles: take the \"binary version\" (cifar-10-binary.tar.gz) from the same \
             page",
            folder.display()
        )))
    } else if let Some(layout) = folder::find(folder, options)? {
        decode::check_size(options.folder_size)?;
        folder::load(folder, layout, options.folder_size, options)
    } else {
        Err(Error::Data(format!(
            "the data folder {} (KDLAB_DATA) is not usable: it should hold CIFAR-10 (data_batch_*.bin), IDX files \
             (train-images-idx3-ubyte), one folder of png or jpg images per class, or WebDataset shards (train-*.tar)",
            folder.display()
        )))
    }
}
