//! Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): found on disk, or downloaded from its authors or from Debian.
//!
//! Source: <https://github.com/zalandoresearch/fashion-mnist>.

use super::files::{downloads_are_off, list};
use super::idx::{FILES, find, load};
use crate::data::dataset::{DataOptions, Dataset};
use crate::store::download::{Limits, Remote, Sum, fetch, printer};
use crate::{Error, Result};
use std::path::Path;
use std::process::Command;

/// MD5 sums of the authors' gzip files, in the order of [`FILES`].
const SUMS: [&str; 4] = [
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
];
const PACKAGE: &str = "dataset-fashion-mnist";
/// Where Debian's package puts its files.
const SYSTEM: &str = "/usr/share/datasets/fashion-mnist";

/// Opens Fashion-MNIST: 28x28 grey images (as three equal channels) of ten kinds of clothes, 60,000 for training and
/// 10,000 for the test.
///
/// It is read from [`DataOptions::folder`] if that is set, else from the cache or Debian's installed package, else
/// downloaded into the cache: from the authors, or from Debian's package, which needs no root.
///
/// # Errors
/// [`Error::Network`] when it is not on disk and cannot be downloaded; [`Error::Data`] when a file is missing or its
/// content contradicts its header; [`Error::Input`] when an option is out of range.
pub fn fashion_mnist(options: &DataOptions) -> Result<Dataset> {
    options.check()?;
    if let Some(folder) = &options.folder {
        let files = find(folder)?.ok_or_else(|| {
            let (folder, first) = (folder.display(), FILES[0]);
            Error::Data(format!("{folder} holds no Fashion-MNIST: {first}.gz and three more are expected"))
        })?;
        return load(&files, true, options);
    }
    let cache = options.cache.join("fashion-mnist");
    for folder in [cache.as_path(), Path::new(SYSTEM)] {
        // An incomplete download is not an error: the missing files are downloaded below.
        if folder.is_dir()
            && let Ok(Some(files)) = find(folder)
        {
            return load(&files, true, options);
        }
    }
    if !options.download {
        return Err(downloads_are_off("Fashion-MNIST", &cache));
    }
    match authors(&cache) {
        Err(Error::Network(why)) => debian(&cache).map_err(|also| match also {
            Error::Network(also) => Error::Network(format!("{why}; {also}")),
            other => other,
        })?,
        done => done?,
    }
    let files = find(&cache)?.ok_or_else(|| {
        Error::Data(format!("{} was filled but holds no IDX files: delete it and run again", cache.display()))
    })?;
    load(&files, true, options)
}

/// Downloads the authors' four files into `cache`.
fn authors(cache: &Path) -> Result<()> {
    for (name, md5) in FILES.iter().zip(SUMS) {
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

/// Unpacks the four files of Debian's package into `cache`; apt checks the package's signature.
fn debian(cache: &Path) -> Result<()> {
    std::fs::create_dir_all(cache).map_err(|e| Error::io("creating", cache, e))?;
    let temporary = tempfile::tempdir_in(cache).map_err(|e| Error::io("writing in", cache, e))?;
    let place = temporary.path();
    println!("Fetching Debian's package {PACKAGE} (31 MB)");
    run(Command::new("apt-get").args(["download", PACKAGE]).current_dir(place))?;
    let package = list(place)?.into_iter().find(|p| p.extension().is_some_and(|e| e == "deb"));
    let package = package.ok_or_else(|| Error::Network(format!("apt-get download {PACKAGE} left no package")))?;
    run(Command::new("dpkg").arg("-x").arg(&package).arg(place))?;
    for name in FILES {
        let (from, to) = (place.join(&SYSTEM[1..]).join(format!("{name}.gz")), cache.join(format!("{name}.gz")));
        std::fs::rename(&from, &to).map_err(|e| Error::io("unpacking", &from, e))?;
    }
    Ok(())
}

/// Runs a program of the package manager. The error quotes its last line and says what the user can do.
fn run(command: &mut Command) -> Result<()> {
    let failed = |why: String| {
        Error::Network(format!(
            "Debian's package {PACKAGE} could not be fetched ({why}); on Debian or Ubuntu run `apt-get update` as root \
             and try again, or install {PACKAGE}"
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
