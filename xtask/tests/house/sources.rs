//! The workspace's members and their files, parsed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use syn::{Item, UseTree, Visibility};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// A member: its normal dependencies, and the files of its library and programs.
pub struct Krate {
    pub name: String,
    pub dependencies: Vec<String>,
    pub files: Vec<File>,
}

/// A file of a crate.
pub struct File {
    /// Its place below the member's folder, with `/`.
    pub path: String,
    /// The module that it holds: `["train", "fit"]`. A program's own root is `["bin NAME"]`.
    pub module: Vec<String>,
    /// Without what is compiled for tests alone.
    pub items: Vec<Item>,
}

/// A name that a `use` brings into a module.
pub struct Import {
    pub path: Vec<String>,
    /// The name that it gets; `None` for `*`.
    pub name: Option<String>,
    /// `pub`, `pub(crate)`, ...
    pub reexported: bool,
}

impl Krate {
    pub fn of_workspace() -> Vec<Krate> {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
        let packages = metadata["packages"].as_array().expect("there are packages");
        packages.iter().map(Krate::read).collect()
    }

    fn read(package: &Value) -> Krate {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        let folder = manifest.parent().expect("a manifest lies in a folder");
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let dependencies = dependencies.filter(|d| d["kind"].is_null()).map(|d| text(&d["name"])).collect();
        let mut files = Vec::new();
        for target in package["targets"].as_array().into_iter().flatten() {
            let path = PathBuf::from(text(&target["src_path"]));
            if path.starts_with(folder.join("src")) {
                let library = target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == "lib"));
                let main = path.ends_with("src/main.rs");
                let module = if library || main { vec![] } else { vec![format!("bin {}", text(&target["name"]))] };
                read_module(folder, &path, module, &mut files);
            }
        }
        Krate { name: text(&package["name"]), dependencies, files }
    }

    /// The file of a module.
    pub fn file(&self, module: &[String]) -> Option<&File> {
        self.files.iter().find(|file| file.module == module)
    }
}

/// Reads the file at `path` and those of the modules that it declares.
fn read_module(folder: &Path, path: &Path, module: Vec<String>, files: &mut Vec<File>) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut items = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())).items;
    without_tests(&mut items);
    let owns_its_folder = module.is_empty() || path.ends_with("mod.rs") || module[0].starts_with("bin ");
    let beside = path.parent().expect("a file lies in a folder");
    let below = if owns_its_folder { beside.to_owned() } else { path.with_extension("") };
    for item in &items {
        if let Item::Mod(declared) = item
            && declared.content.is_none()
        {
            let name = declared.ident.to_string();
            let places = [below.join(format!("{name}.rs")), below.join(&name).join("mod.rs")];
            if let Some(place) = places.iter().find(|place| place.is_file()) {
                read_module(folder, place, [module.clone(), vec![name]].concat(), files);
            }
        }
    }
    let below_src = path.strip_prefix(folder).expect("it lies in the member's folder");
    files.push(File { path: below_src.to_string_lossy().replace('\\', "/"), module, items });
}

fn without_tests(items: &mut Vec<Item>) {
    let for_tests = |attributes: &[syn::Attribute]| {
        attributes.iter().any(|a| {
            a.path().is_ident("cfg") && a.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
        })
    };
    items.retain(|item| match item {
        Item::Mod(i) => !for_tests(&i.attrs),
        Item::Fn(i) => !for_tests(&i.attrs),
        Item::Use(i) => !for_tests(&i.attrs),
        Item::Impl(i) => !for_tests(&i.attrs),
        Item::Struct(i) => !for_tests(&i.attrs),
        _ => true,
    });
}

impl File {
    /// The names that the file's `use` lines bring in, with paths from the root of the crate.
    pub fn imports(&self) -> Vec<Import> {
        let mut all = Vec::new();
        for item in &self.items {
            if let Item::Use(line) = item {
                let reexported = !matches!(line.vis, Visibility::Inherited);
                flatten(&line.tree, vec![], &mut |path, name| {
                    all.push(Import { path: self.absolute(&path), name, reexported });
                });
            }
        }
        all
    }

    /// A path as it is written here, from the root of the crate: without `crate`, `self` and `super`.
    pub fn absolute(&self, path: &[String]) -> Vec<String> {
        let mut absolute = self.module.clone();
        let mut rest = path;
        match path.first().map(String::as_str) {
            Some("crate") => (absolute, rest) = (vec![], &path[1..]),
            Some("self") => rest = &path[1..],
            Some("super") => {}
            // A module declared here, or else another crate.
            _ => {}
        }
        while rest.first().is_some_and(|part| part == "super") {
            absolute.pop();
            rest = &rest[1..];
        }
        [absolute, rest.to_vec()].concat()
    }

    /// Names defined here, modules in the same file among them, with their visibility.
    pub fn defined(&self) -> BTreeMap<String, bool> {
        let mut all = BTreeMap::new();
        for item in &self.items {
            let (name, visibility) = match item {
                Item::Const(i) => (i.ident.to_string(), &i.vis),
                Item::Enum(i) => (i.ident.to_string(), &i.vis),
                Item::Fn(i) => (i.sig.ident.to_string(), &i.vis),
                Item::Static(i) => (i.ident.to_string(), &i.vis),
                Item::Struct(i) => (i.ident.to_string(), &i.vis),
                Item::Trait(i) => (i.ident.to_string(), &i.vis),
                Item::Type(i) => (i.ident.to_string(), &i.vis),
                Item::Mod(i) => (i.ident.to_string(), &i.vis),
                _ => continue,
            };
            all.insert(name, matches!(visibility, Visibility::Public(_)));
        }
        all
    }
}

fn flatten(tree: &UseTree, mut path: Vec<String>, each: &mut dyn FnMut(Vec<String>, Option<String>)) {
    match tree {
        UseTree::Path(part) => {
            path.push(part.ident.to_string());
            flatten(&part.tree, path, each);
        }
        UseTree::Name(name) if name.ident == "self" => {
            let name = path.last().cloned();
            each(path, name);
        }
        UseTree::Name(name) => {
            path.push(name.ident.to_string());
            each(path, Some(name.ident.to_string()));
        }
        UseTree::Rename(name) => {
            path.push(name.ident.to_string());
            each(path, Some(name.rename.to_string()));
        }
        UseTree::Glob(_) => each(path, None),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, path.clone(), each)),
    }
}
