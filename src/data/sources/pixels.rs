//! The pixels of a layout's images: decoded on all cores, into memory or, if they are too many, into a file.

use super::decode::{Decoded, decoded};
use super::files::file_name;
use super::layout::{Labelled, Layout};
use crate::data::dataset::DataOptions;
use crate::data::pixel_file::{Outcome, PixelFile, Unfinished};
use crate::data::pool::{Pool, PoolKey};
use crate::store::cores::on_all_cores;
use crate::store::{digest::digest, memory};
use crate::{Error, Result};
use kdlab_client::{Watch, watch};
use std::panic::{catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_64;

/// Memory in bytes for decoded images of a piece; there are two pieces at a time.
const WAITING: usize = 64 << 20;
/// Most images of a piece. A pass can be interrupted between two pieces.
const MOST: usize = 1024;
/// Time between two lines of progress.
const QUIET: Duration = Duration::from_secs(3);

/// Images with what became of each, and their rows.
type Piece = Vec<(Outcome, Vec<u8>)>;

/// Decodes the images of a layout in the folder `path` to squares of `size` pixels. Returns those that could be read as
/// a pool, and what became of each.
pub(super) fn decode(
    path: &Path,
    layout: &Layout,
    size: i64,
    options: &DataOptions,
    notices: &mut Vec<String>,
) -> Result<(Pool, Vec<Outcome>)> {
    let work = Work { name: file_name(path), layout, size, options, watch: watch("decoding", |_| ()) };
    let allowed = options.memory.unwrap_or_else(|| memory::allowed().map_or(u64::MAX, |bytes| bytes / 2));
    if work.bytes() <= allowed {
        return work.in_memory();
    }
    let (file, outcomes) = work.in_file()?;
    notices.push(format!(
        "the decoded images ({}) would take more than {} of memory, so they are kept in {}, and each batch is read \
         from there",
        short(file.bytes()),
        short(allowed),
        file.path().display()
    ));
    let kept = layout.images.iter().zip(&outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::Kept { .. }));
    let labels = kept.map(|(image, _)| image.label).collect();
    Ok((Pool::of_file(file, work.shape(), labels), outcomes))
}

struct Work<'a> {
    /// Name of the dataset.
    name: String,
    layout: &'a Layout,
    size: i64,
    options: &'a DataOptions,
    watch: Watch,
}

