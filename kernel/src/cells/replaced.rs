//! Keeps the variables that a failed cell would have replaced, such as `history` in `let history = fit(..)?`.
//!
//! evcxr loses them: it takes all variables out of its store before a cell runs, and a cell that fails does not
//! put back those that it binds again. To keep them,
//! 1. our `cargo` changes the source that evcxr makes of the cell: a variable that the cell does not use stays in the
//!    store, and one that it uses is put back at the end, unless the cell moved it away;
//! 2. the server runs an internal cell, by which evcxr takes up these variables again, because it has forgotten them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ra_ap_syntax::{AstNode, NodeOrToken, SyntaxKind, SyntaxNode, ast, ast::HasName};
use serde::{Deserialize, Serialize};

use crate::cells::syntax::body;

/// File in the private folder by which the server and the kernel's cargo exchange the variables of a cell.
const FILE: &str = "replaced.json";

/// The variables that a cell replaces, by name.
pub type Replaced = BTreeMap<String, Variable>;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Variable {
    /// Whether the cell uses the earlier value before it replaces it.
    pub used: bool,
    /// The statement by which evcxr takes the earlier value out of its store.
    load: Option<String>,
    /// The value is put back at the end of a cell that fails.
    put_back: bool,
}

/// Returns the variables among `known` that `code` replaces.
pub fn of(code: &str, known: &[String]) -> Replaced {
    let mut replaced = Replaced::new();
    let Some(body) = body(code) else { return replaced };
    let mut before: Vec<SyntaxNode> = vec![];
    for statement in body.syntax().children() {
        let pattern = ast::LetStmt::cast(statement.clone()).and_then(|bound| bound.pat());
        let names = pattern.iter().flat_map(|pattern| pattern.syntax().descendants().filter_map(ast::IdentPat::cast));
        let names = names.filter_map(|pattern| Some(pattern.name()?.text().to_string()));
        for name in names.filter(|name| known.contains(name)) {
            let own = pattern.as_ref().map(AstNode::syntax);
            let used = before.iter().any(|node| mentions(node, &name, None)) || mentions(&statement, &name, own);
            replaced.entry(name).or_insert(Variable { used, load: None, put_back: false });
        }
        // Functions do not see the variables of the cell.
        if !matches!(statement.kind(), SyntaxKind::FN | SyntaxKind::STRUCT | SyntaxKind::IMPL | SyntaxKind::USE) {
            before.push(statement);
        }
    }
    replaced
}

/// Returns whether `node` mentions `name` outside of `except`, as a name or in a string that may be a format.
fn mentions(node: &SyntaxNode, name: &str, except: Option<&SyntaxNode>) -> bool {
    node.children_with_tokens().any(|child| match child {
        NodeOrToken::Node(child) => Some(&child) != except && mentions(&child, name, except),
        NodeOrToken::Token(token) => match token.kind() {
            SyntaxKind::COMMENT => false,
            SyntaxKind::STRING => {
                ["{name}", "{name:", "name$"].iter().any(|form| token.text().contains(&form.replace("name", name)))
            }
            _ => token.text() == name,
        },
    })
}

/// In the server: writes down which variables the next cell replaces.
pub fn announce(folder: &Path, replaced: &Replaced) {
    let _ = match replaced.is_empty() {
        true => fs::remove_file(folder.join(FILE)),
        // A failure does no harm: the cell then runs as evcxr made it.
        false => serde_json::to_vec(replaced).map_err(Into::into).and_then(|text| fs::write(folder.join(FILE), text)),
    };
}

fn read(folder: &Path) -> Option<Replaced> {
    serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
}

/// In the kernel's cargo: changes `source`, which evcxr made of the cell, so that unused variables stay in the store.
pub fn leave_in_store(folder: &Path, source: &Path) -> std::io::Result<()> {
    let Some(mut replaced) = read(folder) else { return Ok(()) };
    let text = fs::read_to_string(source)?;
    let lines: Vec<&str> = text.lines().map(|line| left(line, &mut replaced)).collect();
    fs::write(source, lines.join("\n") + "\n")?;
    fs::write(folder.join(FILE), serde_json::to_vec(&replaced)?)
}

/// The method that puts a value back. rustc's error names it where the cell moved the value away.
pub const PUT_BACK: &str = "put_back_what_was_replaced";

