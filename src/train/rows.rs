//! A row per sample, as a safetensors file: written as it is computed, read through a memory map. So a split may be
//! larger than memory, and a pass that was cut goes on where it was. Its length proves nothing: after a power loss a
//! file may be as long as it was to be and hold zeros, so its header keeps checksums of the numbers, which are compared
//! before any is used.

use super::progress::{Pass, Ticker};
use super::{Event, Listener};
use crate::{Error, Result};
use safetensors::tensor::Metadata;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

/// Rows are summed up in at most so many blocks.
const BLOCKS: u64 = 1024;
/// Of a longer file only the end is compared each time it is opened. All of it was on disk before it got its name.
const COMPARED: u64 = 1 << 30;

/// Gives the rows from one to below the other.
type Compute<'a> = dyn FnMut(i64, i64) -> Result<Tensor> + 'a;

/// What such a file holds.
pub(super) struct Rows<'a> {
    pub name: &'a str,
    /// Changes with all that the numbers depend on.
    pub key: &'a str,
    /// Float or Half.
    pub kind: Kind,
    /// `[N, ..., D]`: rows of `D` numbers.
    pub shape: &'a [i64],
    /// Whether the seconds that the pass took are kept with it.
    pub timed: bool,
}

impl Rows<'_> {
    fn width(&self) -> i64 {
        self.shape.last().copied().unwrap_or(1).max(1)
    }

    /// How many there are.
    pub fn len(&self) -> i64 {
        self.shape.iter().product::<i64>() / self.width()
    }

    fn row_bytes(&self) -> u64 {
        self.width() as u64 * self.kind.elt_size_in_bytes() as u64
    }

    /// Rows of a block; the last one may have fewer.
    fn block(&self) -> i64 {
        (self.len() as u64).div_ceil(BLOCKS).max(1) as i64
    }

    fn blocks(&self) -> usize {
        (self.len() as u64).div_ceil(self.block() as u64) as usize
    }

    /// Every call gives as many bytes: the seconds are known last, and the sums of the blocks one by one.
    fn header(&self, seconds: f64, sums: &[u64]) -> Vec<u8> {
        let missing = "-".repeat(16 * self.blocks().saturating_sub(sums.len()));
        let sums = sums.iter().map(|sum| format!("{sum:016x}")).collect::<String>() + &missing;
        let mut about = json!({"format": "pt", "key": self.key, "sums": sums});
        if self.timed {
            about["seconds"] = json!(format!("{seconds:012.3}"));
        }
        let dtype = if self.kind == Kind::Half { "F16" } else { "F32" };
        let end = self.len() as u64 * self.row_bytes();
        let numbers = json!({"dtype": dtype, "shape": self.shape, "data_offsets": [0, end]});
        let mut text = json!({"__metadata__": about, self.name: numbers}).to_string();
        // The format wants the numbers aligned.
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// The sums of the blocks that an earlier pass left whole in an unfinished file, and the seconds it took.
    fn left(&self, file: &mut File) -> Option<(Vec<u64>, f64)> {
        let mut found = vec![0; self.header(0.0, &[]).len()];
        file.read_exact(&mut found).ok()?;
        let about = parse(&found[8..])?;
        let mut sums = sums(&about)?;
        let seconds = if self.timed { seconds(&about)? } else { 0.0 };
        if self.header(seconds, &sums) != found {
            return None;
        }
        sums.truncate(self.whole_blocks(file, found.len() as u64, &sums, 0).ok()?);
        Some((sums, seconds))
    }

    /// The first block, from `first` on, whose numbers behind the header have another sum; or how many sums there are.
    fn whole_blocks(&self, file: &File, header: u64, sums: &[u64], first: usize) -> std::io::Result<usize> {
        let mut bytes = Vec::new();
        for (i, sum) in sums.iter().enumerate().skip(first) {
            let from = i as i64 * self.block();
            let rows = self.block().min(self.len() - from).max(0) as u64;
            bytes.resize((rows * self.row_bytes()) as usize, 0);
            match file.read_exact_at(&mut bytes, header + from as u64 * self.row_bytes()) {
                Ok(()) if xxh3_64(&bytes) == *sum => {}
                Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => return Err(e),
                _ => return Ok(i),
            }
        }
        Ok(sums.len())
    }

    /// Fills the file at `path`, which is whole or absent: `some(from, to)` gives these rows, `[to - from, D]`. `piece`
    /// rows are asked for at a time, and none that an earlier pass left beside it.
    ///
    /// # Errors
    /// Those of `some`, after which the rows so far stay on disk; and the disk's.
    pub fn write(&self, path: &Path, piece: usize, shown: (&str, &Listener), some: &mut Compute) -> Result<()> {
        let unfinished = path.with_extension("part");
        let io = |e| Error::io("writing", &unfinished, e);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("writing", folder, e))?;
        }
        // Another kernel may be at it.
        let _lock = crate::store::atomic::lock(&path.with_extension("lock"))?;
        if self.map(path).is_ok() {
            return Ok(());
        }
        let mut options = File::options();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&unfinished).map_err(io)?;
        let (mut sums, before) = self.left(&mut file).unwrap_or_default();
        let there = self.len().min(sums.len() as i64 * self.block());
        let first = self.header(before, &sums).len() as u64;
        if there == 0 {
            file.set_len(0).map_err(io)?;
        }
        let begun = Instant::now();
        let mut block = Xxh3Default::new();
        in_pieces(there, self.len(), piece, shown, &mut |row, to| {
            let rows = some(row, to)?.f_to_kind(self.kind)?.f_contiguous()?;
            let mut bytes = vec![0; rows.numel() * self.kind.elt_size_in_bytes()];
            if bytes.len() as u64 != (to - row) as u64 * self.row_bytes() {
                return Err(Error::Input(format!("{}: rows {:?} for {} samples", self.name, rows.size(), to - row)));
            }
            rows.f_copy_data_u8(&mut bytes, rows.numel())?;
            file.write_all_at(&bytes, first + row as u64 * self.row_bytes()).map_err(io)?;
            for (i, row_bytes) in (row..).zip(bytes.chunks(self.row_bytes() as usize)) {
                block.update(row_bytes);
                if (i + 1) % self.block() == 0 || i + 1 == self.len() {
                    sums.push(block.digest());
                    block.reset();
                }
            }
            file.write_all_at(&self.header(before + begun.elapsed().as_secs_f64(), &sums), 0).map_err(io)
        })?;
        file.set_len(first + self.len() as u64 * self.row_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        std::fs::rename(&unfinished, path).map_err(io)
    }

    /// The numbers of a finished file, in the system's page cache rather than in memory of our own, and the seconds
    /// they took. Closed and renamed, the file may be written over meanwhile.
    ///
    /// # Errors
    /// Why it is none of these rows.
    pub fn map(&self, path: &Path) -> std::result::Result<(Tensor, f64), String> {
        let mut file = File::open(path).map_err(|e| e.to_string())?;
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|e| format!("no header: {e}"))?;
        let start = 8 + u64::from_le_bytes(length).min(1 << 16);
        let mut header = vec![];
        (&file).take(start - 8).read_to_end(&mut header).map_err(|e| e.to_string())?;
        let about = parse(&header).ok_or("it has no whole header")?;
        if about.metadata().as_ref().and_then(|m| m.get("key")).map(String::as_str) != Some(self.key) {
            return Err("it was made by another teacher or of other images".into());
        }
        let info = about.info(self.name).ok_or_else(|| format!("it holds no {}", self.name))?;
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        let bytes = self.len() as u64 * self.row_bytes();
        let there = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
        if shape != self.shape || info.data_offsets != (0, bytes as usize) || there != start + bytes {
            return Err("it is damaged".into());
        }
        let sums = sums(&about).filter(|sums| sums.len() == self.blocks()).ok_or("it is damaged: sums are missing")?;
        let compared = (COMPARED / (self.block() as u64 * self.row_bytes())).max(1);
        let first = sums.len().saturating_sub(compared as usize);
        if self.whole_blocks(&file, start, &sums, first).map_err(|e| e.to_string())? != sums.len() {
            return Err("it is damaged: its numbers are not those that were written".into());
        }
        let mapped = || -> Result<Tensor> {
            let name = path.to_str().ok_or_else(|| Error::Input("a path that is not UTF-8".into()))?;
            let all = Tensor::f_from_file(name, false, Some(there as i64), (Kind::Uint8, Device::Cpu))?;
            Ok(all.f_narrow(0, start as i64, bytes as i64)?.f_view_dtype(self.kind)?.f_view(self.shape)?)
        };
        Ok((mapped().map_err(|e| e.to_string())?, seconds(&about).unwrap_or_default()))
    }
}

