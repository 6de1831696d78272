//! Arrows between files: who uses what is defined where.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

use super::sources::{File, Krate};

/// By file: the files whose items it uses, each with one of these items.
pub type Arrows = BTreeMap<String, BTreeMap<String, String>>;

/// The arrows between the files of a crate. A name that is re-exported counts for the file that defines it, and the
/// re-export itself is no use.
pub fn of(krate: &Krate) -> Arrows {
    let mut arrows = Arrows::new();
    for file in &krate.files {
        let mut used: Vec<Vec<String>> =
            file.imports().into_iter().filter(|i| !i.reexported && i.name.is_some()).map(|i| i.path).collect();
        let mut paths = Paths(Vec::new());
        file.items.iter().for_each(|item| paths.visit_item(item));
        used.extend(paths.0.iter().map(|path| file.absolute(path)));
        for path in used {
            if let Some(definer) = resolve(krate, &path, 0)
                && definer.path != file.path
            {
                arrows.entry(file.path.clone()).or_default().insert(definer.path.clone(), path.join("::"));
            }
        }
    }
    arrows
}

/// Paths in types, expressions and patterns.
struct Paths(Vec<Vec<String>>);

impl<'ast> Visit<'ast> for Paths {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 && path.leading_colon.is_none() {
            self.0.push(path.segments.iter().map(|s| s.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, _: &'ast syn::ItemUse) {}
}

/// The file that defines what a path from the root of the crate means; `None` for other crates.
fn resolve<'a>(krate: &'a Krate, path: &[String], depth: usize) -> Option<&'a File> {
    // The longest leading part that is a module with a file of its own.
    let length = (0..=path.len()).rev().find(|&n| krate.file(&path[..n]).is_some())?;
    let file = krate.file(&path[..length])?;
    let Some(name) = path.get(length) else { return Some(file) };
    if file.defined().contains_key(name) {
        return Some(file);
    }
    if depth > 8 {
        return None;
    }
    let imports = file.imports();
    let rest = &path[length + 1..];
    if let Some(import) = imports.iter().find(|i| i.name.as_ref() == Some(name)) {
        let meant = [&import.path, rest].concat();
        return (meant != path).then(|| resolve(krate, &meant, depth + 1)).flatten();
    }
    let globs = imports.iter().filter(|i| i.name.is_none() && i.path != path[..length]);
    globs.map(|i| [&i.path, &path[length..]].concat()).find_map(|path| resolve(krate, &path, depth + 1))
}

/// Every set of files that need each other, as lines of their arrows.
pub fn circles(arrows: &Arrows) -> Vec<String> {
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        arrows.keys().map(|from| (from, reached(arrows, from))).collect();
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for (from, reach) in &reached {
        if !reach.contains(*from) || seen.contains(*from) {
            continue;
        }
        let members: BTreeSet<&String> =
            reach.iter().copied().filter(|to| reached.get(*to).is_some_and(|back| back.contains(*from))).collect();
        seen.extend(members.iter().copied());
        let lines = members.iter().flat_map(|file| {
            let inside = arrows[*file].iter().filter(|(to, _)| members.contains(to));
            inside.map(move |(to, name)| format!("  {file} -> {to} ({name})"))
        });
        circles.push(lines.collect::<Vec<_>>().join("\n"));
    }
    circles
}

fn reached<'a>(arrows: &'a Arrows, from: &'a String) -> BTreeSet<&'a String> {
    let (mut found, mut edge) = (BTreeSet::new(), vec![from]);
    while let Some(file) = edge.pop() {
        for to in arrows.get(file).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(to) {
                edge.push(to);
            }
        }
    }
    found
}

/// Arrows from a room to one below it. The root of the crate and programs may use every room.
pub fn against(arrows: &Arrows, order: &[&str]) -> Vec<String> {
    let room = |file: &str| {
        let name = file.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs").to_owned();
        (!["lib", "main", "bin"].contains(&name.as_str())).then_some(name)
    };
    let place = |room: &str| order.iter().position(|r| *r == room);
    let mut wrong = Vec::new();
    for (from, uses) in arrows {
        let Some(own) = room(from) else { continue };
        let Some(here) = place(&own) else {
            wrong.push(format!("  {from} is in no room that the test knows; the rooms are {}", order.join(", ")));
            continue;
        };
        for (to, name) in uses {
            if room(to).and_then(|other| place(&other)).is_none_or(|there| there > here) {
                wrong.push(format!("  {from} -> {to} ({name})"));
            }
        }
    }
    wrong
}
