//! Images as a file of bytes, for a dataset that is larger than memory. It is written once, from front to back; batches
//! are read by positioned reads. A pass that was stopped or killed goes on where it ended.
//!
//! The pixels of the images come first, one row an image. Behind them lies the record, in lines of JSON: the key of
//! the sources, then what became of each of their images, then the key of the pool; and at the end the record's length
//! and checksum. While the file is made, the rows are in `.part` and the record so far in `.journal`.

use crate::error::lock;
use crate::store::atomic::try_lock;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64;

/// Number of rows that are compared with their checksums when a file is opened. Each row is compared when it is read.
const COMPARED: usize = 64;
/// Number of threads that read a large batch: a disk answers several requests at once faster than one after the other.
const READERS: usize = 4;
/// Bytes that a thread reads at least.
const LEAST: usize = 1 << 20;
/// Bytes behind the record: its length and its XXH3.
const TRAILER: u64 = 16;

/// What became of an image of the sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Outcome {
    /// It is the next row.
    Kept {
        /// XXH3 of the row.
        sum: u64,
        /// XXH3 of the image's file, 128 bits.
        digest: (u64, u64),
        /// Whether there are more frames after the first.
        animated: bool,
    },
    /// It cannot be used, for this reason.
    Skipped(String),
}

/// A finished file, open for reading.
pub(super) struct PixelFile {
    /// Key of the pool that the rows and their labels make.
    pub key: String,
    path: PathBuf,
    file: File,
    /// Bytes of a row.
    row: usize,
    /// XXH3 of each row.
    sums: Vec<u64>,
    /// Batches that are read ahead, at most two.
    ahead: Mutex<VecDeque<Ahead>>,
}

/// A batch that a thread of its own reads.
struct Ahead {
    rows: Vec<i64>,
    reader: JoinHandle<Result<Vec<u8>>>,
}

