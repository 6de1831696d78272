//! Where the images of a folder lie and which class each belongs to: folders of classes, ImageNet's, Tiny-ImageNet's
//! and Roboflow's layouts.

use super::classes::named;
use super::decode::file_bytes;
use super::files::{file_name, list};
use super::originals::Inside;
use super::tables::{has_table, refuse_others, table};
use crate::data::UNLABELLED;
use crate::{Error, Result};
use image::ImageFormat;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Deepest folder below that of a class that is searched.
const DEEPEST: usize = 8;
/// The folder of images without labels, in either spelling.
const UNLABELLED_FOLDERS: [&str; 2] = ["unlabelled", "unlabeled"];
/// Where ImageNet's images lie in the folder that its archive makes.
const IMAGENET: [&str; 2] = ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"];
/// Extensions of image formats that the `image` crate does not know.
const UNKNOWN: [&str; 11] = ["heic", "heif", "jp2", "j2k", "jxl", "svg", "psd", "cr2", "nef", "arw", "dng"];

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Part {
    Train,
    Validation,
    Test,
    /// Images of which no class is known.
    Unlabelled,
}

/// An image and its label.
#[derive(Serialize, Deserialize)]
pub(super) struct Labelled {
    pub part: Part,
    /// The image's file; or the shard that it lies in, followed by its name there.
    pub path: PathBuf,
    pub label: i64,
    /// Where it lies in a shard; `None` for a file of its own.
    pub inside: Option<Inside>,
}

/// What a folder holds.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Layout {
    /// The folder.
    pub root: PathBuf,
    pub classes: Vec<String>,
    pub parts: Vec<Part>,
    pub images: Vec<Labelled>,
    /// The shards, if the images lie in shards.
    pub shards: Vec<PathBuf>,
    pub notices: Vec<String>,
}

impl Layout {
    /// The path of an image in the folder.
    pub fn name(&self, image: &Labelled) -> String {
        image.path.strip_prefix(&self.root).unwrap_or(&image.path).to_string_lossy().into_owned()
    }

    /// The bytes of an image's file; the error says why they cannot be read.
    pub fn bytes(&self, image: &Labelled) -> std::result::Result<Vec<u8>, String> {
        image.inside.map_or_else(|| file_bytes(&image.path), |inside| inside.bytes(&self.shards))
    }
}

/// Finds the images of a folder, their splits and their classes; `None` if there are none.
pub(super) fn read_layout(path: &Path) -> Result<Option<Layout>> {
    let mut layout = Layout { root: path.to_owned(), ..Layout::default() };
    let inner = IMAGENET.iter().map(|inner| path.join(inner)).find(|inner| inner.join("train").is_dir());
    let path = inner.as_deref().unwrap_or(path);
    let mut parts = parts(path)?;
    let Some((_, root)) = parts.first() else { return Ok(None) };
    let (classes, notices) = (&mut layout.classes, &mut layout.notices);
    *classes = class_names(root, notices)?;
    let roots: Vec<PathBuf> = parts.iter().map(|(_, root)| root.clone()).collect();
    parts.retain(|(part, root)| {
        let unused = *part != Part::Train && is_unlabelled(root, classes);
        if unused {
            let root = root.display();
            notices.push(format!("{root} has no folders of classes, so its images have no labels: not used"));
        }
        !unused
    });
    let mut search = Search::default();
    for (part, root) in &parts {
        layout.images.extend(search.labelled(*part, root, classes)?);
    }
    if layout.images.is_empty() {
        return Ok(None);
    }
    for folder in unlabelled_folders(path, &roots[0]) {
        let nested = search.nested;
        let images = search.images(&folder, true)?.into_iter();
        search.nested = nested;
        layout.images.extend(images.map(|path| Labelled {
            part: Part::Unlabelled,
            path,
            label: UNLABELLED,
            inside: None,
        }));
    }
    if !roots.iter().any(|root| root == path) {
        let loose = search.images(path, false)?;
        search.unlabelled.extend(loose);
        // One of `val/` and `valid/`, or a folder that is not a split.
        for folder in class_folders(path)?.iter().filter(|folder| !roots.contains(folder)) {
            let (n, folder) = (Search::default().images(folder, true)?.len(), folder.display());
            if n > 0 {
                notices.push(format!("{n} images in {folder} are in none of the splits: not used"));
            }
        }
    }
    notices.extend(search.notices());
    *classes = named(std::mem::take(classes), path);
    layout.parts = parts.iter().map(|(part, _)| *part).collect();
    Ok(Some(layout))
}

