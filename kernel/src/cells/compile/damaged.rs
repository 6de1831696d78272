//! Finds and removes compiled libraries that rustc cannot read.

use std::collections::BTreeSet;
use std::fs;
use std::iter::once;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::Config;

/// Extensions of the libraries that rustc reads.
pub const LIBRARIES: [&str; 4] = ["rlib", "rmeta", "so", "dylib"];

/// Removes the libraries below `folder` that rustc could not read, and those whose length differs from the list in
/// `libraries`. Returns their number, 0 where rustc `said` nothing about unreadable libraries.
pub fn remove_damaged(folder: &Path, said: &str, config: &Config) -> usize {
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let unread: Vec<String> =
        messages.map(|line| line["message"].clone()).filter(names_unread_crate).map(text).collect();
    if unread.is_empty() {
        return 0;
    }
    let mut files = BTreeSet::new();
    // A linker's message names all libraries.
    for message in unread.iter().filter(|message| !message.starts_with(LINKING)) {
        if let Some(name) = message.split('`').nth(1).filter(|_| message.contains(UNAVAILABLE)) {
            files.extend(beside_cells(folder).filter(|path| is_library_of(path, name)));
        }
        // rustc names the file in quotes or at the end of a line.
        let words = message.split(['\n', ' ', '\'', '`', '"', ',', '(', ')']).map(Path::new);
        let library =
            |path: &&Path| path.extension().is_some_and(|end| LIBRARIES.iter().any(|library| end == *library));
        files.extend(words.filter(library).filter(|path| path.starts_with(folder)).map(Path::to_path_buf));
    }
    let recorded = fs::read_to_string(folder.join("libraries")).unwrap_or_default();
    for line in recorded.lines() {
        let mut words = line.splitn(3, ' ');
        let (length, name) = (words.next().and_then(|length| length.parse::<u64>().ok()), words.nth(1));
        let file = folder.join(name.unwrap_or_default());
        let found = fs::metadata(&file).ok().filter(|found| found.is_file()).map(|found| found.len());
        let library = file.file_name().unwrap_or_default().to_string_lossy();
        if found.is_some() && found != length && !config.is_edited(&library) {
            files.insert(file.clone());
        }
    }
    files.iter().filter(|file| fs::remove_file(file).is_ok()).count()
}

/// Returns all files in the folders of libraries.
fn beside_cells(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let targets = fs::read_dir(folder.join("target")).into_iter().flatten().flatten();
    let folders = targets.map(|target| target.path().join("debug/deps")).chain([folder.join("target/debug/deps")]);
    folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()).map(|file| file.path())
}

fn is_library_of(path: &Path, name: &str) -> bool {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.starts_with(&format!("lib{name}-")) && (file.ends_with(".rlib") || file.ends_with(".rmeta"))
}

/// Returns whether rustc could not find or read a crate: E0460 to E0464, a library of another compiler, damaged
/// metadata, and, without a code, a truncated file. Linkers report the last one, too.
pub fn names_unread_crate(message: &Value) -> bool {
    let code = message["code"]["code"].as_str().unwrap_or_default();
    let text = message["message"].as_str().unwrap_or_default();
    ["E0460", "E0461", "E0462", "E0463", "E0464", "E0514", "E0786"].contains(&code)
        || code.is_empty() && message["level"] == "error" && (text.contains(UNAVAILABLE) || text.starts_with(LINKING))
}

/// Parts of the messages of rustc and of linkers on truncated libraries.
const UNAVAILABLE: &str = "required to be available in";
const LINKING: &str = "linking with";

/// Returns a message of rustc with all its notes.
fn text(message: Value) -> String {
    let notes = message["children"].as_array().into_iter().flatten().filter_map(|note| note["message"].as_str());
    once(message["message"].as_str().unwrap_or_default()).chain(notes).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn libraries_that_rustc_cannot_read_are_taken_away() {
        let config = Config::default();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let deps = folder.path().join("target/deps");
        fs::create_dir_all(&deps).expect("it can be made");
        for name in ["libmine-1.rlib", "libpxfm-1.rlib", "libtch-1.rlib"] {
            fs::write(deps.join(name), "12345678").expect("it can be written");
        }
        let recorded =
            "9 0 target/deps/libpxfm-1.rlib\n8 0 target/deps/libtch-1.rlib\n9 0 target/deps/libgone-1.rlib\n";
        fs::write(folder.path().join("libraries"), recorded).expect("it can be written");
        let said = |code: &str| {
            let note = format!("failed to mmap file '{}'", deps.join("libmine-1.rlib").display());
            let message =
                json!({"message": "found invalid metadata", "code": {"code": code}, "children": [{"message": note}]});
            json!({"reason": "compiler-message", "message": message}).to_string()
        };
        assert_eq!(remove_damaged(folder.path(), &said("E0308"), &config), 0);
        assert_eq!(remove_damaged(folder.path(), &said("E0786"), &config), 2);
        // rustc's message on a truncated library.
        let text = "crate `half` required to be available in rlib format, but was not found in this form";
        let half = folder.path().join("target/x/debug/deps/libhalf-1.rlib");
        fs::create_dir_all(half.parent().expect("a folder")).expect("it can be made");
        fs::write(&half, "123").expect("it can be written");
        let message = json!({"message": {"message": text, "level": "error", "code": null, "children": []}});
        assert_eq!((remove_damaged(folder.path(), &message.to_string(), &config), half.exists()), (1, false));
        assert!(deps.join("libtch-1.rlib").exists() && !deps.join("libpxfm-1.rlib").exists());
        assert_eq!(remove_damaged(folder.path(), &said("E0786"), &config), 0, "what is gone is cargo's");
    }
}
