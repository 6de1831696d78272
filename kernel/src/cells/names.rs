//! The private names of crates that are compiled from a folder. evcxr's rust-analyzer completes them as if the user
//! were inside the crate, but a cell that uses one does not compile.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use ra_ap_syntax::ast::{self, HasModuleItem, HasName, HasVisibility};
use ra_ap_syntax::{AstNode, Edition, SourceFile};
use regex::Regex;

/// A line of evcxr's `Cargo.toml` that names a dependency in a folder.
static IN_FOLDER: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"(?m)^([\w-]+) *= *\{[^}\n]*\bpath *= *"([^"]+)""#).ok());
/// A path before its last name, or before a name in its open group.
static PATH: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"((?:\w+::)*\w+)::(?:\{[^{}]*)?$").ok());

/// What to do with a completion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Offer,
    Hide,
    /// A private method or field has this name, so rust-analyzer must decide which is meant.
    Ask,
}

#[derive(Default)]
struct Module {
    public: HashSet<String>,
    private: HashSet<String>,
    /// Whether it has a glob re-export, `pub use path::*`.
    open: bool,
}

/// The names that a set of crates declares.
#[derive(Default)]
pub struct Names {
    crates: Vec<String>,
    /// By path, such as `my_crate::data`.
    modules: HashMap<String, Module>,
    /// Fields and methods that are private in at least one type.
    members: HashSet<String>,
}

impl Names {
    /// Finds the names of the crates that this `Cargo.toml` takes from folders. A file that cannot be read hides no
    /// name.
    pub fn of(cargo_toml: &str) -> Self {
        let mut names = Self::default();
        let Some(line) = &*IN_FOLDER else { return names };
        for found in line.captures_iter(cargo_toml) {
            let (name, root) = (found[1].replace('-', "_"), Path::new(&found[2]).join("src"));
            names.file(&root.join("lib.rs"), &root, &name);
            names.crates.push(name);
        }
        names
    }

    fn file(&mut self, file: &Path, children: &Path, path: &str) {
        if let Ok(code) = fs::read_to_string(file) {
            let tree = SourceFile::parse(&code, Edition::CURRENT).tree();
            self.items(tree.items(), children, path);
        }
    }

    fn items(&mut self, items: impl Iterator<Item = ast::Item>, children: &Path, path: &str) {
        for item in items {
            match item {
                ast::Item::Impl(item) if item.trait_().is_none() => {
                    let items = item.assoc_item_list().into_iter().flat_map(|list| list.assoc_items());
                    for item in items {
                        let (name, public) = match &item {
                            ast::AssocItem::Fn(item) => (item.name(), is_public(item)),
                            ast::AssocItem::Const(item) => (item.name(), is_public(item)),
                            _ => continue,
                        };
                        self.member(name, public);
                    }
                }
                ast::Item::Use(item) => {
                    let public = is_public(&item);
                    for tree in item.syntax().descendants().filter_map(ast::UseTree::cast) {
                        self.import(&tree, public, path);
                    }
                }
                ast::Item::Module(item) => {
                    self.declare(item.name(), is_public(&item), path);
                    let Some(name) = item.name().map(|name| name.text().to_string()) else { continue };
                    let (inner, below) = (format!("{path}::{name}"), children.join(&name));
                    self.modules.entry(inner.clone()).or_default();
                    match item.item_list() {
                        Some(list) => self.items(list.items(), &below, &inner),
                        None => {
                            let beside = children.join(format!("{name}.rs"));
                            let file = if beside.exists() { beside } else { below.join("mod.rs") };
                            self.file(&file, &below, &inner);
                        }
                    }
                }
                ast::Item::Struct(item) => {
                    self.declare(item.name(), is_public(&item), path);
                    if let Some(ast::FieldList::RecordFieldList(list)) = item.field_list() {
                        list.fields().for_each(|field| self.member(field.name(), is_public(&field)));
                    }
                }
                ast::Item::Const(item) => self.declare(item.name(), is_public(&item), path),
                ast::Item::Enum(item) => self.declare(item.name(), is_public(&item), path),
                ast::Item::Fn(item) => self.declare(item.name(), is_public(&item), path),
                ast::Item::Static(item) => self.declare(item.name(), is_public(&item), path),
                ast::Item::Trait(item) => self.declare(item.name(), is_public(&item), path),
                ast::Item::TypeAlias(item) => self.declare(item.name(), is_public(&item), path),
                _ => {}
            }
        }
    }

    fn declare(&mut self, name: Option<ast::Name>, public: bool, path: &str) {
        let Some(name) = name.map(|name| name.text().to_string()) else { return };
        let module = self.modules.entry(path.to_owned()).or_default();
        if public {
            module.public.insert(name)
        } else {
            module.private.insert(name)
        };
    }

    fn member(&mut self, name: Option<ast::Name>, public: bool) {
        if let Some(name) = name.filter(|_| !public) {
            self.members.insert(name.text().to_string());
        }
    }

    /// Adds the name that one branch of a `use` imports.
    fn import(&mut self, tree: &ast::UseTree, public: bool, path: &str) {
        let module = self.modules.entry(path.to_owned()).or_default();
        if tree.star_token().is_some() {
            module.open |= public;
        } else if tree.use_tree_list().is_none() {
            let name = match tree.rename().map(|rename| rename.name()) {
                Some(renamed) => renamed.map(|name| name.text().to_string()),
                None => tree.path().map(|path| path.syntax().text().to_string().trim().to_owned()),
            };
            let Some(name) = name else { return };
            // `self` means the module before the group.
            let last = name.rsplit("::").next().unwrap_or(&name).to_owned();
            if public {
                module.public.insert(last)
            } else {
                module.private.insert(last)
            };
        }
    }