/// The classes of the training images, in the order of their labels.
fn class_names(root: &Path, notices: &mut Vec<String>) -> Result<Vec<String>> {
    let mut classes = table(root)?.map(|table| table.classes).unwrap_or_default();
    if classes.is_empty() {
        classes = class_folders(root)?.iter().map(|path| file_name(path)).collect();
    }
    if let Some((_, twice)) = classes.iter().enumerate().find(|(i, name)| classes[..*i].contains(name)) {
        return Err(Error::Data(format!("two classes in {} read {twice:?}: rename one", root.display())));
    }
    if let Ok(numbers) = classes.iter().map(|name| name.parse::<u64>()).collect::<std::result::Result<Vec<_>, _>>()
        && !numbers.is_sorted()
    {
        classes.sort_by_key(|name| name.parse::<u64>().unwrap_or_default());
        let order = classes.join(", ");
        notices.push(format!("the names of the classes are numbers, so they are in that order: {order}"));
    }
    Ok(classes)
}

/// The folders that hold class folders, train first: `path` itself, or `train/` and the folders beside it.
fn parts(path: &Path) -> Result<Vec<(Part, PathBuf)>> {
    let train = path.join("train");
    let holds_classes = |root: &Path| Ok::<_, Error>(has_table(root) || !class_folders(root)?.is_empty());
    let is_divided = train.is_dir() && holds_classes(&train)?;
    refuse_others(path, is_divided)?;
    if !is_divided {
        return Ok(if class_folders(path)?.is_empty() { vec![] } else { vec![(Part::Train, path.into())] });
    }
    let mut parts = vec![(Part::Train, train)];
    for name in ["val", "valid", "validation", "test"] {
        let (folder, part) = (path.join(name), if name == "test" { Part::Test } else { Part::Validation });
        if folder.is_dir() && parts.iter().all(|(known, _)| *known != part) {
            parts.push((part, folder));
        }
    }
    Ok(parts)
}

pub(super) fn class_folders(root: &Path) -> Result<Vec<PathBuf>> {
    // Archives made on a Mac hold a second tree of this name, of metadata.
    let is_class = |name: String| name != "__MACOSX" && !UNLABELLED_FOLDERS.contains(&name.as_str());
    Ok(list(root)?.into_iter().filter(|path| path.is_dir() && is_class(file_name(path))).collect())
}

/// The folders of images without labels, in the folder of the dataset and in that of its training split.
fn unlabelled_folders(path: &Path, train: &Path) -> Vec<PathBuf> {
    let mut roots = vec![path, train];
    roots.dedup();
    let folders = roots.iter().flat_map(|root| UNLABELLED_FOLDERS.map(|name| root.join(name)));
    folders.filter(|folder| folder.is_dir()).collect()
}

/// Whether a split holds its images in one folder that is not a class, as Tiny-ImageNet's test split does, or in none,
/// as ImageNet's does.
fn is_unlabelled(root: &Path, classes: &[String]) -> bool {
    let folders: Vec<String> = class_folders(root).unwrap_or_default().iter().map(|f| file_name(f)).collect();
    let loose = || list(root).is_ok_and(|files| files.iter().any(|path| !path.is_dir() && is_read(path) == Some(true)));
    let is_flat = if folders.is_empty() { loose() } else { folders == ["images"] && !classes.contains(&folders[0]) };
    is_flat && !has_table(root)
}

/// A search for image files, with what it left out.
#[derive(Default)]
struct Search {
    /// Images of formats that are not decoded.
    unread: Vec<PathBuf>,
    /// Images without a class.
    unlabelled: Vec<PathBuf>,
    /// Images that a table names and that do not exist.
    absent: Vec<PathBuf>,
    /// Folders that were not searched.
    skipped: Vec<PathBuf>,
    /// Number of images in folders below the one that was searched.
    nested: usize,
}

