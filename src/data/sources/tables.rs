//! Splits whose images lie in one folder, with a table of their classes: the validation splits of ImageNet and
//! Tiny-ImageNet, and Roboflow's "Multi-Label Classification CSV" if each image has one class. Roboflow's exports for
//! detection have boxes instead of classes, and are refused by name.
//!
//! Source of Roboflow's layouts: <https://docs.roboflow.com/datasets/versions/dataset-versions/exporting-data>.

use super::files::{file_name, list};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Roboflow: a header of "filename" and the class names, then for each image a line of its file name and a 0 or 1 for
/// each class.
const ROBOFLOW: &str = "_classes.csv";
/// Tiny-ImageNet: for each image in `images/` a line of file name, class and box, separated by tabs.
const TINY_IMAGENET: &str = "val_annotations.txt";
/// ImageNet from Kaggle: a header, then for each image a line of its name without ending and a list of synsets and
/// boxes, separated by a comma.
const KAGGLE: &str = "LOC_val_solution.csv";
/// ImageNet's validation split in other forms: for each image a line of file name and synset, or the place of the
/// synset among the sorted ones; or a line of the synset alone, in the order of the images.
const VALIDATION: [&str; 3] =
    ["val.txt", "imagenet_2012_validation_synset_labels.txt", "ILSVRC2012_validation_synset_labels.txt"];
/// Number of folders above that of the images in which ImageNet's table may lie.
const ABOVE: usize = 5;
/// Files of Roboflow's exports for detection.
const BOXES: [&str; 4] =
    ["_annotations.csv", "_annotations.coco.json", "_annotations.txt", "_annotations.createml.json"];

/// The table of a split.
pub(super) struct Table {
    pub path: PathBuf,
    /// The folder of the images.
    pub images: PathBuf,
    /// All classes, in the order of the table; empty if the table does not list them.
    pub classes: Vec<String>,
    /// The class by file name; `None` for an image without a class.
    pub class_of: HashMap<String, Option<String>>,
}

pub(super) fn has_table(root: &Path) -> bool {
    [ROBOFLOW, TINY_IMAGENET].iter().any(|name| root.join(name).is_file()) || imagenet_table(root).is_some()
}

/// The table of ImageNet's validation split, if `root` is such a folder.
fn imagenet_table(root: &Path) -> Option<PathBuf> {
    let is_flat = list(root).ok()?.iter().all(|path| !path.is_dir());
    let is_validation = ["val", "valid", "validation"].contains(&file_name(root).as_str()) && is_flat;
    let mut tables = root
        .ancestors()
        .take(ABOVE)
        .flat_map(|place| [KAGGLE].into_iter().chain(VALIDATION).map(|name| place.join(name)).collect::<Vec<_>>());
    tables.find(|path| is_validation && path.is_file())
}

/// Reads the table of a split; `None` if there is none.
///
/// # Errors
/// When it is damaged, or an image has several classes.
pub(super) fn table(root: &Path) -> Result<Option<Table>> {
    let here = [ROBOFLOW, TINY_IMAGENET].iter().map(|name| root.join(name)).find(|path| path.is_file());
    let Some(path) = here.or_else(|| imagenet_table(root)) else { return Ok(None) };
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("reading", &path, e))?;
    if path.ends_with(ROBOFLOW) {
        return roboflow(path, &text).map(Some);
    }
    if !path.ends_with(TINY_IMAGENET) {
        return Ok(Some(Table { class_of: imagenet(root, &text), path, images: root.to_owned(), classes: Vec::new() }));
    }
    let pair = |line: &str| {
        let (file, rest) = line.split_once('\t')?;
        Some((file.to_owned(), Some(rest.split('\t').next()?.trim().to_owned())))
    };
    let class_of = text.lines().filter_map(pair).collect();
    Ok(Some(Table { path, images: root.join("images"), classes: Vec::new(), class_of }))
}

