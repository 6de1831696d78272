//! A safetensors file of one tensor, written row by row and read through a memory map, so it may be larger than memory.
//! An interrupted pass continues where it stopped.
//!
//! After a power loss a file may have its full length and still hold zeros. The header therefore keeps a checksum of
//! every block of rows, and only rows whose checksum matches are used.

use crate::store::atomic::wait_for;
use crate::{Error, Result};
use kdlab_client::watch;
use serde_json::{Value, json};
use std::fs::File;
use std::io::ErrorKind::UnexpectedEof;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

/// Largest number of blocks in a file.
const BLOCKS: usize = 1024;
/// Number of bytes, at the end of a finished file, that are compared with their checksums. Comparing all of a longer
/// file would take too long. It was synced to disk before it got its name, so damage is unlikely.
const COMPARED: usize = 1 << 30;

/// Appends rows `[B, D]` to an unfinished file.
type Append<'a> = &'a mut dyn FnMut(&Tensor) -> Result<()>;

/// Path and contents of such a file.
pub(super) struct RowFile<'a> {
    pub path: PathBuf,
    /// Name of the tensor.
    pub name: &'a str,
    /// Digest of everything that the values depend on.
    pub key: &'a str,
    /// `Float` or `Half`.
    pub kind: Kind,
    /// `[N, ..., D]`; a row is `D` values.
    pub shape: &'a [i64],
    /// Whether the header keeps the seconds that the pass took.
    pub timed: bool,
}

