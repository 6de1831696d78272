//! Lets Interrupt stop the loops that cells define.
//!
//! The kernel's cargo puts a check at the head of each loop, of each closure, and of each function that calls itself,
//! always on the same line. A check reads one word of memory that the server shares with the process of the cells
//! ([`crate::cells::interrupt`]). If the word is set, the check unwinds the stack. evcxr takes that for a panic, and a
//! panic costs no variable of earlier cells.
//!
//! A loop among the cell's own statements also puts the variables that the cell has bound before it into evcxr's store,
//! because evcxr forgets the new variables of a cell that fails. The server then runs an internal cell, by which evcxr
//! takes them up.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ra_ap_syntax::ast::{self, HasArgList, HasLoopBody, HasName};
use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxNode, TextSize};
use serde_json::Value;

use crate::cells::compile::loops::{calls_itself, is_evcxr_s_own};
use crate::cells::interrupt::{ADDRESS, Stop};

/// File in the private folder: for each place at which a cell may stop, the statements that take up the variables
/// which that place puts into the store.
const FILE: &str = "stops.json";

/// The source of a cell with its checks.
pub struct Stops {
    pub text: String,
    /// Lines, counted from 1, in which columns have changed.
    lines: BTreeSet<usize>,
    taken_up: Vec<Vec<String>>,
}

/// Functions of the checks, in one line, because the lines of the cell must keep their numbers.
/// A second unwinding during a first one would end the process, so code that runs during one is not stopped. Threads
/// with a name belong to crates, such as background runs that call a closure of the cell, and are not stopped either.
fn module() -> String {
    let all = Stop::All as u32;
    format!(
        "#[doc(hidden)] mod live_kernel {{ use ::std::sync::atomic::{{AtomicU32, Ordering::Relaxed}}; \
         static NEVER: AtomicU32 = AtomicU32::new(0); static mut WORD: &AtomicU32 = &NEVER; \
         pub fn begin() {{ let given = ::std::env::var(\"{ADDRESS}\").ok().and_then(|text| text.parse::<usize>().ok()); \
         if let Some(address) = given {{ unsafe {{ WORD = &*(address as *const AtomicU32) }} }} }} \
         #[inline(always)] pub fn is_set() -> bool {{ unsafe {{ WORD }}.load(Relaxed) != 0 }} \
         #[inline(always)] pub fn in_loop() {{ if is_set() {{ unwind() }} }} \
         #[inline(always)] pub fn in_function() {{ if unsafe {{ WORD }}.load(Relaxed) == {all} {{ unwind() }} }} \
         #[cold] #[inline(never)] fn unwind() {{ let thread = ::std::thread::current(); \
         let of_cell = thread.name().is_none_or(|name| name == \"main\" || name.starts_with(\"tokio\")); \
         if of_cell && !::std::thread::panicking() {{ leave() }} }} \
         #[cold] #[inline(never)] pub fn leave() -> ! {{ ::std::panic::resume_unwind(Box::new(\"interrupted\")) }} \
         #[cold] #[inline(never)] pub fn leave_at(place: u32) -> ! {{ \
         unsafe {{ (*::std::ptr::from_ref(WORD).add(1)).store(place + 1, Relaxed) }} leave() }} }}\n"
    )
}

/// Adds the checks to `source`, which evcxr made of a cell. Returns `None` where nothing repeats.
pub fn add(source: &str) -> Option<Stops> {
    let file = SourceFile::parse(source, Edition::CURRENT).tree();
    let run = file.syntax().children().filter_map(ast::Fn::cast).find(is_run)?;
    let own = Own::of(&run)?;
    let mut checks = Checks { own: &own, insertions: vec![], taken_up: vec![] };
    for item in file.syntax().children().filter(|item| item != run.syntax() && !is_generated(item)) {
        checks.visit(&item, 0, None);
    }
    for (index, statement) in own.statements.iter().enumerate() {
        checks.visit(statement, 0, Some(index));
    }
    let Checks { mut insertions, taken_up, .. } = checks;
    if insertions.is_empty() {
        return None;
    }
    let begin = run.body()?.stmt_list()?.l_curly_token()?.text_range().end();
    insertions.push((begin.into(), " crate::live_kernel::begin();".to_owned()));
    // Of two insertions at one place, the closing one of an inner closure comes first.
    insertions.sort_by_key(|(at, _)| *at);
    let (mut text, mut end, mut lines, mut line) = (String::new(), 0, BTreeSet::new(), 1);
    for (at, inserted) in insertions {
        let between = &source[end..at];
        line += between.matches('\n').count();
        text += between;
        text += &inserted;
        end = at;
        lines.insert(line);
    }
    text += &source[end..];
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text += &module();
    Some(Stops { text, lines, taken_up })
}

