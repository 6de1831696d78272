//! What a frozen teacher says of every image in every view: too much for memory, so it is written to disk as it is
//! computed, and read from there row by row.

use super::evaluate::{Pass, Ticker};
use super::{Event, Listener};
use crate::data::{Split, Transform, Views};
use crate::files::{digest, digest_tensors};
use crate::models::Model;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor, no_grad};

/// The teacher's logits for (image, view), f16 on disk: a safetensors file with `logits` `[N, V, C]`.
#[derive(Clone)]
pub struct ViewLogits {
    file: Arc<File>,
    layout: Layout,
    views: Views,
    /// Of the file's images, those of this value.
    rows: Option<Vec<i64>>,
    pub(super) split_key: String,
    /// Changes with all that the logits depend on.
    pub key: String,
    pub path: PathBuf,
    /// True when it was found rather than computed.
    pub from_disk: bool,
}

#[derive(Clone, Copy)]
struct Layout {
    images: usize,
    views: usize,
    classes: usize,
    /// Where the numbers begin.
    start: u64,
}

impl Layout {
    /// Of one row of `classes` numbers.
    fn row_bytes(&self) -> u64 {
        self.classes as u64 * 2
    }

    fn rows(&self) -> u64 {
        (self.images * self.views) as u64
    }
}

/// The logits of `teacher`, a whole network from images to logits, for every image of `split` in every view, in evaluation
/// mode: images are viewed first and then resized and normalised by `transform`, as the student's are.
///
/// They are kept in `folder` and found again as long as nothing they depend on changes. A pass that was cut short goes on
/// where it was. Memory does not grow with the number of images or views.
///
/// # Errors
/// As libtorch's and the disk's; and when the user interrupts it, after which the rows so far stay on disk.
pub fn view_logits(
    teacher: &Model,
    split: &Split,
    transform: &Transform,
    views: &Views,
    batch_size: usize,
    folder: &Path,
    listener: &Listener,
) -> Result<ViewLogits> {
    let weights = digest_tensors(&teacher.state())?;
    let parts = ["view logits", &weights, &split.key, &transform.key(), &views.key()];
    let key = digest(&parts.map(str::as_bytes));
    let path = folder.join(format!("view-logits-{}-{}.safetensors", split.name, &key[..16]));
    let from_disk = path.exists();
    if !from_disk {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("writing", folder, e))?;
        // Another kernel may be at it.
        let _lock = crate::files::lock(&path.with_extension("lock"))?;
        compute(teacher, split, transform, views, batch_size, (&path, &key), listener)?;
    }
    let io = |e| Error::io("reading", &path, e);
    let mut file = File::open(&path).map_err(io)?;
    let layout = read_header(&mut file, &key)
        .map_err(|why| Error::Data(format!("{}: {why}; delete it, and it is computed anew", path.display())))?;
    let length = file.metadata().map_err(io)?.len();
    if layout.images != split.len()
        || layout.views != views.len()
        || length != layout.start + layout.rows() * layout.row_bytes()
    {
        return Err(Error::Data(format!("{} is damaged; delete it, and it is computed anew", path.display())));
    }
    let (views, split_key) = (views.clone(), split.key.clone());
    Ok(ViewLogits { file: Arc::new(file), layout, views, rows: None, split_key, key, path, from_disk })
}

fn compute(
    teacher: &Model,
    split: &Split,
    transform: &Transform,
    views: &Views,
    batch_size: usize,
    (path, key): (&Path, &str),
    listener: &Listener,
) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let unfinished = path.with_extension("part");
    let io = |e| Error::io("writing", &unfinished, e);
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&unfinished).map_err(io)?;
    let device = teacher.device();
    let of_batch = |pairs: &[(i64, i64)]| -> Result<Tensor> {
        let (images, seen): (Vec<i64>, Vec<i64>) = pairs.iter().copied().unzip();
        let input = transform.apply(&views.apply(&split.batch(&images)?.images, &seen)?, device)?;
        Ok(no_grad(|| teacher.forward(&input, false))?.f_to_device(Device::Cpu)?)
    };
    let classes = of_batch(&[(0, 0)])?.size()[1] as usize;
    let layout = Layout { images: split.len(), views: views.len(), classes, start: 0 };
    let header = header(&layout, key);
    let start = header.len() as u64;
    // Whole rows of the same pass are kept; any other file is begun anew.
    let kept = match read_header(&mut file, key) {
        Ok(found) if found.start == start => {
            file.metadata().map_err(io)?.len().saturating_sub(start) / layout.row_bytes()
        }
        _ => {
            file.set_len(0).and_then(|()| file.write_all_at(&header, 0)).map_err(io)?;
            0
        }
    };
    let (total, mut row) = (split.len() * views.len(), kept.min(layout.rows()) as usize);
    let name = format!("{} on {} views of {}", teacher.name, views.len(), split.name);
    let (pass, mut ticker) = (Pass::new(&name), Ticker::new(&name, total - row));
    while row < total {
        pass.check(row, total)?;
        let pairs: Vec<_> = (row..total.min(row + batch_size.max(1)))
            .map(|r| ((r / views.len()) as i64, (r % views.len()) as i64))
            .collect();
        let logits = of_batch(&pairs)?.f_to_kind(Kind::Half)?;
        if i64::try_from(logits.f_isfinite()?.f_logical_not()?.f_sum(Kind::Int64)?)? > 0 {
            return Err(Error::Data(format!(
                "{name}: a logit is not finite in f16 (beyond 65504); check the teacher's weights"
            )));
        }
        let mut bytes = vec![0; logits.numel() * 2];
        logits.f_copy_data_u8(&mut bytes, logits.numel())?;
        file.write_all_at(&bytes, start + row as u64 * layout.row_bytes()).map_err(io)?;
        row += pairs.len();
        if let Some(progress) = ticker.advance(pairs.len()) {
            listener.tell(Event::Progress(progress));
        }
    }
    file.set_len(start + layout.rows() * layout.row_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
    std::fs::rename(&unfinished, path).map_err(io)
}

