//! Where images come from: the user's own folder, or datasets that are downloaded.

mod cifar;
mod decode;
mod fashion_mnist;
mod files;
mod folder;
mod idx;
mod layout;
mod tables;

pub use cifar::cifar10;
pub use decode::read_image;
pub use fashion_mnist::fashion_mnist;
pub use folder::image_folder;

use super::dataset::{DataOptions, Dataset};
use crate::{Error, Result};
use files::list;
use std::path::Path;

/// Opens the user's own data if [`DataOptions::folder`] is set (CIFAR-10, IDX files or a folder of images per class);
/// else CIFAR-10 from the cache or the network; else Fashion-MNIST, with a notice that says why.
///
/// # Errors
/// When the folder is set but not usable: other data never replaces it. When neither CIFAR-10 nor Fashion-MNIST is
/// available, with both reasons. When a file is damaged or an option is out of range.
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
            "{} holds CIFAR-10 as Python pickles: take the \"binary version\" (cifar-10-binary.tar.gz) from the same \
             page",
            folder.display()
        )))
    } else if let Some(layout) = layout::read_layout(folder)? {
        folder::load(folder, layout, options.folder_size, options)
    } else {
        Err(Error::Data(format!(
            "the data folder {} (KDLAB_DATA) is not usable: it should hold CIFAR-10 (data_batch_*.bin), IDX files \
             (train-images-idx3-ubyte) or one folder of png or jpg images per class",
            folder.display()
        )))
    }
}