/// In the kernel's cargo: returns `text`, the source that evcxr made of the cell, with the lines by which the cell puts
/// back at its end what it used before replacing it. rustc refuses them where the cell moved a value away. Returns
/// `None` where there is nothing to put back.
pub fn put_back(folder: &Path, text: &str) -> Option<String> {
    let replaced = read(folder).unwrap_or_default();
    let loads = replaced.iter().filter(|(_, variable)| variable.used).filter_map(|(name, variable)| {
        let (_, ty, _) = parts(variable.load.as_ref()?)?;
        Some(format!("evcxr_variable_store.{PUT_BACK}::<{ty}>(stringify!({name}), {name}); "))
    });
    let end: String = loads.collect();
    const NEW: &str = "    pub fn new() -> VariableStore {";
    let last = text.rfind("evcxr_variable_store\n}").filter(|_| !end.is_empty() && text.contains(NEW))?;
    let method = format!(
        "    pub fn {PUT_BACK}<T: 'static>(&mut self, name: &str, value: T) {{ \
         self.variables.entry(name.to_owned()).or_insert_with(|| Box::new(value)); }}{NEW}"
    );
    Some(format!("{}{end}{}", &text[..last], &text[last..]).replacen(NEW, &method, 1))
}

/// In the kernel's cargo: records whether the compiled cell puts back what it used.
pub fn set_put_back(folder: &Path, put_back: bool) {
    let Some(mut replaced) = read(folder) else { return };
    replaced.values_mut().for_each(|variable| variable.put_back = put_back);
    announce(folder, &replaced);
}

/// Returns the variables that the cell moves away, by the source that evcxr made of it: it takes them out of the store
/// and puts nothing back.
pub fn moved(source: &str) -> Vec<String> {
    let named = |call: &str| -> Vec<String> {
        let names = source.split(call).skip(1);
        names.filter_map(|rest| Some(rest.split_once(">(stringify!(")?.1.split_once(')')?.0.to_owned())).collect()
    };
    let put = named("put_variable::<");
    named("take_variable::<").into_iter().filter(|name| !put.contains(name)).collect()
}

/// Returns the code by which evcxr recovers the variables that a cell would have moved away, had it run, by the source
/// that evcxr made of it.
pub fn take_up_moved(source: &str) -> String {
    let moved = moved(source);
    let of_moved = |line: &&str| loaded(line).is_some_and(|name| moved.iter().any(|moved| moved == name));
    source.lines().filter(of_moved).map(|line| with_type(line) + "\n").collect()
}

/// Returns the variable that a line of evcxr's takes out of the store.
fn loaded(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix("let ")?.split_once(" = evcxr_variable_store.take_variable::<")?;
    Some(name.trim_start_matches("mut "))
}

/// Returns `line`, or an empty line, so that later lines keep their numbers.
fn left<'a>(line: &'a str, replaced: &mut Replaced) -> &'a str {
    match loaded(line).and_then(|name| replaced.get_mut(name)) {
        Some(variable) => {
            variable.load = Some(line.to_owned());
            if variable.used { line } else { "" }
        }
        None => line,
    }
}

/// Returns code by which evcxr recovers the variables that the last cell would have replaced, and the names of those
/// that are lost. With `all`, the cell did not run, so all can be recovered.
pub fn restore(folder: &Path, all: bool) -> (String, Vec<String>) {
    let (lost, kept): (Vec<_>, Vec<_>) =
        read(folder).unwrap_or_default().into_iter().partition(|(_, v)| v.used && !v.put_back && !all);
    let load = |(_, variable): (String, Variable)| Some(with_type(&variable.load?) + "\n");
    (kept.into_iter().filter_map(load).collect(), lost.into_iter().map(|(name, _)| name).collect())
}

/// Turns `let a = store.take_variable::<T>(..)` into `let a: T = ..`, so that evcxr need not find out the type.
fn with_type(load: &str) -> String {
    parts(load).map_or_else(|| load.to_owned(), |(start, ty, value)| format!("{start}: {ty} = {value}"))
}

