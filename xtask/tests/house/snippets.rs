//! Rust code on pages that goes into a notebook: it names what the crate has, and variables that the reader has.

use std::collections::BTreeSet;

use super::sources::{File, Krate, root};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Expr, Item, Token};

/// Pages, the notebook whose code comes before each of their sections, and what it makes for them.
const PAGES: [(&str, &str, &str); 2] = [
    ("your-own", "05_tweak", "mut lab|data|classes|teacher|transform|train|validation"),
    ("deploy", "14_bring_your_own", "mut lab|data|chosen|card|best|student_test|(mut students, mut histories)"),
];
/// Sections whose text says where further variables come from.
const EXPLAINED: [&str; 2] = ["Several teachers", "Records for other programs"];
/// Methods of Rust and tch.
const FOREIGN: [&str; 7] = [".clone", ".cross_entropy_for_logits", ".into", ".join", ".mean", ".parse", ".square"];
/// Types of Rust that need no `use`.
const TYPES: [&str; 9] = ["Default", "Err", "None", "Ok", "Option", "Result", "Some", "String", "Vec"];

/// The names that code makes, and those that it uses: `variable`, `.method`, `kdlab::item`, `Type`, `Type::item`, where
/// an item of a type is also a variant or a field.
struct Names(BTreeSet<String>, BTreeSet<String>);

impl<'ast> Visit<'ast> for Names {
    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        self.0.insert(pattern.ident.to_string());
    }
    fn visit_signature(&mut self, function: &'ast syn::Signature) {
        self.0.insert(function.ident.to_string());
        visit::visit_signature(self, function);
    }
    fn visit_item_use(&mut self, line: &'ast syn::ItemUse) {
        for import in (File { path: String::new(), module: vec![], items: vec![line.clone().into()] }).imports() {
            self.0.extend(import.name);
            self.1.extend(Some(import.path.join("::")).filter(|path| path.starts_with("kdlab::")));
        }
    }
    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        let name = path.path.get_ident().map(ToString::to_string);
        self.1.extend(name.filter(|name| name.starts_with(char::is_lowercase)));
        visit::visit_expr_path(self, path);
    }
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        if parts[0] == "kdlab" {
            self.1.insert(parts.join("::"));
        } else if parts[0].starts_with(char::is_uppercase) {
            self.1.extend((1..=parts.len()).map(|length| parts[..length].join("::")));
        }
        visit::visit_path(self, path);
    }
    fn visit_expr_struct(&mut self, value: &'ast syn::ExprStruct) {
        if let (Some(kind), 1) = (value.path.segments.last(), value.path.segments.len()) {
            let named = value.fields.iter().filter_map(|field| match &field.member {
                syn::Member::Named(name) => Some(format!("{}::{name}", kind.ident)),
                syn::Member::Unnamed(_) => None,
            });
            self.1.extend(named);
        }
        visit::visit_expr_struct(self, value);
    }
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let arguments = call.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated);
        for argument in arguments.iter().flatten() {
            Visit::visit_expr(self, argument);
        }
    }
    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.1.insert(format!(".{}", call.method));
        visit::visit_expr_method_call(self, call);
    }
}

impl Names {
    fn add(mut self, code: &str) -> Self {
        let block = syn::parse_str(&format!("{{{code}\n}}")).unwrap_or_else(|e| panic!("{e} in this code:\n{code}"));
        self.visit_block(&block);
        self
    }
}

/// What can be named: public `items`, and of the crate's types the variants and fields.
pub fn known(krate: &Krate, items: &BTreeSet<String>) -> BTreeSet<String> {
    let mut known: BTreeSet<String> = FOREIGN.into_iter().chain(TYPES).map(str::to_owned).collect();
    for item in items {
        known.insert(format!("kdlab::{item}"));
        if let Some((of, name)) = item.rsplit_once("::") {
            known.extend([format!(".{name}"), format!("{}::{name}", of.rsplit("::").next().unwrap_or_default())]);
        }
    }
    for item in krate.files.iter().flat_map(|file| &file.items) {
        let (kind, parts): (_, Vec<&syn::Ident>) = match item {
            Item::Enum(kind) => (&kind.ident, kind.variants.iter().map(|variant| &variant.ident).collect()),
            Item::Struct(kind) => (&kind.ident, kind.fields.iter().filter_map(|field| field.ident.as_ref()).collect()),
            _ => continue,
        };
        known.extend(parts.into_iter().map(|part| format!("{kind}::{part}")));
    }
    known
}

/// The names that this code uses and neither makes nor finds in `known`. Of another crate's types, any item is fine.
pub fn unknown_in(known: &BTreeSet<String>, code: &[&str]) -> BTreeSet<String> {
    let Names(known, used) = code.iter().fold(Names(known.clone(), BTreeSet::new()), |names, code| names.add(code));
    let is_ours = |kind: &str| known.iter().any(|name| name.strip_prefix(kind).is_some_and(|n| n.starts_with("::")));
    let is_foreign = |name: &str| match name.split_once("::") {
        Some((kind, item)) => kind != "kdlab" && (!is_ours(kind) || item == "default"),
        None => false,
    };
    used.difference(&known).filter(|name| !is_foreign(name)).cloned().collect()
}

/// The names on the pages that neither `known` holds nor code before them makes.
pub fn unknown(known: &BTreeSet<String>) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut unknown = Vec::new();
    for (page, notebook, made) in PAGES {
        let mut first = Names(known.clone(), BTreeSet::new()).add(&read("prelude/prelude.rs"));
        let notebook = read(&format!("notebooks/{notebook}.ipynb"));
        for made in made.split('|') {
            assert!(notebook.contains(&format!("\"let {made} = ")), "the notebook for {page}.md makes no {made}");
            first = first.add(&format!("let {made} = 0;"));
        }
        let text = read(&format!("docs/{page}.md"));
        let fences: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with("```r")).collect();
        assert!(!fences.is_empty() && fences.iter().all(|fence| *fence == "```rust"), "{page}.md: {fences:?}");
        for section in text.split("\n## ") {
            let title = section.lines().next().unwrap_or_default();
            let snippets = section.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next());
            let variable = |name: &str| !name.contains(['.', ':']) && name.starts_with(char::is_lowercase);
            let missing = unknown_in(&first.0, &snippets.collect::<Vec<_>>()).into_iter();
            let missing = missing.filter(|name| !(EXPLAINED.contains(&title) && variable(name)));
            unknown.extend(missing.map(|name| format!("docs/{page}.md, {title}: {name}")));
        }
    }
    unknown
}
