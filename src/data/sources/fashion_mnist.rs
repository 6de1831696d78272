//! Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): found on disk, or downloaded from its authors or from Debian.
//!
//! Source: <https://github.com/zalandoresearch/fashion-mnist>.

use super::files::{downloads_are_off, list};
use super::idx::{FILES, find, load};
use crate::data::dataset::{DataOptions, Dataset};
use crate::store::download::{Remote, fetch};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// SHA-256 of the authors' gzip files, in the order of [`FILES`].
const SUMS: [&str; 4] = [
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
];
const PACKAGE: &str = "dataset-fashion-mnist";
/// Where Debian's package puts its files.
const SYSTEM: &str = "/usr/share/datasets/fashion-mnist";

/// Opens the dataset in the cache or in Debian's installed package. It is downloaded into the cache first if it is
/// missing: from the authors, or from Debian's package, which needs no root.
///
/// # Errors
/// [`Error::Network`] when it is missing and cannot be downloaded; [`Error::Data`] when a file's content contradicts
/// its header.
pub(super) fn cached(options: &DataOptions) -> Result<Dataset> {
    let cache = options.cache.join("fashion-mnist");
    // An incomplete download is not an error: the missing files are downloaded below.
    let on_disk = [cache.as_path(), Path::new(SYSTEM)].into_iter().find_map(|folder| find(folder).ok().flatten());
    let files = match on_disk {
        Some(files) => files,
        None if options.download => download(&cache)?,
        None => return Err(downloads_are_off("Fashion-MNIST", &cache)),
    };
    load(&files, true, options)
}

fn download(cache: &Path) -> Result<[PathBuf; 4]> {
    match authors(cache) {
        Err(Error::Network(why)) => debian(cache).map_err(|also| match also {
            Error::Network(also) => Error::Network(format!("{why}; {also}")),
            other => other,
        })?,
        done => done?,
    }
    Ok(FILES.map(|name| cache.join(format!("{name}.gz"))))
}

/// Downloads the authors' four files into `cache`.
fn authors(cache: &Path) -> Result<()> {
    for (name, sha256) in FILES.iter().zip(SUMS) {
        let name = format!("{name}.gz");
        let remote = Remote {
            urls: vec![
                format!("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}"),
                format!("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/{name}"),
            ],
            sha256: sha256.into(),
            otherwise: "or set KDLAB_DATA to a folder that holds the data".into(),
            name: name.clone(),
        };
        fetch(&remote, &cache.join(&name))?;
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