/// The checks of a cell while they are collected.
struct Checks<'a> {
    own: &'a Own,
    /// Texts, and where in the source they come.
    insertions: Vec<(usize, String)>,
    taken_up: Vec<Vec<String>>,
}

impl Checks<'_> {
    /// Adds checks to `root`, which begins at `offset` of the source if its own positions count from 0. `statement` is
    /// the index of the cell's own statement in which it stands.
    fn visit(&mut self, root: &SyntaxNode, offset: isize, statement: Option<usize>) {
        for node in root.descendants().filter(|node| !is_constant(node)) {
            let direct = statement.filter(|_| is_direct(&node, root));
            if let Some(call) = ast::MacroCall::cast(node.clone()) {
                if let Some((arguments, at)) = arguments(&call) {
                    self.visit(&arguments, offset + at, direct);
                }
            } else if !is_short(&node) {
                self.check(&node, offset, direct);
            }
        }
    }

    /// Adds a check to a loop, a closure or a function that calls itself.
    fn check(&mut self, node: &SyntaxNode, offset: isize, direct: Option<usize>) {
        let mut insert = |at: TextSize, text: String| {
            let at = offset.checked_add_unsigned(at.into()).and_then(|at| at.try_into().ok());
            self.insertions.extend(at.map(|at| (at, text)));
        };
        let function = || " crate::live_kernel::in_function();".to_owned();
        if let Some(at) = loop_body(node).and_then(|body| start(&body)) {
            let Some(index) = direct else { return insert(at, " crate::live_kernel::in_loop();".to_owned()) };
            let kept = self.own.bound_before(index);
            let puts: String = kept.iter().map(|kept| format!("{} ", kept.put)).collect();
            let leave = format!("{puts}crate::live_kernel::leave_at({})", self.taken_up.len());
            insert(at, format!(" if crate::live_kernel::is_set() {{ {leave} }}"));
            self.taken_up.push(kept.into_iter().map(|kept| kept.take_up).collect());
        } else if let Some(body) = ast::Fn::cast(node.clone()).filter(calls_itself).and_then(|own| own.body()) {
            start(&body).into_iter().for_each(|at| insert(at, function()));
        } else if let Some(body) = ast::ClosureExpr::cast(node.clone()).and_then(|closure| closure.body()) {
            match &body {
                ast::Expr::BlockExpr(block) if block.const_token().is_none() => {
                    start(block).into_iter().for_each(|at| insert(at, function()));
                }
                _ => {
                    let range = body.syntax().text_range();
                    insert(range.start(), format!("{{{} ", function()));
                    insert(range.end(), " }".to_owned());
                }
            }
        }
    }
}

/// Macros of Rust's library whose arguments are expressions.
const MACROS: &str = " assert assert_eq assert_ne dbg debug_assert debug_assert_eq debug_assert_ne eprint eprintln \
    format panic print println vec write writeln ";

/// Returns the arguments of such a macro, and at which place of the source the first of their positions lies.
fn arguments(call: &ast::MacroCall) -> Option<(SyntaxNode, isize)> {
    let name = call.path()?.segment()?.name_ref()?.text().to_string();
    let tokens = call.token_tree().filter(|_| MACROS.contains(&format!(" {name} ")))?.syntax().clone();
    let text = tokens.text().to_string();
    const BEFORE: &str = "fn f() { g(";
    let parse =
        SourceFile::parse(&format!("{BEFORE}{}); }}", text.get(1..text.len().checked_sub(1)?)?), Edition::CURRENT);
    if !parse.errors().is_empty() {
        return None;
    }
    let arguments = parse.tree().syntax().descendants().find_map(ast::ArgList::cast)?;
    let at = isize::try_from(usize::from(tokens.text_range().start()) + 1).ok()?;
    Some((arguments.syntax().clone(), at - isize::try_from(BEFORE.len()).ok()?))
}

