//! Lets Interrupt stop the loops that cells define.
//!
//! The kernel's cargo puts a check at the head of each loop, of each closure, and of each function that may call
//! itself, always on the same line. A check reads one word of memory that the server shares with the process of the
//! cells ([`crate::cells::interrupt`]). If the word is set, the check unwinds the stack. evcxr takes that for a panic,
//! and a panic costs no variable of earlier cells.
//!
//! A loop among the cell's own statements also puts the variables that the cell has bound before it into evcxr's store,
//! because evcxr forgets the new variables of a cell that fails. The server then runs an internal cell, by which evcxr
//! takes them up.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use ra_ap_syntax::ast;
use ra_ap_syntax::{AstNode, Edition, SourceFile};
use serde_json::Value;

use crate::cells::compile::checks::{Checks, Insertion, MODULE, Part};
use crate::cells::compile::own::{Own, is_generated, is_run};
use crate::cells::compile::recursion::recursive;
use crate::cells::interrupt::{ADDRESS, LEFT, Stop, THREAD};

/// File in the private folder: for each place at which a cell may stop, the statements that take up the variables
/// which that place puts into the store.
const FILE: &str = "stops.json";

/// The source of a cell with its checks.
pub struct Stops {
    pub text: String,
    /// Lines, counted from 1, in which columns have changed.
    lines: BTreeSet<usize>,
    /// What was inserted, with its line and its columns, counted from 1.
    inserted: Vec<(Insertion, usize, Range<usize>)>,
    taken_up: Vec<Vec<String>>,
}

/// Functions of the checks, in one line, because the lines of the cell must keep their numbers.
/// A second unwinding during a first one would end the process, so code that runs during one is not stopped. Threads
/// with a name belong to crates, such as background runs that call a closure of the cell, and are not stopped either.
/// Nor is what a function calls that cannot be unwound (`whole`). A check that ends the cell, or a thread of it, leaves
/// a mark.
fn module(name: &str, guarded: bool) -> String {
    let all = Stop::All as u32;
    let (whole, is_whole) = match guarded {
        true => (
            "thread_local! { static WHOLE: ::std::cell::Cell<u32> = const { ::std::cell::Cell::new(0) } } \
             pub struct Whole; \
             impl Drop for Whole { fn drop(&mut self) { \
             let _ = WHOLE.try_with(|depth| depth.set(depth.get() - 1)); } } \
             pub fn whole() -> Option<Whole> { \
             WHOLE.try_with(|depth| depth.set(depth.get() + 1)).ok().map(|()| Whole) } ",
            "WHOLE.try_with(|depth| depth.get() > 0).unwrap_or(true)",
        ),
        false => ("", "false"),
    };
    format!(
        "#[doc(hidden)] mod {name} {{ use ::std::sync::atomic::{{AtomicU32, Ordering::Relaxed}}; \
         static NEVER: AtomicU32 = AtomicU32::new(0); static mut WORD: &AtomicU32 = &NEVER; \
         static mut CELL: Option<::std::thread::ThreadId> = None; static mut RUN: u32 = 0; {whole}\
         pub fn begin() {{ let given = ::std::env::var(\"{ADDRESS}\").ok(); \
         let given = given.and_then(|text| text.parse::<usize>().ok()); \
         if let Some(address) = given {{ unsafe {{ WORD = &*(address as *const AtomicU32); \
         RUN = word(2).load(Relaxed); CELL = Some(::std::thread::current().id()) }} }} }} \
         fn word(index: usize) -> &'static AtomicU32 {{ unsafe {{ &*::std::ptr::from_ref(WORD).add(index) }} }} \
         #[inline(always)] pub fn is_set() -> bool {{ unsafe {{ WORD }}.load(Relaxed) != 0 }} \
         #[inline(always)] pub fn in_loop() {{ if is_set() {{ unwind() }} }} \
         #[inline(always)] pub fn in_function() {{ if unsafe {{ WORD }}.load(Relaxed) == {all} {{ unwind() }} }} \
         #[cold] #[inline(never)] fn unwind() {{ if {is_whole} || ::std::thread::panicking() {{ return }} \
         let thread = ::std::thread::current(); \
         if thread.name().is_none_or(|name| name == \"main\" || name.starts_with(\"tokio\")) {{ \
         if unsafe {{ CELL }} == Some(thread.id()) {{ word(1).store({LEFT}, Relaxed) }} \
         else if word(2).load(Relaxed) == unsafe {{ RUN }} {{ \
         let _ = word(1).compare_exchange(0, {THREAD}, Relaxed, Relaxed); }} leave() }} }} \
         fn leave() -> ! {{ ::std::panic::resume_unwind(Box::new(\"interrupted\")) }} \
         #[cold] #[inline(never)] pub fn leave_at(place: u32) -> ! {{ \
         word(1).store(place + 1, Relaxed); leave() }} }}\n"
    )
}

