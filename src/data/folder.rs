//! The user's own images: one folder per class.

use super::pool::Pool;
use super::split::{Purpose, reordered, stratified};
use super::{DataOptions, Dataset, Rows, assemble, check, file_name, list};
use crate::{Error, Result};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage, imageops};
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Share of each class set aside for the test split where there is no `test/` folder.
const TEST: f64 = 0.1;

/// Images in one folder per class, `class_name/*.png` (or jpg, jpeg), of any sizes: each is resized to
/// `size` x `size` pixels on load. Grey images get three equal channels, transparent ones a white background.
///
/// A picture that is not square is squeezed into one. A tenth of each class becomes the test split; or `path` holds `train/`, `test/` and `val/` (or `valid/`, `validation/`)
/// with the class folders in them, of which the last two may be missing. Files that cannot be read are skipped,
/// counted and named in the notices.
///
/// # Errors
/// When there are no images, no readable ones, one class only, or too few of a class for it to be in every split.
pub fn image_folder(path: impl AsRef<Path>, size: i64, options: &DataOptions) -> Result<Dataset> {
    let path = path.as_ref();
    check(options)?;
    check_size(size)?;
    let parts = parts(path)?;
    let Some((_, root)) = parts.first() else {
        return Err(Error::Data(format!(
            "{} is empty: put one folder of png or jpg images per class there",
            path.display()
        )));
    };
    let mut notices = Vec::new();
    let mut classes: Vec<String> = class_folders(root)?.iter().map(|p| file_name(p)).collect();
    if classes.iter().all(|name| name.parse::<u64>().is_ok()) {
        let by_name = classes.clone();
        classes.sort_by_key(|name| name.parse::<u64>().unwrap_or_default());
        if classes != by_name {
            notices.push(format!(
                "the names of the classes are numbers, so they are in that order: {}",
                classes.join(", ")
            ));
        }
    }
    let mut unread = Vec::new();
    let mut files = Vec::new(); // (part, path, label)
    for (part, root) in &parts {
        for folder in class_folders(root)? {
            let Some(label) = classes.iter().position(|c| *c == file_name(&folder)) else {
                return Err(Error::Data(format!(
                    "{} is a class that train/ does not have: add it there or remove it",
                    folder.display()
                )));
            };
            unread.extend(others(&folder)?);
            files.extend(images(&folder)?.into_iter().map(|file| (*part, file, label as i64)));
        }
    }
    if files.is_empty() {
        return Err(Error::Data(format!(
            "{} holds no images: put one folder of png or jpg images per class there",
            path.display()
        )));
    }
    if !unread.is_empty() {
        let more = if unread.len() > 5 { format!(" and {} more", unread.len() - 5) } else { String::new() };
        notices.push(format!(
            "{} pictures are not read, only png, jpg and jpeg that lie directly in the folder of their class: {}{more}",
            unread.len(),
            unread[..unread.len().min(5)].iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
        ));
    }
    let (pool, kept) = decode(&files, size, &mut notices)?;
    if kept.is_empty() {
        return Err(Error::Data(format!(
            "none of the {} images in {} could be read; {}",
            files.len(),
            path.display(),
            notices.join("")
        )));
    }
    // The files are sorted by class: mix them, so that the first n are of all classes.
    let rows = |part: Part| {
        let rows = (0..kept.len()).filter(|&i| kept[i].0 == part).map(|i| i as i64).collect();
        reordered(rows, options.seed)
    };
    let labels: Vec<i64> = kept.iter().map(|k| k.1).collect();
    let has = |part: Part| parts.iter().any(|p| p.0 == part);
    let mut train = rows(Part::Train);
    let test = if has(Part::Test) {
        rows(Part::Test)
    } else {
        let n = (train.len() as f64 * TEST).round() as usize;
        let (test, rest) = stratified(&train, &labels, n.max(1), Purpose::Test, options.seed);
        train = rest;
        notices.push(format!(
            "no test folder: {} images, a tenth of each class, are set aside for the test split",
            test.len()
        ));
        test
    };
    let validation = has(Part::Validation).then(|| rows(Part::Validation));
    assemble(file_name(path), classes, pool, Rows { train, validation, test }, notices, options)
}

/// One image file exactly as [`image_folder`] holds it: u8 `[3, size, size]`, red, green, blue, 0..255, on the CPU.
///
/// # Errors
/// When the file is missing or no whole PNG or JPEG, or `size` is not in 1..=4096.
pub fn read_image(path: impl AsRef<Path>, size: i64) -> Result<Tensor> {
    let path = path.as_ref();
    check_size(size)?;
    let pixels = read(path, size as u32).map_err(|why| {
        Error::Data(format!("the image {} cannot be used: {why}; give a PNG or JPEG", path.display()))
    })?;
    Ok(Tensor::f_from_slice(&pixels)?.f_view([3, size, size])?)
}