impl Stops {
    /// Returns whether a message of rustc is about a line with a check. Its columns are then wrong.
    pub fn shifts(&self, message: &Value) -> bool {
        let own = |span: &Value| {
            let line = |key: &str| span[key].as_u64().unwrap_or_default() as usize;
            self.lines.range(line("line_start")..=line("line_end").max(line("line_start"))).next().is_some()
        };
        message["spans"].as_array().into_iter().flatten().any(own)
            || message["children"].as_array().into_iter().flatten().any(|child| self.shifts(child))
    }
}

/// In the kernel's cargo: writes down for the server which variables each place puts into the store.
pub fn announce(private: &Path, stops: Option<&Stops>) {
    let places = stops.map_or(&[][..], |stops| &stops.taken_up);
    // A failure costs an interrupted cell its own variables.
    let _ = serde_json::to_vec(places).map(|text| fs::write(private.join(FILE), text));
}

/// In the server: returns the statements by which evcxr takes up the variables that the cell has put into the store at
/// `place`.
pub fn taken_up(private: &Path, place: usize) -> Vec<String> {
    let found = fs::read(private.join(FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    found.and_then(|found: Vec<Vec<String>>| found.into_iter().nth(place)).unwrap_or_default()
}

/// A variable that the cell stores at its end.
#[derive(Clone)]
struct Stored {
    name: String,
    put: String,
    take_up: String,
}

/// The user's own statements in the function that runs a cell.
struct Own {
    statements: Vec<SyntaxNode>,
    stored: Vec<Stored>,
    /// The names that each statement binds, at its top level and below.
    bound: Vec<(Vec<String>, Vec<String>)>,
}

impl Own {
    /// Returns `None` where evcxr does not catch panics: it compiles such code only to see its errors.
    fn of(run: &ast::Fn) -> Option<Self> {
        let caught = run
            .syntax()
            .descendants()
            .filter_map(ast::CallExpr::cast)
            .find(|call| call.expr().is_some_and(|called| called.syntax().text() == "std::panic::catch_unwind"))?;
        let closure = caught.syntax().descendants().find_map(ast::ClosureExpr::cast)?;
        let mut list = body_of(closure.body()?)?;
        // evcxr puts the statements into a closure for `?`, and into an async block for `.await`.
        while let Some(inner) = inner_list(&list) {
            list = inner;
        }
        let (mut statements, mut stored, mut bound) = (vec![], vec![], vec![]);
        let fn_text = run.syntax().text().to_string();
        for statement in list.syntax().children() {
            let text = statement.text().to_string();
            match text
                .strip_prefix("evcxr_variable_store.put_variable::<")
                .and_then(|rest| rest.split_once(">(stringify!("))
            {
                Some((ty, rest)) => {
                    let name = rest.split_once(')').map(|(name, _)| name.to_owned())?;
                    let taken = format!("evcxr_variable_store.take_variable::<{ty}>(stringify!({name}));");
                    // A variable of an earlier cell that is stored here.
                    let mutable = fn_text.contains(&format!("let mut {name} = {taken}"));
                    let mutable = if mutable { "mut " } else { "" };
                    let take_up = format!("let {mutable}{name}: {ty} = {taken}");
                    stored.push(Stored { name, put: text, take_up });
                }
                None => {
                    bound.push((bound_at_top(&statement), bound_within(&statement)));
                    statements.push(statement);
                }
            }
        }
        let own = statements.iter().flat_map(|statement| statement.descendants().filter_map(ast::IdentPat::cast));
        let mutable: BTreeSet<String> = own
            .filter(|pattern| pattern.mut_token().is_some())
            .filter_map(|pattern| Some(pattern.name()?.text().to_string()))
            .collect();
        for stored in stored.iter_mut().filter(|stored| mutable.contains(&stored.name)) {
            let plain = format!("let {}:", stored.name);
            stored.take_up = stored.take_up.replacen(&plain, &format!("let mut {}:", stored.name), 1);
        }
        Some(Self { statements, stored, bound })
    }

    /// Returns the variables that have their last value before the statement with this index.
    fn bound_before(&self, index: usize) -> Vec<Stored> {
        let has = |names: &[String], name: &str| names.iter().any(|known| known == name);
        let kept = |stored: &&Stored| {
            let name = stored.name.as_str();
            let (before, after) = self.bound.split_at(index);
            let again = after.iter().skip(1).any(|(top, _)| has(top, name));
            let here = after.first().is_some_and(|(_, within)| has(within, name));
            let first = before.iter().any(|(top, _)| has(top, name));
            !again && !here && (first || !self.bound.iter().any(|(top, _)| has(top, name)))
        };
        self.stored.iter().filter(kept).cloned().collect()
    }
}

fn body_of(body: ast::Expr) -> Option<ast::StmtList> {
    match body {
        ast::Expr::BlockExpr(block) => block.stmt_list(),
        _ => None,
    }
}

/// Returns the statements in the closure or the async block that evcxr puts around those of the user.
fn inner_list(list: &ast::StmtList) -> Option<ast::StmtList> {
    let generated = |node: &SyntaxNode| {
        node.text().to_string().starts_with("let _ = (|| -> std::result::Result<(), EvcxrUserCodeError>")
    };
    if let Some(first) = list.syntax().children().find(generated) {
        return body_of(first.descendants().find_map(ast::ClosureExpr::cast)?.body()?);
    }
    let call = list.syntax().children().filter(|node| node.text().to_string().contains("block_on(async {")).last()?;
    let call = call.descendants().filter_map(ast::MethodCallExpr::cast).find(|call| {
        call.name_ref().is_some_and(|name| name.text() == "block_on")
            && call.receiver().is_some_and(|receiver| receiver.syntax().text().to_string().contains("poisoned"))
    })?;
    body_of(call.arg_list()?.args().next()?)
}

fn is_run(function: &ast::Fn) -> bool {
    function.name().is_some_and(|name| name.text().starts_with("run_user_code_"))
}

/// Returns whether evcxr wrote this item.
fn is_generated(item: &SyntaxNode) -> bool {
    is_evcxr_s_own(item)
        || item.kind() == SyntaxKind::IMPL && item.text().to_string().contains("for EvcxrUserCodeError")
}

/// Returns whether code here runs in the compiler, or below a caller that cannot be unwound.
fn is_constant(node: &SyntaxNode) -> bool {
    node.ancestors().any(|node| match node.kind() {
        SyntaxKind::CONST | SyntaxKind::STATIC | SyntaxKind::CONST_ARG | SyntaxKind::ARRAY_TYPE => true,
        SyntaxKind::FN => ast::Fn::cast(node)
            .is_some_and(|function| function.const_token().is_some() || function.abi().is_some() && !is_run(&function)),
        SyntaxKind::BLOCK_EXPR => ast::BlockExpr::cast(node).is_some_and(|block| block.const_token().is_some()),
        _ => false,
    })
}

/// Returns whether `node` runs with `root`, and not in a function or closure within it.
fn is_direct(node: &SyntaxNode, root: &SyntaxNode) -> bool {
    let around = root.parent();
    node.ancestors().skip(1).take_while(|outer| Some(outer) != around.as_ref()).all(|outer| match outer.kind() {
        SyntaxKind::CLOSURE_EXPR | SyntaxKind::FN => false,
        SyntaxKind::BLOCK_EXPR => ast::BlockExpr::cast(outer).is_some_and(|block| block.async_token().is_none()),
        _ => true,
    })
}

/// Returns whether a `for` or a closure inside another loop calls nothing. It is then over soon, and a
/// check could cost more than its body.
fn is_short(node: &SyntaxNode) -> bool {
    let body = match node.kind() {
        SyntaxKind::FOR_EXPR => loop_body(node).map(|body| body.syntax().clone()),
        SyntaxKind::CLOSURE_EXPR => {
            ast::ClosureExpr::cast(node.clone()).and_then(|closure| Some(closure.body()?.syntax().clone()))
        }
        _ => None,
    };
    let long = [
        SyntaxKind::CALL_EXPR,
        SyntaxKind::METHOD_CALL_EXPR,
        SyntaxKind::MACRO_CALL,
        SyntaxKind::AWAIT_EXPR,
        SyntaxKind::WHILE_EXPR,
        SyntaxKind::LOOP_EXPR,
        SyntaxKind::FOR_EXPR,
    ];
    let outer = [SyntaxKind::FOR_EXPR, SyntaxKind::WHILE_EXPR, SyntaxKind::LOOP_EXPR];
    body.is_some_and(|body| !body.descendants().any(|node| long.contains(&node.kind())))
        && node
            .ancestors()
            .skip(1)
            .take_while(|node| node.kind() != SyntaxKind::FN)
            .any(|node| outer.contains(&node.kind()))
}

fn loop_body(node: &SyntaxNode) -> Option<ast::BlockExpr> {
    match node.kind() {
        SyntaxKind::FOR_EXPR => ast::ForExpr::cast(node.clone())?.loop_body(),
        SyntaxKind::WHILE_EXPR => ast::WhileExpr::cast(node.clone())?.loop_body(),
        SyntaxKind::LOOP_EXPR => ast::LoopExpr::cast(node.clone())?.loop_body(),
        _ => None,
    }
}

/// Returns the place behind the opening brace of a block and its attributes.
fn start(block: &ast::BlockExpr) -> Option<TextSize> {
    let list = block.stmt_list()?;
    let attributes = ast::HasAttrs::attrs(&list).map(|attribute| attribute.syntax().text_range().end()).last();
    Some(attributes.unwrap_or(list.l_curly_token()?.text_range().end()))
}

fn names(patterns: impl Iterator<Item = SyntaxNode>) -> Vec<String> {
    let found = patterns.flat_map(|pattern| pattern.descendants().filter_map(ast::IdentPat::cast).collect::<Vec<_>>());
    found.filter_map(|pattern| Some(pattern.name()?.text().to_string())).collect()
}

fn bound_at_top(statement: &SyntaxNode) -> Vec<String> {
    let pattern = ast::LetStmt::cast(statement.clone()).and_then(|bound| bound.pat());
    names(pattern.into_iter().map(|pattern| pattern.syntax().clone()))
}

fn bound_within(statement: &SyntaxNode) -> Vec<String> {
    names(std::iter::once(statement.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source as evcxr makes it of a cell with these items and statements; `later` is a variable of an earlier cell.
    fn source(items: &str, statements: &str, stored: &str) -> String {
        format!(
            "{items}\nmod evcxr_internal_runtime {{ fn f() {{ loop {{}} }} }}\n#[unsafe(no_mangle)]\n\
             pub extern \"C\" fn run_user_code_7(\nmut s: *mut u8) -> *mut u8 {{\n\
             let mut later = evcxr_variable_store.take_variable::<u8>(stringify!(later));\n\
             match std::panic::catch_unwind(\n  std::panic::AssertUnwindSafe(||{{\n\
             let _ = (|| -> std::result::Result<(), EvcxrUserCodeError> {{\n{statements}\n{stored}\nOk(())\n}})();\n\
             }})) {{ \n  Ok(_) => {{}}\n  Err(_) => {{}}}}\nevcxr_variable_store\n}}\n"
        )
    }

    fn put(name: &str, ty: &str) -> String {
        format!("evcxr_variable_store.put_variable::<{ty}>(stringify!({name}), {name});")
    }

    #[test]
    fn what_repeats_is_checked_on_its_own_line() {
        let (l, f) = (" crate::live_kernel::in_loop();", " crate::live_kernel::in_function();");
        for (code, checked) in [
            ("fn a() { for i in 0..3 { b(i); } }", format!("fn a() {{ for i in 0..3 {{{l} b(i); }} }}")),
            ("fn a() { while let Some(x) = v.pop() { b(x) } }", format!("while let Some(x) = v.pop() {{{l} b(x) }}")),
            ("fn a() { 'o: loop { break 'o; } }", format!("'o: loop {{{l} break 'o; }}")),
            ("fn a() { v.iter().map(|x| x + 1) }", format!("|x| {{{f} x + 1 }})")),
            ("fn a() { f(move || { b(); }) }", format!("move || {{{f} b(); }}")),
            ("fn a() { f(|x| |y| x + y) }", format!("|x| {{{f} |y| {{{f} x + y }} }})")),
            ("fn a() { println!(\"{}\", v.iter().map(|x| x + 1)); }", format!("v.iter().map(|x| {{{f} x + 1 }}));")),
            ("fn a() { assert!(b, \"{:?}\", format!(\"{}\", c(|| 1))) }", format!("c(|| {{{f} 1 }})")),
            ("fn fib(n: u64) -> u64 { fib(n - 1) }", format!("-> u64 {{{f} fib(n - 1) }}")),
            ("fn a() { for x in { v } { #![allow(unused)] b() } }", format!("{{ #![allow(unused)]{l} b() }}")),
            // The outer loop is checked. The inner one is too short.
            (
                "fn a() { loop { for i in 0..3 { s += v[i]; } } }",
                format!("loop {{{l} for i in 0..3 {{ s += v[i]; }} }}"),
            ),
        ] {
            let text = add(&source(code, "", "")).unwrap_or_else(|| panic!("no check in {code}")).text;
            assert!(text.contains(&checked), "{code}: {text}");
            let place = |text: &str| text.lines().position(|line| line.contains("Ok(()"));
            assert_eq!(place(&text), place(&source(code, "", "")), "{code}");
        }
    }

    #[test]
    fn what_does_not_repeat_or_cannot_unwind_stays_as_it_is() {
        for code in [
            "fn a() { b(); }",
            "const fn a() { loop { } }",
            "const A: u8 = { loop {} };",
            "static B: fn() = || {};",
            "extern \"C\" fn a() { loop {} }",
            "macro_rules! m { () => { loop {} } }",
            "impl<T: Display> From<T> for EvcxrUserCodeError { fn from(t: T) { loop {} } }",
        ] {
            assert!(add(&source(code, "b();", "")).is_none(), "{code}");
        }
        // evcxr compiles code without `catch_unwind` only to see its errors.
        assert!(add("fn a() { loop {} }\nfn run_user_code_1() { loop {} }").is_none());
    }

    #[test]
    fn a_loop_of_the_cell_stores_what_was_bound_before_it() {
        let statements = "let mut net = student();\nlet (a, x, y) = (1, 2, 3);\nfor x in data { step(x); }\nlet y = 4;";
        let stored = [put("net", "Model"), put("a", "i32"), put("x", "i32"), put("y", "i32"), put("later", "u8")];
        let stops = add(&source("", statements, &stored.join("\n"))).expect("a loop");
        // The loop has an `x` of its own, and `y` gets its value later.
        let (net, a, later) = (put("net", "Model"), put("a", "i32"), put("later", "u8"));
        let check = format!(
            "for x in data {{ if crate::live_kernel::is_set() {{ {net} {a} {later} crate::live_kernel::leave_at(0) }} step(x)"
        );
        assert!(stops.text.contains(&check), "{}", stops.text);
        let take = |name: &str, ty: &str| {
            let bare = name.trim_start_matches("mut ");
            format!("let {name}: {ty} = evcxr_variable_store.take_variable::<{ty}>(stringify!({bare}));")
        };
        assert_eq!(stops.taken_up, [[take("mut net", "Model"), take("a", "i32"), take("mut later", "u8")]]);
        // evcxr shows the value of a loop, too.
        let shown = "let a = 1;\nshow(&format!(\"{:?}\",&(\nloop { step(); }\n)));";
        let shown = add(&source("", shown, &put("a", "i32"))).expect("a loop");
        assert!(
            shown.text.contains(&format!("loop {{ if crate::live_kernel::is_set() {{ {a} crate")),
            "{}",
            shown.text
        );
        let folder = tempfile::tempdir().expect("a temporary folder");
        announce(folder.path(), Some(&stops));
        assert_eq!(taken_up(folder.path(), 0), stops.taken_up[0]);
        assert!(taken_up(folder.path(), 1).is_empty());
        announce(folder.path(), None);
        assert!(taken_up(folder.path(), 0).is_empty());
    }

    #[test]
    fn only_messages_on_changed_lines_are_shifted() {
        let stops = add(&source("fn a() {\n loop {\n b() }\n}", "", "")).expect("a loop");
        let message =
            |line: u64| serde_json::json!({"spans": [{"line_start": line, "line_end": line}], "children": []});
        assert!(stops.shifts(&message(2)));
        assert!(!stops.shifts(&message(1)) && !stops.shifts(&message(3)));
        assert!(stops.shifts(&serde_json::json!({"spans": [], "children": [message(2)]})));
    }
}