    /// Decides whether to offer `name` after the code `before`. Private names can only follow `.` or `::`.
    pub fn judge(&self, before: &str, name: &str) -> Verdict {
        let before = before.trim_end();
        let ask = if self.members.contains(name) { Verdict::Ask } else { Verdict::Offer };
        if before.ends_with('.') {
            return ask;
        }
        let Some(path) = PATH.as_ref().and_then(|path| path.captures(before)) else { return Verdict::Offer };
        match self.module(&path[1]) {
            Some(module) if module.public.contains(name) || module.open => Verdict::Offer,
            Some(module) if module.private.contains(name) => Verdict::Hide,
            Some(_) => Verdict::Offer,
            None => ask,
        }
    }

    /// Finds a module by its path, or by the end of its path where only one module fits.
    fn module(&self, path: &str) -> Option<&Module> {
        if let Some(module) = self.modules.get(path) {
            return Some(module);
        }
        let end = format!("::{path}");
        let mut found = self.modules.iter().filter(|(whole, _)| whole.ends_with(&end));
        found.next().filter(|_| found.next().is_none()).map(|(_, module)| module)
    }

    /// Returns whether a name is private here, according to rust-analyzer's text: its module, an empty line, its
    /// declaration.
    pub fn is_private(&self, said: &str) -> bool {
        let (place, said) = said.split_once("\n\n").unwrap_or((said, ""));
        let krate = place.trim().split("::").next().unwrap_or_default();
        // The head of a generic `impl` stands before its method.
        let declared = said.lines().map(str::trim_start).find(|line| !line.is_empty() && !line.starts_with("impl"));
        self.crates.iter().any(|name| name == krate) && !declared.unwrap_or_default().starts_with("pub ")
    }
}

/// Returns whether a field is private in cells, according to rust-analyzer's text about it. Cells are in the crate
/// `ctx`.
pub fn is_private_field(said: &str) -> bool {
    let Some((place, said)) = said.split_once("\n\n") else { return false };
    let own = place.trim() == "ctx" || place.trim_start().starts_with("ctx::");
    !own && !said.trim_start().starts_with("pub ")
}

/// Returns whether the item is `pub` without a restriction.
fn is_public(item: &impl HasVisibility) -> bool {
    item.visibility().is_some_and(|visibility| visibility.syntax().text() == "pub")
}

/// Returns the identifier at the beginning of a completion.
pub fn name(completion: &str) -> &str {
    completion.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_names_of_a_crate_in_a_folder_are_known() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("src");
        fs::create_dir_all(source.join("b")).expect("a folder");
        for (file, code) in [
            ("lib.rs", "pub mod a;\nmod b;\npub use b::Shown;\npub(crate) fn inside() {}\npub fn outside() {}"),
            ("a.rs", "use std::sync::{Arc, Mutex as Lock};\nfn helper() {}\npub struct S { pub x: i32, y: i32 }"),
            (
                "b/mod.rs",
                "pub struct Shown;\nimpl Shown { fn hidden(&self) {} pub fn seen(&self) {} }\nmod c { fn d() {} }",
            ),
        ] {
            fs::write(source.join(file), code).expect("a file");
        }
        let toml = format!("[dependencies]\nmy-crate = {{ path = \"{}\" }}\nother = \"1\"\n", folder.path().display());
        let names = Names::of(&toml);
        for (before, name, verdict) in [
            ("my_crate::", "a", Verdict::Offer),
            ("my_crate::", "b", Verdict::Hide),
            ("let x = my_crate::", "Shown", Verdict::Offer),
            ("my_crate::", "inside", Verdict::Hide),
            ("my_crate::", "outside", Verdict::Offer),
            ("use my_crate::{outside, ", "inside", Verdict::Hide),
            ("my_crate::a::", "Arc", Verdict::Hide),
            ("a::", "Lock", Verdict::Hide),
            ("my_crate::a::", "helper", Verdict::Hide),
            ("my_crate::a::", "S", Verdict::Offer),
            ("my_crate::a::", "made_by_a_macro", Verdict::Offer),
            ("other::a::b::", "helper", Verdict::Offer),
            ("value.", "hidden", Verdict::Ask),
            ("value.", "seen", Verdict::Offer),
            ("Shown::", "hidden", Verdict::Ask),
            ("value.", "y", Verdict::Ask),
            ("let y = ", "hidden", Verdict::Offer),
        ] {
            assert_eq!(names.judge(before, name), verdict, "{before}{name}");
        }
        assert!(names.is_private("my_crate::b::Shown\n\nfn hidden(&self)"));
        assert!(names.is_private("my_crate::b::Shown\n\npub(crate) fn hidden(&self)\n\n\nDoc."));
        assert!(!names.is_private("my_crate::b::Shown\n\npub fn seen(&self)"));
        assert!(!names.is_private("my_crate::b::Box\n\nimpl<T> Box<T>\npub fn seen(&self)"));
        assert!(names.is_private("my_crate::b::Box\n\nimpl<T> Box<T>\nfn hidden(&self)"));
        assert!(!names.is_private("ctx::Mine\n\nhidden: i32"));
        assert!(is_private_field("alloc::vec::Vec\n\nlen: usize"));
        assert!(is_private_field("alloc::vec::Vec\n\npub(crate) len: usize"));
        assert!(!is_private_field("core::ops::range::Range\n\npub start: Idx"));
        assert!(!is_private_field("ctx::Mine\n\nhidden: i32") && !is_private_field("let a: i32"));
    }

    #[test]
    fn a_completion_begins_with_its_name() {
        assert_eq!(["data::", "fit(model, train)", "x", ""].map(name), ["data", "fit", "x", ""]);
    }
}
