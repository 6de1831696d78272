//! Roboflow's exports. Its "Folder Structure" is one folder per class in `train/`, `valid/` and `test/`, as any other;
//! its "Multi-Label Classification CSV" is one folder of images per split with a table of classes, read here where each
//! image has one class; its exports for detection have boxes instead of classes, and are refused by name.
//!
//! Source of the layouts: <https://docs.roboflow.com/datasets/versions/dataset-versions/exporting-data>.

use super::{file_name, list};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A header of "filename" and the names of the classes, then a line of file name, 0s and 1s for each image.
const TABLE: &str = "_classes.csv";
const OTHERS: [&str; 4] =
    ["_annotations.csv", "_annotations.coco.json", "_annotations.txt", "_annotations.createml.json"];

/// What the table of one split says.
pub(super) struct Table {
    pub path: PathBuf,
    pub classes: Vec<String>,
    /// By the name of a file: its class, or none where it has none.
    pub labels: HashMap<String, Option<usize>>,
}

/// Whether images lie in `root` with such a table.
pub(super) fn has_table(root: &Path) -> bool {
    root.join(TABLE).is_file()
}

/// The table of a split.
///
/// # Errors
/// When it is damaged, or an image has several classes.
pub(super) fn table(root: &Path) -> Result<Table> {
    let path = root.join(TABLE);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("reading", &path, e))?;
    let wrong = |what: String| Error::Data(format!("{} {what}; export it again", path.display()));
    let fields = |line: &str| line.split(',').map(|field| field.trim().to_owned()).collect::<Vec<String>>();
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let header = fields(lines.next().ok_or_else(|| wrong("is empty".into()))?.1);
    if text.contains('"') || header.first().is_none_or(|first| first != "filename") {
        return Err(wrong(format!(
            "begins with {:?}, expected filename, then the names of the classes",
            header.join(", ")
        )));
    }
    let (mut labels, mut several) = (HashMap::new(), Vec::new());
    for (number, line) in lines {
        let fields = fields(line);
        let flags = fields.get(1..).unwrap_or_default();
        if fields.len() != header.len() || flags.iter().any(|flag| flag != "0" && flag != "1") {
            return Err(wrong(format!("line {} is not a name and {} times 0 or 1", number + 1, header.len() - 1)));
        }
        let mut of: Vec<usize> = (0..flags.len()).filter(|&i| flags[i] == "1").collect();
        if of.len() > 1 {
            several.push(fields[0].clone());
        }
        labels.insert(fields[0].clone(), of.pop());
    }
    if let Some(first) = several.first() {
        return Err(Error::Data(format!(
            "{} gives {} of its {} images more than one class (the first is {first}): this is a multi-label data set, and \
             networks here choose one class; keep the images with one, or export a single-label project as Folder Structure",
            path.display(),
            several.len(),
            labels.len()
        )));
    }
    Ok(Table { path, classes: header[1..].to_vec(), labels })
}

/// Refuses folders that hold no folders of classes, though they look so: of images and boxes, or of images alone.
/// `classes` says whether there are classes in `train/`.
pub(super) fn refuse_others(path: &Path, classes: bool) -> Result<()> {
    let mut roots = vec![path.to_owned()];
    roots
        .extend(["train", "valid", "val", "test"].map(|part| path.join(part)).into_iter().filter(|root| root.is_dir()));
    let boxes = |what: &Path| {
        Error::Data(format!(
            "{} is of a data set of boxes, for detection, where an image has no single class; give a classification data \
             set, one folder of images per class (Roboflow: export it as Folder Structure)",
            what.display()
        ))
    };
    for root in &roots {
        if let Some(found) = OTHERS.iter().map(|name| root.join(name)).find(|file| file.is_file()) {
            return Err(boxes(&found));
        }
        // YOLO's: `images/` and `labels/` with a text file for each image.
        let labels = root.join("labels");
        if root.join("images").is_dir() && labels.is_dir() && path.join("data.yaml").is_file() {
            return Err(boxes(&labels));
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
