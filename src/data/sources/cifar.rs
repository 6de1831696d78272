//! CIFAR-10 in its binary version: records of one label byte and 3 x 32 x 32 pixel bytes.
//!
//! Source: <https://www.cs.toronto.edu/~kriz/cifar.html> (Alex Krizhevsky, 2009).

use super::files::{downloads_are_off, file_name};
use crate::data::dataset::{DataOptions, Dataset, Found};
use crate::data::pool::Pool;
use crate::store::atomic;
use crate::store::download::{Remote, fetch};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

const FOLDER: &str = "cifar-10-batches-bin";
const ARCHIVE: &str = "cifar-10-binary.tar.gz";
const RECORD: usize = 1 + 3 * 32 * 32;
/// Records in each official batch file.
const BATCH: usize = 10_000;
/// Records appended at a time. The key of the dataset depends on it.
const PIECE: usize = 500;
const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The folder with the batch files: `folder` itself or the archive's folder in it.
pub(super) fn find(folder: &Path) -> Option<PathBuf> {
    [folder.to_owned(), folder.join(FOLDER)]
        .into_iter()
        .find(|f| f.join("test_batch.bin").exists() || f.join("data_batch_1.bin").exists())
}

/// Whether the folder holds the Python version of the dataset.
pub(super) fn is_python(folder: &Path) -> bool {
    [folder.to_owned(), folder.join("cifar-10-batches-py")].iter().any(|f| f.join("data_batch_1").is_file())
}

/// Opens the dataset in the cache and downloads it first if it is missing.
///
/// # Errors
/// [`Error::Network`] when it is missing and cannot be downloaded.
pub(super) fn cached(options: &DataOptions) -> Result<Dataset> {
    let folder = options.cache.join(FOLDER);
    if !folder.is_dir() {
        std::fs::create_dir_all(&options.cache).map_err(|e| Error::io("creating", &options.cache, e))?;
        let _lock = atomic::lock(&options.cache.join(format!(".{FOLDER}.lock")))?;
        // Another process may have unpacked it meanwhile.
        if !folder.is_dir() {
            download(&folder, options)?;
        }
    }
    load(&folder, options)
}

fn download(folder: &Path, options: &DataOptions) -> Result<()> {
    let archive = options.cache.join(ARCHIVE);
    if !options.download && !archive.exists() {
        return Err(downloads_are_off("CIFAR-10", &options.cache));
    }
    let remote = Remote {
        name: ARCHIVE.into(),
        urls: vec![
            format!("https://www.cs.toronto.edu/~kriz/{ARCHIVE}"),
            format!("https://cave.cs.toronto.edu/kriz/{ARCHIVE}"),
        ],
        sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd".into(),
        otherwise: "or set KDLAB_DATA to a folder that holds the data".into(),
    };
    fetch(&remote, &archive)?;
    unpack(&archive, folder)
}

/// Unpacks the archive's one folder to `folder`, whole or not at all, and removes the archive.
fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    let parent = archive.parent().unwrap_or(Path::new("."));
    let unpacked = || -> std::io::Result<()> {
        let temporary = tempfile::tempdir_in(parent)?;
        let file = std::io::BufReader::new(std::fs::File::open(archive)?);
        tar::Archive::new(flate2::read::GzDecoder::new(file)).unpack(temporary.path())?;
        std::fs::rename(temporary.path().join(FOLDER), folder)?;
        std::fs::remove_file(archive)
    };
    unpacked().map_err(|e| Error::io("unpacking", archive, e))
}

