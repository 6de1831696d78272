//! The optimisation level of cells, which the user changes by `:opt`.

use std::fs;
use std::path::Path;

/// Precedes the user's optimisation level in the manifest.
const FOR_CELLS: &str = " # for cells ";

/// Returns the level that the user gave by `:opt`, and applies it to cells alone. evcxr writes it into the profile of
/// all crates, and cargo would compile all of them again. Returns `None` for evcxr's own level, 2.
pub fn level_of_cells(folder: &Path) -> Option<String> {
    let manifest = folder.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).ok()?;
    let line = text.lines().find(|line| line.starts_with("opt-level = "))?;
    if let Some((_, level)) = line.split_once(FOR_CELLS) {
        return Some(level.to_owned());
    }
    let level = line.strip_prefix("opt-level = ").filter(|level| *level != "2")?.to_owned();
    let changed = text.replacen(line, &format!("opt-level = 2{FOR_CELLS}{level}"), 1);
    let beside = manifest.with_extension("new");
    fs::write(&beside, changed).and_then(|()| fs::rename(&beside, &manifest)).ok()?;
    Some(level)
}

/// Returns a line of the manifest without the user's level.
pub fn without_level(line: &str) -> &str {
    line.split(FOR_CELLS).next().unwrap_or_default()
}
