//! The user's own images: one folder per class, or shards.

use super::decode::check_size;
use super::files::file_name;
use super::layout::{Labelled, Layout, Part, class_folders, pictures_are, read_layout, shortened};
use super::originals::{Originals, Place};
use super::pixels::decode;
use super::shards;
use crate::data::dataset::{DataOptions, Dataset, Found};
use crate::data::pixel_file::Outcome;
use crate::data::sampling::{Purpose, shuffled_rows, stratified};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Share of each class that becomes the test split if there is no `test/` folder.
const TEST: f64 = 0.1;

/// Opens images in one folder per class, `class_name/*.png` (jpg, webp, tiff, bmp, gif), also in folders below it. Each
/// image becomes a square of `size` x `size` pixels, as [`DataOptions::framing`] says. Grey images get three equal
/// channels, transparent ones a white background. The first frame of an animated image is used.
///
/// A tenth of each class becomes the test split; or `path` holds `train/`, `test/` and `val/` (or `valid/`,
/// `validation/`) with the class folders in them, of which the last two may be missing. Tiny-ImageNet's layout is read
/// too, and Roboflow's exports for classification. Images in `unlabelled/` beside the class folders have no label; they
/// are in the [`Dataset::transfer_set`]. Whatever is left out is counted and named in the notices.
///
/// `path` may also hold WebDataset shards: `train-000000.tar`, `val-000000.tar` and so on, or `train/*.tar` and so on.
/// A sample is an image, `KEY.jpg`, with its label in `KEY.cls` or `KEY.json`. `classes.txt` beside the shards names
/// the classes, a line each; without it they are named by their numbers.
///
/// Images that would take more memory than [`DataOptions::memory`] allows are decoded once into a file; batches are
/// read from there. A call that was interrupted or killed goes on where it ended.
///
/// # Errors
/// When there is no image, no readable image, or only one class, or too few images of a class for every split.
pub fn image_folder(path: impl AsRef<Path>, size: i64, options: &DataOptions) -> Result<Dataset> {
    let path = path.as_ref();
    options.check()?;
    check_size(size)?;
    let Some(layout) = find(path, options)? else {
        let what = if class_folders(path)?.is_empty() { "is empty" } else { "holds no images" };
        let path = path.display();
        return Err(Error::Data(format!("{path} {what}: put one folder of png or jpg images per class there")));
    };
    load(path, layout, size, options)
}

/// Finds the images of a folder, their splits and their classes, in folders or in shards; `None` if there are none.
pub(super) fn find(path: &Path, options: &DataOptions) -> Result<Option<Layout>> {
    let in_splits = shards::in_splits(path)?;
    if !in_splits.is_empty() {
        return shards::read_shards(path, in_splits, &options.cache).map(Some);
    }
    if let Some(layout) = read_layout(path)? {
        return Ok(Some(layout));
    }
    let mut notices = Vec::new();
    let beside = shards::beside(path, &mut notices)?;
    if beside.is_empty() {
        return match notices.is_empty() {
            true => Ok(None),
            false => Err(Error::Data(format!("{} cannot be used: {}", path.display(), notices.join("; ")))),
        };
    }
    let mut layout = shards::read_shards(path, beside, &options.cache)?;
    layout.notices.splice(0..0, notices);
    Ok(Some(layout))
}

/// Decodes the images of a layout and divides them among the splits.
pub(super) fn load(path: &Path, layout: Layout, size: i64, options: &DataOptions) -> Result<Dataset> {
    let mut notices = Vec::new();
    let (mut pool, outcomes) = decode(path, &layout, size, options, &mut notices)?;
    notices.splice(0..0, layout.notices.iter().cloned().chain(left_out(&layout, &outcomes)));
    let kept: Vec<(&Labelled, (u64, u64))> = layout.images.iter().zip(&outcomes).filter_map(kept).collect();
    pool.originals = Some(Arc::new(originals(&layout, &kept)));
    notices.extend(repeated(&kept));
    if kept.is_empty() {
        let (n, path) = (layout.images.len(), path.display());
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
    let (name, classes) = (file_name(path), layout.classes);
    let found = Found { name, classes, pool, train, validation, test, unlabelled, notices };
    // The notices help to understand why a class has no images.
    let explained = |e| if said.is_empty() { e } else { Error::Data(format!("{e} ({said})")) };
    let mut data = found.into_dataset(options).map_err(explained)?;
    data.framing = options.framing;
    Ok(data)
}

/// Where the images of a pool lie, each with the digest of its file.
fn originals(layout: &Layout, kept: &[(&Labelled, (u64, u64))]) -> Originals {
    let place = |image: &Labelled, name: &String| match image.inside {
        Some(inside) => Place::In(inside),
        None if layout.root.join(name) == image.path => Place::Named,
        None => Place::At(image.path.clone()),
    };
    let files: Vec<String> = kept.iter().map(|(image, _)| layout.name(image)).collect();
    let places = kept.iter().zip(&files).map(|((image, digest), name)| (place(image, name), *digest)).collect();
    Originals::new(layout.root.clone(), layout.shards.clone(), files, places)
}

fn kept<'a>((image, outcome): (&'a Labelled, &Outcome)) -> Option<(&'a Labelled, (u64, u64))> {
    match outcome {
        Outcome::Kept { digest, .. } => Some((image, *digest)),
        Outcome::Skipped(_) => None,
    }
}

/// Images that could not be read, and animated ones.
fn left_out(layout: &Layout, outcomes: &[Outcome]) -> Vec<String> {
    let (mut bad, mut animated) = (Vec::new(), Vec::new());
    for (image, outcome) in layout.images.iter().zip(outcomes) {
        match outcome {
            Outcome::Skipped(why) => bad.push(format!("{} ({why})", image.path.display())),
            Outcome::Kept { animated: true, .. } => animated.push(image.path.clone()),
            Outcome::Kept { .. } => {}
        }
    }
    let (n, all) = (bad.len(), outcomes.len());
    let skipped = (n > 0).then(|| format!("{n} of {all} files skipped: {}", shortened(bad)));
    skipped.into_iter().chain(pictures_are(&animated, "animated; the first frame is taken")).collect()
}

/// Images that occur twice: in two splits they make the test too easy, in two classes one label is wrong. Each image
/// comes with the digest of its file.
fn repeated(kept: &[(&Labelled, (u64, u64))]) -> Vec<String> {
    let mut first: HashMap<(u64, u64), &Labelled> = HashMap::new();
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
