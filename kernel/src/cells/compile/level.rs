//! The optimisation level of cells, which `:opt` changes.

use std::fs;
use std::path::Path;

/// Stands in the manifest before the optimisation level of cells, where that is the user's.
const FOR_CELLS: &str = " # for cells ";

/// The level that the user gave by `:opt`, for cells alone: evcxr writes it into the profile of all crates, and at
/// another level than set-up's, cargo would compile all of them again. None for evcxr's own, 2.
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

/// `line` of a manifest without the level that the user gave.
pub fn without_level(line: &str) -> &str {
    line.split(FOR_CELLS).next().unwrap_or_default()
}