fn check_size(size: i64) -> Result<()> {
    match size {
        1..=4096 => Ok(()),
        _ => Err(Error::Input(format!("image size {size}: choose 1 to 4096 pixels (32 and 224 are usual)"))),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Train,
    Validation,
    Test,
}

/// Whether a folder looks like one of images per class.
pub(super) fn find(path: &Path) -> Result<bool> {
    for (_, root) in parts(path)? {
        for folder in class_folders(&root)? {
            if !images(&folder)?.is_empty() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The folders that hold class folders, train first: `path` itself, or `train/` and its siblings.
fn parts(path: &Path) -> Result<Vec<(Part, PathBuf)>> {
    let train = path.join("train");
    if !train.is_dir() || class_folders(&train)?.is_empty() {
        return Ok(if class_folders(path)?.is_empty() { vec![] } else { vec![(Part::Train, path.into())] });
    }
    let mut parts = vec![(Part::Train, train)];
    for (part, name) in
        [(Part::Validation, "val"), (Part::Validation, "valid"), (Part::Validation, "validation"), (Part::Test, "test")]
    {
        let folder = path.join(name);
        if folder.is_dir() && !parts.iter().any(|p| p.0 == part) {
            parts.push((part, folder));
        }
    }
    Ok(parts)
}

fn class_folders(root: &Path) -> Result<Vec<PathBuf>> {
    // Archives made on a Mac hold a second tree of this name, of metadata.
    let is_class = |p: &PathBuf| p.is_dir() && !file_name(p).starts_with('.') && file_name(p) != "__MACOSX";
    Ok(list(root)?.into_iter().filter(is_class).collect())
}

/// Kinds of pictures that people have and this crate does not decode.
const UNREAD: [&str; 11] = ["webp", "tif", "tiff", "bmp", "gif", "heic", "heif", "avif", "jfif", "jp2", "ppm"];

/// Pictures in a class folder that are not read: those of other kinds, and all in folders below it.
fn others(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = images(folder)?;
    let mut found = Vec::new();
    for path in list(folder)?.into_iter().filter(|path| !read.contains(path)) {
        let name = file_name(&path);
        if name.starts_with('.') || name == "__MACOSX" {
            continue;
        }
        if path.is_dir() {
            found.extend(others(&path)?);
            found.extend(images(&path)?);
        } else if path.extension().is_some_and(|e| UNREAD.contains(&e.to_string_lossy().to_lowercase().as_str())) {
            found.push(path);
        }
    }
    Ok(found)
}

fn images(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_image = |p: &PathBuf| {
        let extension = p.extension().map(|e| e.to_string_lossy().to_lowercase());
        p.is_file() && matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg"))
    };
    Ok(list(folder)?.into_iter().filter(is_image).collect())
}

type File = (Part, PathBuf, i64);

/// Reads all images, on all cores, into a pool; gives part and label of each one kept, in order.
fn decode(files: &[File], size: i64, notices: &mut Vec<String>) -> Result<(Pool, Vec<(Part, i64)>)> {
    let mut pool = Pool::new(files.len(), [3, size, size])?;
    let (mut kept, mut bad) = (Vec::new(), Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    // Only so many are decoded at a time as keep the cores busy: photographs are large.
    for piece in files.chunks(threads * 8) {
        let decoded: Vec<_> = std::thread::scope(|scope| {
            let work = |files: &'_ [File]| files.iter().map(|f| read(&f.1, size as u32)).collect::<Vec<_>>();
            let workers: Vec<_> = piece
                .chunks(piece.len().div_ceil(threads))
                .map(|share| (share, scope.spawn(move || work(share))))
                .collect();
            workers
                .into_iter()
                .flat_map(|(share, w)| {
                    w.join().unwrap_or_else(|_| share.iter().map(|_| Err("the decoder panicked".into())).collect())
                })
                .collect()
        });
        for ((part, path, label), image) in piece.iter().zip(decoded) {
            match image {
                Ok(pixels) => {
                    pool.push(&pixels, &[*label])?;
                    kept.push((*part, *label));
                }
                Err(why) => bad.push(format!("{} ({why})", path.display())),
            }
        }
    }
    if !bad.is_empty() {
        let more = if bad.len() > 5 { format!(" and {} more", bad.len() - 5) } else { String::new() };
        notices.push(format!(
            "{} of {} files skipped: {}{more}",
            bad.len(),
            files.len(),
            bad[..bad.len().min(5)].join(", ")
        ));
    }
    Ok((pool, kept))
}

/// One file as u8 `[3, size, size]`.
fn read(path: &Path, size: u32) -> std::result::Result<Vec<u8>, String> {
    let decode = || -> image::ImageResult<DynamicImage> {
        // By content, not by name: many a .jpg is a PNG.
        let reader = ImageReader::open(path)?.with_guessed_format()?;
        if reader.format() == Some(ImageFormat::Jpeg) && !is_whole_jpeg(&std::fs::read(path)?) {
            return Err(std::io::Error::other("the file is cut off").into());
        }
        let mut decoder = reader.into_decoder()?;
        let orientation = decoder.orientation()?;
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation); // cameras store turned photographs as they came off the sensor
        Ok(image)
    };
    let image = decode().map_err(|e| match e {
        image::ImageError::IoError(e) => e.to_string(),
        _ => "not a whole PNG or JPEG".to_owned(),
    })?;
    let image = imageops::resize(&on_white(image), size, size, imageops::FilterType::Triangle);
    let pixels = image.as_raw();
    Ok((0..3).flat_map(|c| pixels.iter().skip(c).step_by(3).copied()).collect())
}

/// Whether the end marker follows the pixels. Decoders fill up a file that was cut off with grey, which is no picture to
/// learn from.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    // Segments of 0xFF, kind, length before the pixels; a thumbnail within one of them has an end marker of its own.
    let mut at = 2;
    while let Some(&[0xFF, kind, high, low]) = bytes.get(at..at + 4) {
        match kind {
            // Fill bytes may stand before a marker.
            0xFF => at += 1,
            0xDA => return bytes[at..].windows(2).any(|pair| pair == [0xFF, 0xD9]),
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}

/// Eight-bit RGB, transparent parts on white.
fn on_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in rgb.pixels_mut().zip(rgba.pixels()) {
        let alpha = u16::from(from[3]);
        to.0 = [0, 1, 2].map(|c| ((u16::from(from[c]) * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    rgb
}
