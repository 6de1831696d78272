//! Lists of classes: `classes.txt`, and ImageNet's names of its synsets, such as `n01440764`.

use super::synsets::{self, LISTS, synset};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// The classes of a dataset.
pub(super) struct Classes {
    /// In the order of their labels.
    pub names: Vec<String>,
    /// The label of each name, and of each synset.
    pub label_of: HashMap<String, i64>,
}

/// Reads the list of classes in a folder, if it has one.
///
/// # Errors
/// When it names a class twice.
pub(super) fn class_list(folder: &Path) -> Result<Option<Classes>> {
    let Some(path) = LISTS.iter().map(|name| folder.join(name)).find(|path| path.is_file()) else { return Ok(None) };
    let text = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<(&str, &str)> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(synset).collect();
    let names = distinct(&lines);
    let mut label_of = HashMap::new();
    for (label, (&(id, _), name)) in (0..).zip(lines.iter().zip(&names)) {
        let before = [label_of.insert(id.to_owned(), label), label_of.insert(name.clone(), label)];
        if before.into_iter().flatten().any(|before| before != label) {
            return Err(Error::Data(format!("{} names {name:?} twice: rename one", path.display())));
        }
    }
    Ok(Some(Classes { names, label_of }))
}

/// Gives folders of synsets the names that a list in the folder `path` or above it has for all of them.
pub(super) fn named(classes: Vec<String>, path: &Path) -> Vec<String> {
    for name_of in synsets::lists(path) {
        let found = classes.iter().map(|class| Some((class.as_str(), name_of.get(class)?.as_str())));
        if let Some(found) = found.collect::<Option<Vec<_>>>()
            && found.iter().any(|(class, name)| class != name)
        {
            return distinct(&found);
        }
    }
    classes
}

/// The names; those that several synsets share are followed by the synset.
fn distinct(classes: &[(&str, &str)]) -> Vec<String> {
    let mut times: HashMap<&str, usize> = HashMap::new();
    classes.iter().for_each(|(_, name)| *times.entry(name).or_default() += 1);
    let one = |(id, name): &(&str, &str)| match times[name] > 1 && id != name {
        true => synsets::distinct(id, name),
        false => (*name).to_owned(),
    };
    classes.iter().map(one).collect()
}