impl PixelFile {
    /// Opens a finished file of rows of `row` bytes, made from the sources of this `key`; with it comes what became of
    /// each of their images. `None` if there is no such file; a damaged one is deleted.
    pub fn open(path: &Path, row: usize, key: &str) -> Result<Option<(Self, Vec<Outcome>)>> {
        let Ok(file) = File::open(path) else { return Ok(None) };
        let found = record(&file).and_then(|(record, end)| {
            let lines: Vec<&[u8]> = record.split(|byte| *byte == b'\n').collect();
            let [first, outcomes @ .., last, b""] = lines.as_slice() else { return None };
            let parse = |line: &[u8]| serde_json::from_slice::<String>(line).ok();
            let outcomes = outcomes.iter().map(|line| serde_json::from_slice(line).ok()).collect::<Option<Vec<_>>>()?;
            let sums: Vec<u64> = outcomes.iter().filter_map(sum).collect();
            (parse(first)? == key && end == (sums.len() * row) as u64).then_some((outcomes, sums, parse(last)?))
        });
        if let Some((outcomes, sums, pool)) = found {
            let (path, step) = (path.to_owned(), sums.len().div_ceil(COMPARED).max(1));
            let some: Vec<i64> = (0..sums.len() as i64).rev().step_by(step).collect();
            let opened = PixelFile { key: pool, path, file, row, sums, ahead: Mutex::default() };
            if opened.load(&some, vec![0; some.len() * row]).is_ok() {
                return Ok(Some((opened, outcomes)));
            }
        }
        println!("{} is damaged, so it is made again", path.display());
        let _ = std::fs::remove_file(path);
        Ok(None)
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> u64 {
        self.sums.len() as u64 * self.row as u64
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns u8 `[B * row]`: the rows in this order.
    ///
    /// # Errors
    /// When the file cannot be read, or a row is not what was written.
    pub fn read(&self, rows: &[i64]) -> Result<Tensor> {
        let mut ahead = lock(&self.ahead);
        let found = ahead.iter().position(|batch| batch.rows == rows).and_then(|at| ahead.remove(at));
        drop(ahead);
        let bytes = match found.map(|batch| batch.reader.join()) {
            Some(Ok(read)) => read?,
            _ => self.load(rows, vec![0; rows.len() * self.row])?,
        };
        Ok(Tensor::f_from_slice(&bytes)?)
    }

    /// Begins to read rows that [`PixelFile::read`] will be asked for, in this order.
    pub fn read_ahead(self: &Arc<Self>, rows: Vec<i64>) {
        let mut ahead = lock(&self.ahead);
        if ahead.iter().any(|batch| batch.rows == rows) {
            return;
        }
        // This thread takes the memory: what a thread of each batch takes stays with the allocator, batch after batch.
        let (file, wanted, bytes) = (Arc::clone(self), rows.clone(), vec![0; rows.len() * self.row]);
        let reader = std::thread::Builder::new().name("kdlab-pixels".into()).spawn(move || file.load(&wanted, bytes));
        // Without a thread, the batch is read when it is needed.
        if let Ok(reader) = reader {
            ahead.truncate(1);
            ahead.push_front(Ahead { rows, reader });
        }
    }

    /// Fills `bytes` with rows.
    fn load(&self, rows: &[i64], mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        // In the order of the file, which a disk likes.
        let mut wanted: Vec<(i64, &mut [u8])> = rows.iter().copied().zip(bytes.chunks_mut(self.row)).collect();
        wanted.sort_unstable_by_key(|(row, _)| *row);
        let readers = (rows.len() * self.row / LEAST).clamp(1, READERS);
        let share = wanted.len().div_ceil(readers).max(1);
        let read = |part: &mut [(i64, &mut [u8])]| part.iter_mut().try_for_each(|(row, to)| self.row(*row, to));
        match readers {
            1 => read(&mut wanted)?,
            _ => std::thread::scope(|scope| {
                let readers: Vec<_> = wanted.chunks_mut(share).map(|part| scope.spawn(move || read(part))).collect();
                readers.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(|_| Err(self.damaged())))
            })?,
        }
        Ok(bytes)
    }

    fn row(&self, row: i64, to: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(to, row as u64 * self.row as u64) {
            Ok(()) if self.sums.get(row as usize) == Some(&xxh3_64(to)) => Ok(()),
            Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Err(Error::io("reading", &self.path, e)),
            _ => Err(self.damaged()),
        }
    }

    /// Deletes the file, so that it is made again.
    fn damaged(&self) -> Error {
        let _ = std::fs::remove_file(&self.path);
        let path = self.path.display();
        Error::Data(format!("{path} was damaged and is deleted; open the data again, and it is made again"))
    }
}

/// The record of a finished file, and where it begins; `None` if its checksum differs.
fn record(file: &File) -> Option<(Vec<u8>, u64)> {
    let length = file.metadata().ok()?.len().checked_sub(TRAILER)?;
    let mut trailer = [[0; 8]; 2];
    file.read_exact_at(trailer.as_flattened_mut(), length).ok()?;
    let [bytes, sum] = trailer.map(u64::from_le_bytes);
    let start = length.checked_sub(bytes)?;
    let mut record = vec![0; bytes as usize];
    file.read_exact_at(&mut record, start).ok()?;
    (xxh3_64(&record) == sum).then_some((record, start))
}

fn sum(outcome: &Outcome) -> Option<u64> {
    match outcome {
        Outcome::Kept { sum, .. } => Some(*sum),
        Outcome::Skipped(_) => None,
    }
}

/// A file that is being made.
pub(super) struct Unfinished {
    path: PathBuf,
    row: usize,
    rows: File,
    journal: File,
    outcomes: Vec<Outcome>,
    /// Number of rows so far.
    kept: u64,
    _lock: File,
}

impl Unfinished {
    /// Begins the file at `path`, or goes on with what an earlier pass left of it: `again` gets the place among the
    /// outcomes and the bytes of each row that is there. `None` while another process makes the file.
    ///
    /// # Errors
    /// As `again`, or when the folder cannot be written.
    pub fn begin(
        path: &Path,
        row: usize,
        key: &str,
        again: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<Option<Self>> {
        let Some(_lock) = try_lock(&path.with_extension("lock"))? else { return Ok(None) };
        let open = |ending: &str| {
            let path = path.with_extension(ending);
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            file.map_err(|e| Error::io("writing", &path, e))
        };
        let (rows, journal) = (open("part")?, open("journal")?);
        let mut made = Self { path: path.to_owned(), row, rows, journal, outcomes: Vec::new(), kept: 0, _lock };
        let text = std::fs::read(path.with_extension("journal")).unwrap_or_default();
        let (mut lines, mut valid) = (text.split_inclusive(|byte| *byte == b'\n'), 0);
        let first = line(&key)?;
        if lines.next() == Some(&first) {
            valid = first.len() as u64;
            let mut bytes = vec![0; row];
            for line in lines {
                let Ok(outcome) = serde_json::from_slice(line) else { break };
                if let Some(sum) = sum(&outcome) {
                    let read = made.rows.read_exact_at(&mut bytes, made.kept * row as u64);
                    if read.is_err() || xxh3_64(&bytes) != sum || !line.ends_with(b"\n") {
                        break;
                    }
                    again(made.outcomes.len(), &bytes)?;
                    made.kept += 1;
                }
                made.outcomes.push(outcome);
                valid += line.len() as u64;
            }
        }
        let io = |e| Error::io("writing", path, e);
        made.rows.set_len(made.kept * row as u64).and_then(|()| made.journal.set_len(valid)).map_err(io)?;
        std::io::Seek::seek(&mut made.journal, std::io::SeekFrom::End(0)).map_err(io)?;
        if valid == 0 {
            made.journal.write_all(&first).map_err(io)?;
        }
        Ok(Some(made))
    }

    /// Number of images of the sources whose outcome is known.
    pub fn done(&self) -> usize {
        self.outcomes.len()
    }

    /// Appends outcomes, each with its row if it is kept.
    pub fn push(&mut self, piece: Vec<(Outcome, Vec<u8>)>) -> Result<()> {
        let io = |e| Error::io("writing", &self.path, e);
        let mut lines = Vec::new();
        for (outcome, pixels) in piece {
            if sum(&outcome).is_some() {
                self.rows.write_all_at(&pixels, self.kept * self.row as u64).map_err(io)?;
                self.kept += 1;
            }
            lines.extend(line(&outcome)?);
            self.outcomes.push(outcome);
        }
        self.journal.write_all(&lines).map_err(io)
    }

    /// Puts the finished file in its place. `pool` is the key of the pool.
    pub fn finish(mut self, key: &str, pool: &str) -> Result<(PixelFile, Vec<Outcome>)> {
        let (part, journal) = (self.path.with_extension("part"), self.path.with_extension("journal"));
        let end = self.kept * self.row as u64;
        let done = || -> std::io::Result<()> {
            let mut record = std::fs::read(&journal)?;
            record.extend(line(&pool).map_err(std::io::Error::other)?);
            let trailer = [record.len() as u64, xxh3_64(&record)].map(u64::to_le_bytes);
            record.extend(trailer.as_flattened());
            self.rows.write_all_at(&record, end)?;
            self.rows.sync_all()?;
            std::fs::rename(&part, &self.path)?;
            std::fs::remove_file(&journal)
        };
        done().map_err(|e| Error::io("writing", &self.path, e))?;
        self.outcomes.clear();
        let gone = || Error::Data(format!("{} changed while it was made; open the data again", self.path.display()));
        PixelFile::open(&self.path, self.row, key)?.ok_or_else(gone)
    }
}

/// A line of the record.
fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(|e| Error::Data(format!("the record of the images: {e}")))?;
    line.push(b'\n');
    Ok(line)
}
