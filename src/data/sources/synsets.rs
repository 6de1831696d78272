//! ImageNet's names of its synsets, such as `n01440764`, in the lists that come with its images. The program in
//! `examples/onnx` compiles this file too, so that it knows the same folders: nothing here uses the crate or tch.

use std::collections::HashMap;
use std::path::Path;

/// Files that list the classes in the order of their labels, a line each: the class, or its synset and its names.
pub(super) const LISTS: [&str; 3] = ["classes.txt", "LOC_synset_mapping.txt", "synset_words.txt"];
/// Tiny-ImageNet's names of all synsets, in no order of classes.
const WORDS: &str = "words.txt";
/// Number of folders, from that of the images upwards, in which a list may lie.
const ABOVE: usize = 4;

/// The names of synsets by each list in the folder `path` and in those above it.
pub(super) fn lists(path: &Path) -> impl Iterator<Item = HashMap<String, String>> {
    let places = path.ancestors().take(ABOVE);
    let files = places.flat_map(|place| LISTS.iter().chain([&WORDS]).map(move |name| place.join(name)));
    let pair = |line: &str| {
        let (id, name) = synset(line.trim());
        (id.to_owned(), name.to_owned())
    };
    files.filter_map(|file| std::fs::read_to_string(file).ok()).map(move |text| text.lines().map(pair).collect())
}

/// A line as the synset and the first of its names; a line of another form is both.
pub(super) fn synset(line: &str) -> (&str, &str) {
    let is_synset =
        |id: &str| id.len() == 9 && id.starts_with('n') && id[1..].bytes().all(|byte| byte.is_ascii_digit());
    match line.split_once(char::is_whitespace) {
        Some((id, names)) if is_synset(id) => (id, names.split(',').next().unwrap_or(names).trim()),
        _ => (line, line),
    }
}

/// The name of a class that shares its first name with other synsets.
pub(super) fn distinct(synset: &str, name: &str) -> String {
    format!("{name} ({synset})")
}