/// A safetensors header for numbers that are yet to come.
fn header(layout: &Layout, key: &str) -> Vec<u8> {
    let Layout { images, views, classes, .. } = layout;
    let mut text = json!({
        "__metadata__": {"format": "pt", "key": key},
        "logits": {"dtype": "F16", "shape": [images, views, classes], "data_offsets": [0, layout.rows() * layout.row_bytes()]},
    })
    .to_string();
    // The format wants the numbers aligned.
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut bytes = Vec::with_capacity(8 + text.len());
    let _ = bytes.write_all(&(text.len() as u64).to_le_bytes());
    bytes.extend(text.bytes());
    bytes
}

fn read_header(file: &mut File, key: &str) -> std::result::Result<Layout, String> {
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| format!("no header: {e}"))?;
    let length = u64::from_le_bytes(length);
    if length > 1 << 16 {
        return Err("not a file of logits".into());
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(|e| format!("half a header: {e}"))?;
    let header: Value = serde_json::from_slice(&text).map_err(|e| format!("no header: {e}"))?;
    if header["__metadata__"]["key"] != key {
        return Err("made by another teacher or of other images".into());
    }
    let shape: Vec<usize> = serde_json::from_value(header["logits"]["shape"].clone()).map_err(|e| e.to_string())?;
    match shape[..] {
        [images, views, classes] => Ok(Layout { images, views, classes, start: 8 + length }),
        _ => Err(format!("logits of shape {shape:?}")),
    }
}

impl ViewLogits {
    pub fn views(&self) -> &Views {
        &self.views
    }

    pub(super) fn classes(&self) -> i64 {
        self.layout.classes as i64
    }

    /// Row i: the logits f32 of image `images[i]` in view `views[i]`; `[B, C]` on the CPU, read from disk.
    ///
    /// # Errors
    /// When an image or view is out of range, or the disk fails.
    pub fn rows(&self, images: &[i64], views: &[i64]) -> Result<Tensor> {
        let Layout { classes, start, .. } = self.layout;
        let mut bytes = vec![0; images.len() * classes * 2];
        let width = self.layout.row_bytes();
        for ((&image, &view), row) in images.iter().zip(views).zip(bytes.chunks_exact_mut(width as usize)) {
            let stored = match &self.rows {
                Some(rows) => usize::try_from(image).ok().and_then(|i| rows.get(i)).copied(),
                None => Some(image).filter(|i| (0..self.layout.images as i64).contains(i)),
            };
            let place = stored.filter(|_| (0..self.layout.views as i64).contains(&view));
            let place = place.map(|image| image as u64 * self.layout.views as u64 + view as u64).ok_or_else(|| {
                Error::Input(format!(
                    "no logits of image {image} in view {view}: there are {} views",
                    self.layout.views
                ))
            })?;
            self.file.read_exact_at(row, start + place * width).map_err(|e| Error::io("reading", &self.path, e))?;
        }
        let size = [images.len() as i64, classes as i64];
        Ok(Tensor::f_from_data_size(&bytes, &size, Kind::Half)?.f_to_kind(Kind::Float)?)
    }

    /// The logits of the samples at `indices` of `split`, for `split.select(indices)`. The file is shared.
    ///
    /// # Errors
    /// When these are the logits of another split, or an index is outside it.
    pub fn select(&self, split: &Split, indices: &[i64]) -> Result<Self> {
        self.check(&split.key)?;
        let part = split.select(indices)?;
        let rows = match &self.rows {
            Some(rows) => indices.iter().map(|&i| rows[i as usize]).collect(),
            None => indices.to_vec(),
        };
        let key = digest(&[self.key.as_bytes(), part.key.as_bytes()]);
        Ok(Self { rows: Some(rows), split_key: part.key, key, ..self.clone() })
    }

    pub(super) fn check(&self, split_key: &str) -> Result<()> {
        if self.split_key == split_key {
            return Ok(());
        }
        Err(Error::Input(
            "these logits of views were computed for other data (another split, seed or subset); compute them again for this split".into(),
        ))
    }
}