impl Work<'_> {
    fn shape(&self) -> [i64; 3] {
        [3, self.size, self.size]
    }

    /// Bytes of an image.
    fn row(&self) -> usize {
        self.shape().iter().product::<i64>() as usize
    }

    /// Bytes of all images.
    fn bytes(&self) -> u64 {
        self.layout.images.len() as u64 * self.row() as u64
    }

    fn in_memory(&self) -> Result<(Pool, Vec<Outcome>)> {
        let mut pool = Pool::new(self.layout.images.len(), self.shape())?;
        let mut outcomes = Vec::with_capacity(self.layout.images.len());
        self.run(0, &mut |piece| {
            for (outcome, pixels) in piece {
                if let Outcome::Kept { .. } = outcome {
                    pool.push(&pixels, &[self.layout.images[outcomes.len()].label])?;
                }
                outcomes.push(outcome);
            }
            Ok(())
        })?;
        Ok((pool, outcomes))
    }

    /// Finds the file of these images, or makes it.
    fn in_file(&self) -> Result<(PixelFile, Vec<Outcome>)> {
        let (key, row, images) = (self.sources()?, self.row(), &self.layout.images);
        let name = format!("{}-{}-{}.pixels", self.name, self.size, &key[..16]);
        let path = self.options.cache.join("pixels").join(name);
        let mut waited = false;
        loop {
            if let Some(found) = PixelFile::open(&path, row, &key)? {
                return Ok(found);
            }
            let mut pool = PoolKey::new(self.shape());
            let begun = Unfinished::begin(&path, row, &key, &mut |image, pixels| {
                pool.add(pixels, &[images[image].label]);
                self.check(image)
            })?;
            let Some(mut file) = begun else {
                if !waited {
                    println!("Another process makes {}: this one waits for it", path.display());
                }
                waited = true;
                self.check(0)?;
                std::thread::sleep(Duration::from_millis(200));
                continue;
            };
            let from = file.done();
            // Another process may have finished it between the two looks.
            if from == 0
                && let Some(found) = PixelFile::open(&path, row, &key)?
            {
                return Ok(found);
            }
            self.make_room(&path, (images.len() - from) as u64 * row as u64)?;
            let (size, to) = (short(self.bytes()), path.display());
            println!("Decoding {} images of {} once, into {to} ({size}); {from} are there", images.len(), self.name);
            let (begun, mut last) = (Instant::now(), Instant::now());
            self.run(from, &mut |piece| {
                for ((outcome, pixels), image) in piece.iter().zip(&images[file.done()..]) {
                    if let Outcome::Kept { .. } = outcome {
                        pool.add(pixels, &[image.label]);
                    }
                }
                file.push(piece)?;
                let (done, all) = (file.done(), images.len());
                if last.elapsed() >= QUIET || (done == all && begun.elapsed() >= QUIET) {
                    last = Instant::now();
                    let speed = (done - from) as f64 / begun.elapsed().as_secs_f64();
                    let left = minutes((all - done) as f64 / speed);
                    println!("  {done} of {all} images, {speed:.0} a second, {left} left");
                }
                Ok(())
            })?;
            return file.finish(&key, &pool.text());
        }
    }

    /// Decodes the images from the place `from` on, and hands them to `sink` in their order. While `sink` has a piece,
    /// the next one is decoded.
    fn run(&self, from: usize, sink: &mut (dyn FnMut(Piece) -> Result<()> + Send)) -> Result<()> {
        let images = &self.layout.images[from..];
        std::thread::scope(|scope| {
            let (to_sink, pieces) = sync_channel::<Piece>(0);
            let sink = scope.spawn(move || pieces.iter().try_for_each(sink));
            let mut read = from;
            let mut interrupted = Ok(());
            for piece in images.chunks((WAITING / self.row()).clamp(16, MOST)) {
                interrupted = self.check(read);
                read += piece.len();
                let one = |image| catch_unwind(|| self.one(image)).unwrap_or_else(|_| skipped("the decoder panicked"));
                if interrupted.is_err() || to_sink.send(on_all_cores(piece.iter().collect(), one)).is_err() {
                    break;
                }
            }
            drop(to_sink);
            sink.join().unwrap_or_else(|panic| resume_unwind(panic)).and(interrupted)
        })
    }

    fn one(&self, image: &Labelled) -> (Outcome, Vec<u8>) {
        match self.layout.bytes(image).and_then(|bytes| decoded(&bytes, self.size, self.options.framing)) {
            Ok(Decoded { pixels, digest, is_animated }) => {
                let digest = ((digest >> 64) as u64, digest as u64);
                (Outcome::Kept { sum: xxh3_64(&pixels), digest, animated: is_animated }, pixels)
            }
            Err(why) => skipped(&why),
        }
    }

    /// Returns an error if the user pressed Interrupt.
    fn check(&self, done: usize) -> Result<()> {
        match self.watch.reason() {
            None => Ok(()),
            Some(reason) => Err(Error::Interrupted(format!(
                "decoding {}: {reason} after {done} of {} images; run it again",
                self.name,
                self.layout.images.len()
            ))),
        }
    }

    /// A digest of everything that the pixels and their labels depend on: of each image's name, place and label, and
    /// the size and time of its file.
    fn sources(&self) -> Result<String> {
        let Layout { images, shards, .. } = self.layout;
        let stamp = |path: &PathBuf| -> Vec<u8> {
            let Ok(about) = std::fs::metadata(path) else { return Vec::new() };
            let modified = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            format!("{} {:?}", about.len(), modified).into_bytes()
        };
        let one = |image: &Labelled| -> Vec<u8> {
            let place = image.inside.map_or_else(|| stamp(&image.path), |inside| format!("{inside:?}").into_bytes());
            let name = self.layout.name(image).into_bytes();
            digest(&[&name, &place, &image.label.to_le_bytes(), &[image.part as u8]]).into_bytes()
        };
        let mut parts: Vec<Vec<u8>> = shards.iter().map(stamp).collect();
        parts.extend(on_all_cores(images.chunks(MOST).collect(), |piece| {
            digest(&piece.iter().map(one).collect::<Vec<_>>().iter().map(Vec::as_slice).collect::<Vec<_>>())
                .into_bytes()
        }));
        parts.push(format!("pixels 1 {} {:?}", self.size, self.options.framing).into_bytes());
        Ok(digest(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }

    /// Refuses a disk without room for `bytes` more, before hours of decoding.
    fn make_room(&self, path: &Path, bytes: u64) -> Result<()> {
        let free = path.parent().and_then(|folder| rustix::fs::statvfs(folder).ok());
        match free.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)) {
            Some(free) if free < bytes => Err(Error::Io(format!(
                "the decoded images take {} more, and the disk of {} has {}: free some space, point KDLAB_CACHE to \
                 another disk, or decode to a smaller size than {} pixels",
                short(bytes),
                path.display(),
                short(free),
                self.size
            ))),
            _ => Ok(()),
        }
    }
}

fn skipped(why: &str) -> (Outcome, Vec<u8>) {
    (Outcome::Skipped(why.to_owned()), Vec::new())
}

/// Bytes for people.
fn short(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.1} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} kB", b / 1e3),
    }
}

/// A time for people.
fn minutes(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