impl Search {
    /// The images of a split that have a class.
    fn labelled(&mut self, part: Part, root: &Path, classes: &[String]) -> Result<Vec<Labelled>> {
        let label_of = |class: &str, place: &Path| {
            let label = classes.iter().position(|known| known == class).map(|label| label as i64);
            label.ok_or_else(|| {
                let place = place.display();
                Error::Data(format!("{place} is a class that train/ does not have: add it there or remove it"))
            })
        };
        let mut found = Vec::new();
        let Some(table) = table(root)? else {
            for folder in class_folders(root)? {
                let label = label_of(&file_name(&folder), &folder)?;
                let images = self.images(&folder, true)?.into_iter();
                found.extend(images.map(|path| Labelled { part, path, label, inside: None }));
            }
            let loose = self.images(root, false)?;
            self.unlabelled.extend(loose);
            return Ok(found);
        };
        let mut names = HashSet::new();
        for path in self.images(&table.images, table.images != root)? {
            let name = file_name(&path);
            match table.class_of.get(&name) {
                Some(Some(class)) => {
                    let label = label_of(class, &table.path.join(class))?;
                    found.push(Labelled { part, path, label, inside: None });
                }
                _ => self.unlabelled.push(path),
            }
            names.insert(name);
        }
        let absent = table.class_of.keys().filter(|name| !names.contains(*name));
        self.absent.extend(absent.map(|name| table.images.join(name)));
        Ok(found)
    }

    fn notices(mut self) -> Vec<String> {
        self.absent.sort();
        let nested = |n| format!("{n} images lie in folders below that of a class: they are taken for that class");
        let skipped = |paths| format!("not looked into, for they lie too deep or lead back: {}", first_five(paths));
        let unlabelled = "in no folder of a class and in no table, so without a label: not used";
        let notices = [
            (self.nested > 0).then(|| nested(self.nested)),
            pictures_are(&self.unread, "of a kind that is not read"),
            pictures_are(&self.unlabelled, unlabelled),
            pictures_are(&self.absent, "named in a table and missing"),
            (!self.skipped.is_empty()).then(|| skipped(&self.skipped)),
        ];
        notices.into_iter().flatten().collect()
    }

    /// The images in a folder, sorted; with `below`, also those in folders below it.
    fn images(&mut self, folder: &Path, below: bool) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut left = vec![(folder.to_owned(), 0)];
        // A link may lead back, and the same images would be found again and again.
        let mut seen: HashSet<PathBuf> = folder.canonicalize().into_iter().collect();
        while let Some((place, depth)) = left.pop() {
            for path in list(&place)? {
                if path.is_dir() {
                    if !below || file_name(&path) == "__MACOSX" {
                        continue;
                    }
                    let is_new = path.canonicalize().is_ok_and(|real| seen.insert(real));
                    match is_new && depth < DEEPEST {
                        true => left.push((path, depth + 1)),
                        false => self.skipped.push(path),
                    }
                    continue;
                }
                match is_read(&path) {
                    Some(true) => found.push(path),
                    Some(false) => self.unread.push(path),
                    None => {}
                }
            }
        }
        self.nested += found.iter().filter(|path| path.parent() != Some(folder)).count();
        found.sort();
        Ok(found)
    }
}

/// Whether the format of an image is decoded; `None` if the file is not an image. The extension decides, else the first
/// bytes.
fn is_read(path: &Path) -> Option<bool> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if UNKNOWN.contains(&extension.as_str()) {
        return Some(false);
    }
    if let Some(format) = ImageFormat::from_extension(&extension) {
        return Some(format.reading_enabled());
    }
    // Opening a pipe would block.
    let file =
        std::fs::metadata(path).ok().filter(|about| about.is_file()).and_then(|_| std::fs::File::open(path).ok())?;
    let mut start = Vec::new();
    file.take(32).read_to_end(&mut start).ok()?;
    Some(image::guess_format(&start).ok()?.reading_enabled())
}

/// A notice about some images; `None` if there are none.
pub(super) fn pictures_are(paths: &[PathBuf], what: &str) -> Option<String> {
    match paths.len() {
        0 => None,
        1 => Some(format!("1 picture is {what}: {}", first_five(paths))),
        n => Some(format!("{n} pictures are {what}: {}", first_five(paths))),
    }
}

/// The first five paths, and the number of the others.
fn first_five(paths: &[PathBuf]) -> String {
    shortened(paths.iter().map(|path| path.display().to_string()).collect())
}

/// The first five of some texts, and the number of the others.
pub(crate) fn shortened(mut texts: Vec<String>) -> String {
    let others = texts.len().saturating_sub(5);
    texts.truncate(5);
    texts.join(", ") + &if others > 0 { format!(" and {others} more") } else { String::new() }
}
