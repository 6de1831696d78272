//! The user's own images: one folder per class.

use super::decode::{check_size, read};
use super::files::file_name;
use super::layout::{Labelled, Layout, Part, class_folders, pictures_are, read_layout, shortened};
use crate::data::Framing;
use crate::data::dataset::{DataOptions, Dataset, Found};
use crate::data::pool::Pool;
use crate::data::sampling::{Purpose, shuffled_rows, stratified};
use crate::store::cores::on_all_cores;
use crate::{Error, Result};
use std::collections::HashMap;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Share of each class that becomes the test split if there is no `test/` folder.
const TEST: f64 = 0.1;
/// Memory in bytes for decoded images that are not in the pool yet.
const WAITING: usize = 256 << 20;

/// Opens images in one folder per class, `class_name/*.png` (jpg, webp, tiff, bmp, gif), also in folders below it. Each
/// image becomes a square of `size` x `size` pixels, as [`DataOptions::framing`] says. Grey images get three equal
/// channels, transparent ones a white background. The first frame of an animated image is used.
///
/// A tenth of each class becomes the test split; or `path` holds `train/`, `test/` and `val/` (or `valid/`,
/// `validation/`) with the class folders in them, of which the last two may be missing. Tiny-ImageNet's layout is read
/// too, and Roboflow's exports for classification. Images in `unlabelled/` beside the class folders have no label; they
/// are in the [`Dataset::transfer_set`]. Whatever is left out is counted and named in the notices.
///
/// # Errors
/// When there is no image, no readable image, or only one class, or too few images of a class for every split.
pub fn image_folder(path: impl AsRef<Path>, size: i64, options: &DataOptions) -> Result<Dataset> {
    let path = path.as_ref();
    options.check()?;
    check_size(size)?;
    let Some(layout) = read_layout(path)? else {
        let what = if class_folders(path)?.is_empty() { "is empty" } else { "holds no images" };
        let path = path.display();
        return Err(Error::Data(format!("{path} {what}: put one folder of png or jpg images per class there")));
    };
    load(path, layout, size, options)
}

/// Decodes the images of a layout and divides them among the splits.
pub(super) fn load(path: &Path, layout: Layout, size: i64, options: &DataOptions) -> Result<Dataset> {
    let (classes, images, mut notices) = (layout.classes, layout.images, layout.notices);
    let (mut pool, kept) = decode(&images, size, options.framing, &mut notices)?;
    let file = |image: &Labelled| image.path.strip_prefix(path).unwrap_or(&image.path).to_string_lossy().into_owned();
    pool.files = Arc::new(kept.iter().map(|(image, _)| file(image)).collect());
    notices.extend(repeated(&kept));
    if kept.is_empty() {
        let (n, path) = (images.len(), path.display());
        return Err(Error::Data(format!("none of the {n} images in {path} could be read; {}", notices.join(""))));
    }
    // The files are sorted by class. In random order, the first n are of all classes.
    let rows = |part: Part| {
        let rows = (0..kept.len()).filter(|&i| kept[i].0.part == part).map(|i| i as i64).collect();
        shuffled_rows(rows, options.seed)
    };
    let mut train = rows(Part::Train);
    let test = if layout.parts.contains(&Part::Test) {
        rows(Part::Test)
    } else {
        let n = (train.len() as f64 * TEST).round() as usize;
        let (test, rest) = stratified(&train, &pool.labels, n.max(1), Purpose::TestSplit, options.seed);
        train = rest;
        let n = test.len();
        notices.push(format!("no test folder: {n} images, a tenth of each class, are set aside for the test split"));
        test
    };
    let validation = layout.parts.contains(&Part::Validation).then(|| rows(Part::Validation));
    let unlabelled = rows(Part::Unlabelled);
    let said = notices.join("; ");
    let found = Found { name: file_name(path), classes, pool, train, validation, test, unlabelled, notices };
    // The notices help to understand why a class has no images.
    let explained = |e| if said.is_empty() { e } else { Error::Data(format!("{e} ({said})")) };
    let mut data = found.into_dataset(options).map_err(explained)?;
    data.framing = options.framing;
    Ok(data)
}

/// Images that occur twice: in two splits they make the test too easy, in two classes one label is wrong. Each image
/// comes with the digest of its file.
fn repeated(kept: &[(&Labelled, u128)]) -> Vec<String> {
    let mut first: HashMap<u128, &Labelled> = HashMap::new();
    let (mut splits, mut classes, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for (image, digest) in kept {
        let earlier = *first.entry(*digest).or_insert(image);
        let unlabelled = [image.part, earlier.part].contains(&Part::Unlabelled);
        if unlabelled && ![image.part, earlier.part].iter().any(|part| [Part::Validation, Part::Test].contains(part)) {
            continue;
        }
        if !unlabelled && image.label != earlier.label {
            classes.push(image.path.clone());
        } else if image.part != earlier.part {
            splits.push(image.path.clone());
        } else if image.path != earlier.path {
            copies.push(image.path.clone());
        }
    }
    // Copies within a split matter only if it is divided later.
    if kept.iter().any(|(image, _)| [Part::Validation, Part::Test].contains(&image.part)) {
        copies.clear();
    }
    let notices = [
        pictures_are(&splits, "in another split as well, which flatters what is measured there; remove one of each"),
        pictures_are(&classes, "in another class as well, so one of the two labels is wrong; remove one of each"),
        pictures_are(&copies, "copies of others of their class, and may come into another split than those"),
    ];
    notices.into_iter().flatten().collect()
}

/// Decodes all images into a pool on all cores. Also returns, in order, those that could be read, with the digests of
/// their files.
fn decode<'a>(
    images: &'a [Labelled],
    size: i64,
    framing: Framing,
    notices: &mut Vec<String>,
) -> Result<(Pool, Vec<(&'a Labelled, u128)>)> {
    let mut pool = Pool::new(images.len(), [3, size, size])?;
    let (mut kept, mut bad, mut animated) = (Vec::new(), Vec::new(), Vec::new());
    let decoded = |path: &PathBuf| {
        catch_unwind(|| read(path, size, framing)).unwrap_or_else(|_| Err("the decoder panicked".to_owned()))
    };
    for piece in images.chunks((WAITING / (3 * size * size) as usize).max(16)) {
        let decoded = on_all_cores(piece.iter().map(|image| &image.path).collect(), decoded);
        for (image, decoded) in piece.iter().zip(decoded) {
            match decoded {
                Ok(decoded) => {
                    pool.push(&decoded.pixels, &[image.label])?;
                    kept.push((image, decoded.digest));
                    if decoded.is_animated {
                        animated.push(image.path.clone());
                    }
                }
                Err(why) => bad.push(format!("{} ({why})", image.path.display())),
            }
        }
    }
    if !bad.is_empty() {
        notices.push(format!("{} of {} files skipped: {}", bad.len(), images.len(), shortened(bad)));
    }
    notices.extend(pictures_are(&animated, "animated; the first frame is taken"));
    Ok((pool, kept))
}
