//! What the crate shows to others.

use std::collections::BTreeSet;

use syn::{ImplItem, Item, Type, Visibility};

use super::sources::Krate;

/// As many as there were when this was written. A small crate has at most 200: let the number fall, never rise.
pub const MOST: usize = 286;

/// Every public item by its path in the crate: modules' items, and `Type::method` for methods and constants of types.
pub fn items(krate: &Krate) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    module(krate, &[], &mut found);
    found
}

fn module(krate: &Krate, path: &[String], found: &mut BTreeSet<String>) {
    let file = krate.file(path).unwrap_or_else(|| panic!("{}: a public module without a file", path.join("::")));
    let here = |name: &str| [path, &[name.to_owned()]].concat().join("::");
    for item in &file.items {
        if let Item::Mod(declared) = item
            && matches!(declared.vis, Visibility::Public(_))
        {
            module(krate, &[path, &[declared.ident.to_string()]].concat(), found);
        }
    }
    for (name, public) in file.defined() {
        let is_module = file.items.iter().any(|item| matches!(item, Item::Mod(m) if m.ident == name.as_str()));
        if public && !is_module {
            methods(krate, &name, &here(&name), found);
        }
    }
    for item in &file.items {
        if let Item::Use(line) = item
            && matches!(line.vis, Visibility::Public(_))
        {
            let one =
                super::sources::File { path: String::new(), module: file.module.clone(), items: vec![item.clone()] };
            for import in one.imports() {
                let name = import.name.expect("a public `use` names what it shows");
                methods(krate, &name, &here(&name), found);
            }
        }
    }
}

/// An item, and the public functions and constants of its `impl` blocks.
fn methods(krate: &Krate, name: &str, path: &str, found: &mut BTreeSet<String>) {
    found.insert(path.to_owned());
    for item in krate.files.iter().flat_map(|file| &file.items) {
        let Item::Impl(block) = item else { continue };
        let Type::Path(of) = &*block.self_ty else { continue };
        if block.trait_.is_some() || of.path.segments.last().is_none_or(|last| last.ident != name) {
            continue;
        }
        for item in &block.items {
            match item {
                // The hook by which evcxr shows a value is no more an item than a `Display` is.
                ImplItem::Fn(f) if f.sig.ident == "evcxr_display" => {}
                ImplItem::Fn(f) if matches!(f.vis, Visibility::Public(_)) => {
                    found.insert(format!("{path}::{}", f.sig.ident));
                }
                ImplItem::Const(c) if matches!(c.vis, Visibility::Public(_)) => {
                    found.insert(format!("{path}::{}", c.ident));
                }
                _ => {}
            }
        }
    }
}

/// The items that the page lists: each line of a list begins with items in code font, and the reason follows after ":
/// ". `Type::{self, a, b}` stands for several, as in a `use` line.
pub fn listed(page: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("- `")) {
        let (codes, _reason) = line.split_once("`: ").unwrap_or_else(|| panic!("no reason: {line}"));
        for code in codes.split('`').skip(1).step_by(2) {
            match code.split_once("::{") {
                Some((base, rest)) => {
                    let names = rest.trim_end_matches('}').split(',').map(str::trim);
                    all.extend(
                        names.map(|name| if name == "self" { base.to_owned() } else { format!("{base}::{name}") }),
                    );
                }
                None => {
                    all.insert(code.to_owned());
                }
            }
        }
    }
    all
}