/// The synset of each image in ImageNet's validation split, by one of its tables.
fn imagenet(root: &Path, text: &str) -> HashMap<String, Option<String>> {
    let train = root.parent().map(|parent| parent.join("train"));
    let synsets: Vec<String> =
        train.and_then(|train| list(&train).ok()).iter().flatten().map(|path| file_name(path)).collect();
    let pair = |(number, line): (usize, &str)| match line.split([',', ' ', '\t']).collect::<Vec<_>>().as_slice() {
        [""] | ["ImageId", ..] => None,
        [synset] => Some((format!("ILSVRC2012_val_{:08}.JPEG", number + 1), Some((*synset).to_owned()))),
        [file, class, ..] => {
            let file = if file.contains('.') { (*file).to_owned() } else { format!("{file}.JPEG") };
            let class = class.parse().map_or_else(|_| Some((*class).to_owned()), |at: usize| synsets.get(at).cloned());
            Some((file, class))
        }
        [] => None,
    };
    text.lines().map(str::trim).enumerate().filter_map(pair).collect()
}

fn roboflow(path: PathBuf, text: &str) -> Result<Table> {
    let wrong = |what: String| Error::Data(format!("{} {what}; export it again", path.display()));
    let fields = |line: &str| line.split(',').map(|field| field.trim().to_owned()).collect::<Vec<String>>();
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let header = fields(lines.next().ok_or_else(|| wrong("is empty".into()))?.1);
    let Some(classes) = header.strip_prefix(&["filename".to_owned()]).filter(|_| !text.contains('"')) else {
        let header = header.join(", ");
        return Err(wrong(format!("begins with {header:?}, expected filename, then the names of the classes")));
    };
    let (mut class_of, mut several) = (HashMap::new(), Vec::new());
    for (number, line) in lines {
        let fields = fields(line);
        let flags = fields.get(1..).unwrap_or_default();
        if flags.len() != classes.len() || flags.iter().any(|flag| flag != "0" && flag != "1") {
            return Err(wrong(format!("line {} is not a name and {} times 0 or 1", number + 1, classes.len())));
        }
        let mut of = classes.iter().zip(flags).filter(|(_, flag)| *flag == "1").map(|(class, _)| class.clone());
        class_of.insert(fields[0].clone(), of.next_back());
        if of.next().is_some() {
            several.push(fields[0].clone());
        }
    }
    if let Some(first) = several.first() {
        return Err(Error::Data(format!(
            "{} gives {} of its {} images more than one class (the first is {first}): this is a multi-label data set, \
             and networks here choose one class; keep the images with one, or export a single-label project as Folder \
             Structure",
            path.display(),
            several.len(),
            class_of.len()
        )));
    }
    let images = path.parent().unwrap_or(Path::new(".")).to_owned();
    Ok(Table { images, classes: classes.to_vec(), path, class_of })
}

/// Refuses datasets for detection, and folders of splits that hold images without folders of classes. `classes` says
/// whether there are classes in `train/`.
pub(super) fn refuse_others(path: &Path, classes: bool) -> Result<()> {
    for part in ["", "train", "valid", "val", "test"] {
        let root = path.join(part);
        let boxes = BOXES.iter().map(|name| root.join(name)).find(|file| file.is_file());
        // YOLO has `images/` and `labels/` with a text file for each image.
        let is_yolo = ["images", "labels"].iter().all(|name| root.join(name).is_dir());
        let yolo = (is_yolo && path.join("data.yaml").is_file()).then(|| root.join("labels"));
        if let Some(found) = boxes.or(yolo) {
            return Err(Error::Data(format!(
                "{} is of a data set of boxes, for detection, where an image has no single class; give a \
                 classification data set, one folder of images per class (Roboflow: export it as Folder Structure)",
                found.display()
            )));
        }
    }
    let folders: Vec<String> =
        list(path)?.iter().filter(|p| p.is_dir()).map(|p| file_name(p)).filter(|name| name != "__MACOSX").collect();
    let split = |name: &String| ["train", "val", "valid", "validation", "test"].contains(&name.as_str());
    if !classes && folders.contains(&"train".to_owned()) && folders.len() > 1 && folders.iter().all(split) {
        return Err(Error::Data(format!(
            "{} holds no folders of classes, only {}, which name splits: put one folder of images per class into each",
            path.display(),
            folders.join(", ")
        )));
    }
    Ok(())
}