/// Opens the batch files in `folder`. Fewer than five for training are accepted with a notice.
///
/// # Errors
/// [`Error::Data`] when a file is missing, truncated or oversized, or holds a label above 9.
pub(super) fn load(folder: &Path, options: &DataOptions) -> Result<Dataset> {
    // Only these names: a copy of a file would put the same images into train and validation.
    let train: Vec<PathBuf> =
        (1..=5).map(|i| folder.join(format!("data_batch_{i}.bin"))).filter(|p| p.is_file()).collect();
    let test = folder.join("test_batch.bin");
    if train.is_empty() || !test.is_file() {
        let missing = if train.is_empty() { "data_batch_1.bin to data_batch_5.bin" } else { "test_batch.bin" };
        return Err(Error::Data(format!("{missing} not found in {}: unpack {ARCHIVE} there anew", folder.display())));
    }
    let mut notices = Vec::new();
    if train.len() < 5 {
        let names: Vec<String> = train.iter().map(|p| file_name(p)).collect();
        notices.push(format!("{} of 5 training batches found: {}", train.len(), names.join(", ")));
    }
    let mut pool = Pool::new((train.len() + 1) * BATCH, [3, 32, 32])?;
    let mut first_test = 0;
    for path in train.iter().chain([&test]) {
        first_test = pool.len() as i64;
        read(path, &mut pool)?;
        let n = pool.len() - first_test as usize;
        if n < BATCH {
            notices.push(format!("{} holds {n} of the official {BATCH} images", file_name(path)));
        }
    }
    let (train, test) = ((0..first_test).collect(), (first_test..pool.len() as i64).collect());
    let classes = class_names(folder, &mut notices)?;
    Found { name: "CIFAR-10".into(), classes, pool, train, validation: None, test, unlabelled: vec![], notices }
        .into_dataset(options)
}

/// Appends the records of a batch file to the pool.
fn read(path: &Path, pool: &mut Pool) -> Result<()> {
    let (io, shown) = (|e| Error::io("reading", path, e), path.display());
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length == 0 || length % RECORD as u64 != 0 || length > (BATCH * RECORD) as u64 {
        let most = BATCH * RECORD;
        let what = if length > most as u64 { "oversized" } else { "truncated" };
        return Err(Error::Data(format!(
            "{shown} has {length} bytes, expected a multiple of {RECORD} up to {most}: the file is {what}; replace it \
             by a whole copy"
        )));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    let labels: Vec<i64> = bytes.iter().step_by(RECORD).map(|&label| label.into()).collect();
    if let Some(record) = labels.iter().position(|&label| label >= CLASSES.len() as i64) {
        let label = labels[record];
        return Err(Error::Data(format!(
            "{shown} record {record} has label {label}, expected 0 to 9: this is not CIFAR-10's binary version, or it \
             is damaged"
        )));
    }
    for (labels, records) in labels.chunks(PIECE).zip(bytes.chunks(PIECE * RECORD)) {
        let pixels: Vec<u8> = records.chunks(RECORD).flat_map(|record| &record[1..]).copied().collect();
        pool.push(&pixels, labels)?;
    }
    Ok(())
}

/// The names in `batches.meta.txt`, or CIFAR-10's usual names if the file is missing.
fn class_names(folder: &Path, notices: &mut Vec<String>) -> Result<Vec<String>> {
    let path = folder.join("batches.meta.txt");
    let Ok(text) = std::fs::read_to_string(&path) else {
        notices.push("batches.meta.txt is missing: CIFAR-10's usual class names are used".into());
        return Ok(CLASSES.map(String::from).into());
    };
    let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    let (n, path) = (names.len(), path.display());
    match n {
        10 => Ok(names),
        _ => Err(Error::Data(format!("{path} names {n} classes, CIFAR-10 has 10: restore the file or delete it"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn archive(path: &Path, file: &str) -> std::io::Result<()> {
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        tar.append_data(&mut header, file, &b"bytes"[..])?;
        fs::write(path, tar.into_inner()?.finish()?)
    }

    #[test]
    fn the_archive_is_unpacked_whole_or_not_at_all() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let cache = tempfile::tempdir()?;
        let (from, to) = (cache.path().join(ARCHIVE), cache.path().join(FOLDER));
        archive(&from, "cifar-10-batches-bin/test_batch.bin")?;
        let whole = fs::read(&from)?;

        fs::write(&from, &whole[..whole.len() / 2])?;
        let text = unpack(&from, &to).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("unpacking") && text.contains(ARCHIVE), "{text}");
        assert_eq!(fs::read_dir(cache.path())?.count(), 1, "nothing but the archive is left");

        archive(&from, "elsewhere/test_batch.bin")?;
        assert!(unpack(&from, &to).is_err());
        assert!(!to.exists());

        fs::write(&from, &whole)?;
        unpack(&from, &to)?;
        assert_eq!(fs::read(to.join("test_batch.bin"))?, b"bytes");
        assert_eq!(fs::read_dir(cache.path())?.count(), 1, "nothing but the folder is left");
        Ok(())
    }
}
