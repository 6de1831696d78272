//! Rust code on pages that goes into a notebook: it names what the crate has, and variables that the reader has.

use std::collections::BTreeSet;

use super::sources::{File, root};
use syn::visit::{self, Visit};

/// Pages, the notebook whose code comes before each of their sections, and what it makes for them.
const PAGES: [(&str, &str, &str); 2] = [
    ("your-own", "05_tweak", "mut lab|data|classes|teacher|transform|train|validation"),
    ("deploy", "14_bring_your_own", "mut lab|data|chosen|card|best|student_test|(mut students, mut histories)"),
];
/// Sections whose text says where further variables come from.
const EXPLAINED: [&str; 2] = ["Several teachers", "Records for other programs"];
/// Methods of Rust and tch.
const FOREIGN: [&str; 7] = [".clone", ".cross_entropy_for_logits", ".into", ".join", ".mean", ".parse", ".square"];

/// The names that code makes, and those that it uses: `variable`, `.method`, `kdlab::item`.
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
        self.1.extend(name.filter(|name| name.starts_with(char::is_lowercase))); // not `None`
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

/// The names on the pages that neither the crate with these public `items` has nor code before them makes.
pub fn unknown(items: &BTreeSet<String>) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut known: BTreeSet<String> = FOREIGN.map(str::to_owned).into();
    known.extend(items.iter().map(|item| format!("kdlab::{item}")));
    known.extend(items.iter().filter_map(|item| Some(format!(".{}", item.rsplit_once("::")?.1))));
    let mut unknown = Vec::new();
    for (page, notebook, made) in PAGES {
        let mut first = Names(known.clone(), BTreeSet::new()).add(&read("prelude/prelude.rs"));
        let notebook = read(&format!("notebooks/{notebook}.ipynb"));
        for made in made.split('|') {
            assert!(notebook.contains(&format!("\"let {made} = ")), "the notebook for {page}.md makes no {made}");
            first = first.add(&format!("let {made} = 0;"));
        }
        for section in read(&format!("docs/{page}.md")).split("\n## ") {
            let title = section.lines().next().unwrap_or_default();
            let snippets = section.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next());
            let Names(known, used) = snippets.fold(Names(first.0.clone(), BTreeSet::new()), Names::add);
            let missing =
                used.difference(&known).filter(|name| !EXPLAINED.contains(&title) || name.contains(['.', ':']));
            unknown.extend(missing.map(|name| format!("docs/{page}.md, {title}: {name}")));
        }
    }
    unknown
}