/// Adds the checks to `source`, which evcxr made of a cell, without the parts `left_out`. Returns `None` where nothing
/// repeats.
pub fn add(source: &str, left_out: &BTreeSet<Part>) -> Option<Stops> {
    let file = SourceFile::parse(source, Edition::CURRENT).tree();
    // The cell may define such a function, too. evcxr's comes last.
    let run = file.syntax().children().filter_map(ast::Fn::cast).filter(is_run).last()?;
    let own = Own::of(&run)?;
    let mut names = (0..).map(|number| if number == 0 { MODULE.to_owned() } else { format!("{MODULE}_{number}") });
    let module = names.find(|name| !source.contains(name.as_str()))?;
    let mut checks = Checks {
        own: &own,
        recursive: recursive(file.syntax()),
        module: &module,
        left_out,
        insertions: vec![],
        guards: vec![],
        taken_up: vec![],
        puts: 0,
    };
    for item in file.syntax().children().filter(|item| item != run.syntax() && !is_generated(item)) {
        checks.visit(&item, 0, None);
    }
    for (index, statement) in own.statements.iter().enumerate() {
        checks.visit(statement, 0, Some(index));
    }
    let Checks { mut insertions, guards, taken_up, .. } = checks;
    if insertions.is_empty() {
        return None;
    }
    let guarded = !guards.is_empty();
    insertions.extend(guards);
    let begin = run.body()?.stmt_list()?.l_curly_token()?.text_range().end();
    insertions.push(Insertion::new(begin.into(), format!(" crate::{module}::begin();")));
    // Of two insertions at one place, the closing one of an inner closure comes first.
    insertions.sort_by_key(|insertion| insertion.at);
    let (mut text, mut end, mut line, mut column) = (String::new(), 0, 1, 1);
    let mut inserted = vec![];
    for insertion in insertions {
        let between = &source[end..insertion.at];
        line += between.matches('\n').count();
        column = match between.rsplit_once('\n') {
            Some((_, last)) => 1 + last.chars().count(),
            None => column + between.chars().count(),
        };
        text += between;
        text += &insertion.text;
        let begun = column;
        column += insertion.text.chars().count();
        end = insertion.at;
        inserted.push((insertion, line, begun..column));
    }
    text += &source[end..];
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let mut lines: BTreeSet<usize> = inserted.iter().map(|(_, line, _)| *line).collect();
    lines.insert(1 + text.matches('\n').count());
    text += &self::module(&module, guarded);
    Some(Stops { text, lines, inserted, taken_up })
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

    /// Returns the parts of checks that rustc refuses, such as storing a variable that is borrowed in the loop. Returns
    /// nothing where it also refuses something of the cell itself.
    pub fn refused(&self, messages: &[Value]) -> BTreeSet<Part> {
        let errors = messages.iter().filter(|message| message["level"] == "error");
        let mut refused = BTreeSet::new();
        for spans in errors.filter_map(|error| error["spans"].as_array()).filter(|spans| !spans.is_empty()) {
            // Where a stored variable borrows another one, the error is about that one, and only mentions the check.
            let parts: Vec<Part> = spans.iter().filter_map(|span| self.part(span)).collect();
            if parts.is_empty() {
                return BTreeSet::new();
            }
            refused.extend(parts);
        }
        refused
    }

    /// Returns the part of a check in which `span` begins.
    fn part(&self, span: &Value) -> Option<Part> {
        let number = |key: &str| span[key].as_u64().map(|number| number as usize);
        let (line, column) = (number("line_start")?, number("column_start")?);
        let found = self.inserted.iter().find(|(_, at, columns)| *at == line && columns.contains(&column));
        found.map(|(insertion, _, columns)| insertion.part(column - columns.start))
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

    fn plain(source: &str) -> Option<Stops> {
        add(source, &BTreeSet::new())
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
            // In a block, this would be two statements.
            ("fn a() { f(|x| match x { _ => 1 } + 2) }", format!("|x| {{{f} (match x {{ _ => 1 }} + 2) }})")),
            ("fn a() { f(|x| match x { _ => 1 }.b()) }", format!("|x| {{{f} match x {{ _ => 1 }}.b() }})")),
            ("fn a() { f(|x| if x { 1 } else { 2 }) }", format!("|x| {{{f} if x {{ 1 }} else {{ 2 }} }})")),
            ("macro_rules! m { ($a:expr) => { while $a { b() } } }", format!("while $a {{{l} b() }} }}")),
            (
                "macro_rules! m { (for) => ( for x in v { loop { b(x) } } ) }",
                format!("in v {{{l} loop {{{l} b(x) }} }}"),
            ),
            ("extern \"C-unwind\" fn a() { loop { b() } }", format!("loop {{{l} b() }}")),
            ("fn a() { if x { b() } } fn b() { a() }", format!("fn a() {{{f} if x {{ b() }} }} fn b() {{{f} a() }}")),
            // An inner loop that seems to go on for long.
            ("fn a() { loop { for i in 0.. { s += i; } } }", format!("in 0.. {{{l} s += i; }}")),
            ("fn a() { loop { for i in 0..10_000_000 { s += i; } } }", format!("000 {{{l} s += i; }}")),
            ("fn a() { loop { t = (0..u64::MAX).map(|i| i + 1).sum(); } }", format!("|i| {{{f} i + 1 }}")),
            ("fn a() { loop { for i in v[1..].iter() { s += i; } } }", "iter() { s += i; }".to_owned()),
            // The outer loop is checked. The inner one is too short.
            (
                "fn a() { loop { for i in 0..3 { s += v[i]; } } }",
                format!("loop {{{l} for i in 0..3 {{ s += v[i]; }} }}"),
            ),
        ] {
            let text = plain(&source(code, "", "")).unwrap_or_else(|| panic!("no check in {code}")).text;
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
            "fn a() -> [u8; 3] { [1; { let mut i = 0; while i < 3 { i += 1; } i }] }",
            "enum E { A = { loop {} } }",
            // These show or match what they are given.
            "fn a() { dbg!(v.iter().map(|x| x + 1)); assert!(v.iter().all(|x| *x > 1)); }",
            "macro_rules! m { (loop { $($t:tt)* }) => { stringify!(loop { $($t)* }) } }",
            "impl<T: Display> From<T> for EvcxrUserCodeError { fn from(t: T) { loop {} } }",
        ] {
            assert!(plain(&source(code, "b();", "")).is_none(), "{code}");
        }
        // evcxr compiles code without `catch_unwind` only to see its errors.
        assert!(plain("fn a() { loop {} }\nfn run_user_code_1() { loop {} }").is_none());
    }

    #[test]
    fn a_loop_of_the_cell_stores_what_was_bound_before_it() {
        let statements = "let mut net = student();\nlet (a, x, y) = (1, 2, 3);\nfor x in data { step(x); }\nlet y = 4;";
        let stored = [put("net", "Model"), put("a", "i32"), put("x", "i32"), put("y", "i32"), put("later", "u8")];
        let stops = plain(&source("", statements, &stored.join("\n"))).expect("a loop");
        // The loop has an `x` of its own, and `y` gets its value later.
        let (net, a, later) = (put("net", "Model"), put("a", "i32"), put("later", "u8"));
        let check = format!(
            "for x in data {{ if crate::live_kernel::is_set() {{ {net} {a} {later} \
             crate::live_kernel::leave_at(0) }} step(x)"
        );
        assert!(stops.text.contains(&check), "{}", stops.text);
        let take = |name: &str, ty: &str| {
            let bare = name.trim_start_matches("mut ");
            format!("let {name}: {ty} = evcxr_variable_store.take_variable::<{ty}>(stringify!({bare}));")
        };
        assert_eq!(stops.taken_up, [[take("mut net", "Model"), take("a", "i32"), take("mut later", "u8")]]);
        // evcxr shows the value of a loop, too.
        let shown = "let a = 1;\nshow(&format!(\"{:?}\",&(\nloop { step(); }\n)));";
        let shown = plain(&source("", shown, &put("a", "i32"))).expect("a loop");
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
    fn what_rustc_refuses_is_left_out() {
        let stored = [put("a", "u8"), put("b", "u8")].join("\n");
        let source = source("", "let a = 1; let b = 2; for x in a.drain(..) { loop { b(x); } }", &stored);
        let stops = plain(&source).expect("a loop");
        let (number, line) = stops.text.lines().enumerate().find(|(_, l)| l.contains("for x")).expect("the loop");
        let span = |words: &str| {
            let column = line.split(words).next().unwrap_or_default().chars().count() + 1;
            serde_json::json!({"line_start": number + 1, "column_start": column})
        };
        let error = |words: &str| serde_json::json!({"level": "error", "spans": [span(words)]});
        let last = serde_json::json!({"level": "error", "spans": []});
        let refused = stops.refused(&[error(&put("a", "u8")), last.clone()]);
        let without = add(&source, &refused).expect("a loop").text;
        // The inner loop still stores both.
        let (outer, inner) =
            (format!("{} crate", put("b", "u8")), format!("{} {} crate", put("a", "u8"), put("b", "u8")));
        assert!(without.contains(&format!("{{ if crate::live_kernel::is_set() {{ {outer}")), "{without}");
        assert!(without.contains(&format!("{{ if crate::live_kernel::is_set() {{ {inner}")), "{without}");
        // A whole check.
        let refused = stops.refused(&[error("crate::live_kernel::is_set")]);
        let without = add(&source, &refused).expect("a loop").text;
        assert!(without.contains("a.drain(..) { loop { if crate::live_kernel"), "{without}");
        // A mistake of the cell's own.
        assert!(stops.refused(&[error(&put("a", "u8")), error("b(x)")]).is_empty());
        assert!(stops.refused(&[last]).is_empty());
    }

    #[test]
    fn names_of_the_cell_are_left_alone() {
        let stops = plain(&source("mod live_kernel { }", "loop { b() }", "")).expect("a loop");
        assert!(stops.text.contains("loop { if crate::live_kernel_1::is_set()"), "{}", stops.text);
        // This `x` is a new variable.
        let statements = "let x = 1;\nprintln!(\"{}\", { let x = 5; loop { b(x) } });";
        let stops = plain(&source("fn run_user_code_1() {}", statements, &put("x", "i32"))).expect("a loop");
        assert_eq!(stops.taken_up, [[""; 0]]);
        assert!(plain(&source("", "loop { b() }", "").replace("catch_unwind", "other")).is_none());
    }

    #[test]
    fn nothing_unwinds_functions_that_cannot_be() {
        let stops = plain(&source("extern \"C\" fn a() { loop { b() } } fn b() { loop {} }", "", "")).expect("a loop");
        let guarded = "fn a() { let _live_kernel = crate::live_kernel::whole(); loop { b() } }";
        assert!(stops.text.contains(guarded) && stops.text.contains("thread_local!"), "{}", stops.text);
        assert!(!plain(&source("fn b() { loop {} }", "", "")).expect("a loop").text.contains("thread_local!"));
    }

    #[test]
    fn many_variables_and_loops_stay_small() {
        let stored: String = (0..60).map(|i| put(&format!("v{i}"), "u8") + "\n").collect();
        let bound: String = (0..60).map(|i| format!("let v{i} = 0; loop {{ b() }}\n")).collect();
        let stops = plain(&source("", &bound, &stored)).expect("loops");
        assert_eq!(stops.text.matches("leave_at(").count() + stops.text.matches("in_loop();").count(), 61);
        assert!(stops.taken_up.iter().map(Vec::len).sum::<usize>() <= 400);
    }

    #[test]
    fn only_messages_on_changed_lines_are_shifted() {
        let stops = plain(&source("fn a() {\n loop {\n b() }\n}", "", "")).expect("a loop");
        let message =
            |line: u64| serde_json::json!({"spans": [{"line_start": line, "line_end": line}], "children": []});
        assert!(stops.shifts(&message(2)));
        assert!(!stops.shifts(&message(1)) && !stops.shifts(&message(3)));
        assert!(stops.shifts(&serde_json::json!({"spans": [], "children": [message(2)]})));
    }
}