/// Calls `each` for `from..total`, `piece` rows at a time; shown and interrupted under a name.
pub(super) fn in_pieces(
    from: i64,
    total: i64,
    piece: usize,
    (name, listener): (&str, &Listener),
    each: &mut dyn FnMut(i64, i64) -> Result<()>,
) -> Result<()> {
    if piece == 0 {
        return Err(Error::Input("batch size must be at least 1, got 0".into()));
    }
    let (pass, mut ticker) = (Pass::new(name), Ticker::new(name, (total - from) as usize));
    for row in (from..total).step_by(piece) {
        pass.check(row as usize, total as usize)?;
        let to = total.min(row + piece as i64);
        each(row, to)?;
        if let Some(progress) = ticker.advance((to - row) as usize) {
            listener.tell(Event::Progress(progress));
        }
    }
    Ok(())
}

/// A header without its length. (The format's crate reads it only together with the numbers.)
fn parse(header: &[u8]) -> Option<Metadata> {
    serde_json::from_slice(header).ok()
}

fn seconds(about: &Metadata) -> Option<f64> {
    about.metadata().as_ref()?.get("seconds")?.parse().ok()
}

/// Of the blocks whose sum is known, the first ones.
fn sums(about: &Metadata) -> Option<Vec<u64>> {
    let text = about.metadata().as_ref()?.get("sums")?.trim_end_matches('-');
    let sum = |digits: &[u8]| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    text.as_bytes().chunks(16).map(sum).collect()
}