impl RowFile<'_> {
    fn row_bytes(&self) -> usize {
        self.shape[self.shape.len() - 1].max(1) as usize * self.kind.elt_size_in_bytes()
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product::<i64>() as usize
    }

    /// Returns the number of rows of a block; the last block may have fewer.
    fn block(&self) -> usize {
        self.len().div_ceil(BLOCKS).max(1)
    }

    /// Returns the header. Its length does not depend on `seconds` and `sums`, so that a pass can overwrite it.
    fn header(&self, seconds: f64, sums: &[u64]) -> Vec<u8> {
        let missing = "-".repeat(16 * self.len().div_ceil(self.block()).saturating_sub(sums.len()));
        let sums = sums.iter().map(|sum| format!("{sum:016x}")).collect::<String>() + &missing;
        let mut about = json!({"format": "pt", "key": self.key, "sums": sums});
        if self.timed {
            about["seconds"] = json!(format!("{seconds:012.3}"));
        }
        let dtype = if self.kind == Kind::Half { "F16" } else { "F32" };
        let values = json!({"dtype": dtype, "shape": self.shape, "data_offsets": [0, self.len() * self.row_bytes()]});
        let mut text = json!({"__metadata__": about, self.name: values}).to_string();
        // safetensors aligns the values to 8 bytes.
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// Returns the checksums and seconds in the header of `file`; `None` if it has another layout or key.
    fn read_header(&self, file: &File) -> Option<(Vec<u64>, f64)> {
        let mut found = self.header(0.0, &[]);
        file.read_exact_at(&mut found, 0).ok()?;
        let parse = |header: &[u8]| serde_json::from_slice::<Value>(&header[8..]).ok();
        let header = parse(&found)?;
        let text = |name: &str| header["__metadata__"][name].as_str();
        let sum = |digits: &[u8]| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let sums = text("sums")?.trim_end_matches('-').as_bytes().chunks(16).map(sum).collect::<Option<Vec<u64>>>()?;
        let seconds = if self.timed { text("seconds")?.parse().ok()? } else { 0.0 };
        let expected = self.header(seconds, &sums);
        (found[..8] == expected[..8] && Some(header) == parse(&expected)).then_some((sums, seconds))
    }

    /// Returns the first block, from `first` on, whose checksum differs; the number of checksums if all match.
    fn first_damaged(&self, file: &File, sums: &[u64], first: usize) -> std::io::Result<usize> {
        let (start, mut bytes) = (self.header(0.0, &[]).len(), Vec::new());
        for (i, sum) in sums.iter().enumerate().skip(first) {
            let from = i * self.block();
            bytes.resize(self.block().min(self.len() - from) * self.row_bytes(), 0);
            match file.read_exact_at(&mut bytes, (start + from * self.row_bytes()) as u64) {
                Ok(()) if xxh3_64(&bytes) == *sum => {}
                Err(e) if e.kind() != UnexpectedEof => return Err(e),
                _ => return Ok(i),
            }
        }
        Ok(sums.len())
    }

    /// Maps the file into memory. Returns its values and the seconds they took; `None` if there is no file of this
    /// layout and key. The system reads the values when they are used. Another process may replace the file meanwhile.
    ///
    /// # Errors
    /// When the file is damaged, with the advice to delete it.
    pub fn map(&self) -> Result<Option<(Tensor, f64)>> {
        let Ok(file) = File::open(&self.path) else { return Ok(None) };
        let Some((sums, seconds)) = self.read_header(&file) else { return Ok(None) };
        let path = self.path.display();
        let damaged =
            |why| Err(Error::Data(format!("{path}: it is damaged{why}; delete it, and it is computed again")));
        let io = |e| Error::io("reading", &self.path, e);
        let (start, bytes) = (self.header(0.0, &[]).len(), self.len() * self.row_bytes());
        if file.metadata().map_err(io)?.len() != (start + bytes) as u64 || sums.len() * self.block() < self.len() {
            return damaged("");
        }
        let first = sums.len().saturating_sub((COMPARED / (self.block() * self.row_bytes())).max(1));
        if self.first_damaged(&file, &sums, first).map_err(io)? != sums.len() {
            return damaged(": its numbers are not those that were written");
        }
        let not_text = || Error::Input(format!("{path} is not UTF-8; choose another folder"));
        let path = self.path.to_str().ok_or_else(not_text)?;
        let all = Tensor::f_from_file(path, false, Some((start + bytes) as i64), (Kind::Uint8, Device::Cpu))?;
        let values = all.f_narrow(0, start as i64, bytes as i64)?.f_view_dtype(self.kind)?.f_view(self.shape)?;
        Ok(Some((values, seconds)))
    }

    /// Makes the file, whole or not at all, unless another process makes it first. `fill` gets the number of rows that
    /// an earlier pass left, and a function that appends rows `[B, D]`. If `fill` fails, its rows stay on disk for the
    /// next pass.
    ///
    /// # Errors
    /// As `fill`, or when the file cannot be written.
    pub fn write(&self, fill: &mut dyn FnMut(usize, Append) -> Result<()>) -> Result<()> {
        let unfinished = self.path.with_extension("part");
        let io = |e| Error::io("writing", &unfinished, e);
        std::fs::create_dir_all(self.path.parent().unwrap_or(Path::new("."))).map_err(io)?;
        let name = self.path.file_name().unwrap_or_default().display().to_string();
        let watch = watch(&name, |_| ());
        let Some(_lock) = wait_for(&self.path.with_extension("lock"), &name, &|| watch.reason().is_some())? else {
            let reason = watch.reason().unwrap_or_default();
            return Err(Error::Interrupted(format!("{name}: {reason} while another process made it; run it again")));
        };
        drop(watch);
        if matches!(self.map(), Ok(Some(_))) {
            return Ok(());
        }
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&unfinished).map_err(io)?;
        let (mut sums, before) = self.read_header(&file).unwrap_or_default();
        sums.truncate(self.first_damaged(&file, &sums, 0).map_err(io)?);
        let mut rows = self.len().min(sums.len() * self.block());
        if rows == 0 {
            file.set_len(0).map_err(io)?;
        }
        let (header, begun, mut block) = (self.header(0.0, &[]).len(), Instant::now(), Xxh3Default::new());
        fill(rows, &mut |values: &Tensor| {
            let values = values.f_to_kind(self.kind)?.f_contiguous()?;
            let mut bytes = vec![0; values.numel() * self.kind.elt_size_in_bytes()];
            values.f_copy_data_u8(&mut bytes, values.numel())?;
            file.write_all_at(&bytes, (header + rows * self.row_bytes()) as u64).map_err(io)?;
            for row in bytes.chunks(self.row_bytes()) {
                block.update(row);
                rows += 1;
                if rows.is_multiple_of(self.block()) || rows == self.len() {
                    sums.push(block.digest());
                    block.reset();
                }
            }
            file.write_all_at(&self.header(before + begun.elapsed().as_secs_f64(), &sums), 0).map_err(io)
        })?;
        file.set_len((header + self.len() * self.row_bytes()) as u64).and_then(|()| file.sync_all()).map_err(io)?;
        std::fs::rename(&unfinished, &self.path).map_err(io)
    }
}