/// Divides such a statement into the part before ` = `, the type, and the value.
fn parts(load: &str) -> Option<(&str, &str, &str)> {
    let (start, value) = load.split_once(" = ")?;
    let (_, ty) = value.split_once("take_variable::<")?;
    Some((start, ty.rsplit_once(">(stringify!")?.0, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(code: &str) -> Vec<(String, bool)> {
        let known = ["history", "pupil", "x"].map(str::to_owned);
        of(code, &known).into_iter().map(|(name, variable)| (name, variable.used)).collect()
    }

    #[test]
    fn what_a_cell_replaces_and_whether_it_looks_at_it_first() {
        let history = |used| vec![("history".to_owned(), used)];
        let code =
            "// the history of it\nlet mut pupil = student(0)?;\nlet history = fit(&mut pupil)?;\nhistory.last();";
        assert_eq!(used(code), [("history".into(), false), ("pupil".into(), false)]);
        for code in [
            "let history = improve(history)?;",
            "println!(\"{history:?}\"); let history = fit()?;",
            "show(&history);\nlet history = fit()?;",
            "let a = { let history = history; 1 };\nlet history = fit()?;",
            "let (history, b): (_, f64) = improve(&history);",
        ] {
            assert_eq!(used(code), history(true), "{code}");
        }
        for code in [
            "fn f(history: u8) {}\nlet history = fit()?;",
            "let (history, b) = fit()?;\nhistory.len();",
            "let history = fit(\"history\", \"the history {a}\")?;",
        ] {
            assert_eq!(used(code), history(false), "{code}");
        }
        assert_eq!(used("let other = history.len(); if a { let history = 1; }"), []);
        assert_eq!(used("let ="), []);
    }

    #[test]
    fn what_stays_in_the_store_is_given_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("lib.rs");
        let load =
            |name: &str| format!("let {name} = evcxr_variable_store.take_variable::<Vec<u8>>(stringify!(NAME));");
        let text = format!("fn run() {{\n{}\n{}\n{}\n}}\n", load("mut history"), load("x"), load("other"));
        fs::write(&source, &text).expect("it can be written");
        announce(folder.path(), &of("x.len();\nlet (history, x) = (1, 2);", &["history".into(), "x".into()]));
        leave_in_store(folder.path(), &source).expect("both can be read");
        let changed = fs::read_to_string(&source).expect("it can be read");
        assert_eq!(changed, format!("fn run() {{\n\n{}\n{}\n}}\n", load("x"), load("other")));
        let typed = |name: &str| load(name).replacen(" =", ": Vec<u8> =", 1) + "\n";
        assert_eq!(restore(folder.path(), false), (typed("mut history"), vec!["x".to_owned()]));
        assert_eq!(restore(folder.path(), true), (typed("mut history") + &typed("x"), vec![]));
        // A used variable is put back at the end.
        let runtime = "impl VariableStore {\n    pub fn new() -> VariableStore {\n";
        let whole = format!("{runtime}{}{}\nevcxr_variable_store\n}}\n", load("x"), load("other"));
        let changed = put_back(folder.path(), &whole).expect("x is put back");
        let end = format!("evcxr_variable_store.{PUT_BACK}::<Vec<u8>>(stringify!(x), x); evcxr_variable_store\n}}\n");
        assert!(changed.ends_with(&end) && changed.lines().count() == whole.lines().count(), "{changed}");
        set_put_back(folder.path(), true);
        assert_eq!(restore(folder.path(), false), (typed("mut history") + &typed("x"), vec![]));
        assert_eq!(moved(&text), ["NAME"; 3]);
        assert_eq!(moved(&format!("{text}store.put_variable::<Vec<u8>>(stringify!(NAME), NAME);")), [""; 0]);
        let taken = "let mut a = evcxr_variable_store.take_variable::<Vec<u8>>(stringify!(a));";
        let put = "evcxr_variable_store.put_variable::<Vec<u8>>(stringify!(a), a);";
        assert_eq!(take_up_moved(&format!("fn f() {{\n{taken}\n}}")), taken.replacen(" =", ": Vec<u8> =", 1) + "\n");
        assert_eq!(take_up_moved(&format!("{taken}\n{put}")), "");
        // A cell that replaces nothing is left as it is.
        announce(folder.path(), &Replaced::new());
        leave_in_store(folder.path(), &source).expect("there is nothing to do");
        assert_eq!(put_back(folder.path(), &whole), None);
        assert_eq!(restore(folder.path(), false), (String::new(), vec![]));
    }
}
