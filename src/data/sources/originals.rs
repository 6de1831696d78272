//! The images of a dataset as they lie in their files or shards, from which crops are decoded anew for every batch.

use super::decode::{file_bytes, planes};
use super::picture::{part, upright};
use crate::data::augment::Augment;
use crate::data::sampling::{Purpose, generator};
use crate::error::lock;
use crate::store::cores::on_cores;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_128;

/// Where an image lies in a shard.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in crate::data) struct Inside {
    /// The place of the shard among all.
    pub shard: usize,
    /// The first byte of its file.
    pub offset: u64,
    /// Bytes of its file.
    pub length: u64,
}

impl Inside {
    /// The bytes of an image's file; the error says why they cannot be read.
    pub fn bytes(&self, shards: &[PathBuf]) -> std::result::Result<Vec<u8>, String> {
        let mut bytes = vec![0; self.length as usize];
        let read = File::open(&shards[self.shard]).and_then(|file| file.read_exact_at(&mut bytes, self.offset));
        read.map_err(|e| e.to_string())?;
        Ok(bytes)
    }
}

/// Where an image lies.
pub(in crate::data) enum Place {
    /// In the file of its name.
    Named,
    /// In a file whose name is no UTF-8.
    At(PathBuf),
    In(Inside),
}

/// The files of the images in a pool, by row.
pub(in crate::data) struct Originals {
    root: PathBuf,
    /// Paths in `root`.
    pub files: Vec<String>,
    shards: Vec<PathBuf>,
    /// With the XXH3 of each file, 128 bits.
    places: Vec<(Place, (u64, u64))>,
    /// Batches that are decoded ahead, at most two.
    ahead: Mutex<VecDeque<Ahead>>,
}

/// The crops of a batch, which depend on nothing else.
#[derive(Clone, PartialEq)]
pub(in crate::data) struct Crops {
    /// Row and sample index of each image.
    pub images: Vec<(i64, i64)>,
    pub augment: Augment,
    pub seed: u64,
    pub epoch: u64,
    /// Height and width of the result.
    pub size: u32,
}

/// A batch that a thread of its own decodes.
pub(in crate::data) struct Ahead {
    crops: Crops,
    decoder: JoinHandle<Result<Vec<u8>>>,
}

impl Originals {
    pub fn new(root: PathBuf, shards: Vec<PathBuf>, files: Vec<String>, places: Vec<(Place, (u64, u64))>) -> Self {
        Self { root, files, shards, places, ahead: Mutex::default() }
    }

    /// Returns u8 `[B, 3, size, size]`: each image cropped as `augment` draws it for this sample and epoch. As many
    /// threads decode as libtorch takes; their number does not change the result.
    ///
    /// # Errors
    /// When a file is gone or another one than when the dataset was opened.
    pub fn read(&self, crops: &Crops) -> Result<Tensor> {
        let mut ahead = lock(&self.ahead);
        let found = ahead.iter().position(|batch| batch.crops == *crops).and_then(|at| ahead.remove(at));
        drop(ahead);
        let bytes = match found.map(|batch| batch.decoder.join()) {
            Some(Ok(decoded)) => decoded?,
            _ => self.decode(crops, threads())?,
        };
        let size = i64::from(crops.size);
        Ok(Tensor::f_from_slice(&bytes)?.f_view([-1, 3, size, size])?)
    }

    /// Begins to decode what [`Originals::read`] will be asked for, in this order.
    pub fn read_ahead(self: &Arc<Self>, crops: Crops) {
        let mut ahead = lock(&self.ahead);
        if ahead.iter().any(|batch| batch.crops == crops) {
            return;
        }
        let (originals, wanted, threads) = (Arc::clone(self), crops.clone(), threads());
        let decoder =
            std::thread::Builder::new().name("kdlab-crops".into()).spawn(move || originals.decode(&wanted, threads));
        // Without a thread, the batch is decoded when it is needed.
        if let Ok(decoder) = decoder {
            ahead.truncate(1);
            ahead.push_front(Ahead { crops, decoder });
        }
    }

    /// The crops one after the other, each `[3, size, size]`.
    pub fn decode(&self, crops: &Crops, threads: usize) -> Result<Vec<u8>> {
        let one = |(row, sample): &(i64, i64)| {
            catch_unwind(|| self.one(*row as usize, *sample as u64, crops))
                .unwrap_or_else(|_| Err("the decoder panicked".into()))
                .map_err(|why| {
                    let file = self.root.join(&self.files[*row as usize]);
                    Error::Data(format!(
                        "the image {} is not what it was when the data were opened: {why}; open the data again",
                        file.display()
                    ))
                })
        };
        on_cores(threads, crops.images.iter().collect(), one)
            .into_iter()
            .collect::<Result<Vec<_>>>()
            .map(|all| all.concat())
    }

    fn one(&self, row: usize, sample: u64, crops: &Crops) -> std::result::Result<Vec<u8>, String> {
        let (place, (high, low)) = &self.places[row];
        let bytes = match place {
            Place::Named => file_bytes(&self.root.join(&self.files[row]))?,
            Place::At(path) => file_bytes(path)?,
            Place::In(inside) => inside.bytes(&self.shards)?,
        };
        if xxh3_128(&bytes) != (u128::from(*high) << 64 | u128::from(*low)) {
            return Err("its file was changed".into());
        }
        let image = upright(&bytes)?;
        let (width, height) = image.dimensions();
        let mut rng = generator(Purpose::FreshView, crops.seed, crops.epoch, sample);
        let view = crops.augment.draw((height.into(), width.into()), &mut rng);
        let sides = view.crop.unwrap_or([0, 0, width.into(), height.into()]).map(|side| side as u32);
        Ok(planes(&part(&image, sides, crops.size)?))
    }
}

/// As libtorch takes: one in a sweep, and in each of several processes of a machine its share of the cores.
fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}
