//! Advice where a cell met a limit of evcxr: sentences beside an error, and notes below a cell that ran.

use ra_ap_syntax::ast::HasName;
use ra_ap_syntax::{AstNode, SyntaxKind, SyntaxNode, ast};
use serde_json::Value;

use crate::cells::failures::Failure;
use crate::cells::report;
use crate::cells::syntax::body;

/// Beginning and end of the line that evcxr prints where it dropped a variable.
const REDEFINED: (&str, &str) = ("The type of the variable ", " was redefined, so was lost.");

/// Returns notes on code that does not do what it seems to do.
pub fn notes(code: &str) -> Vec<String> {
    let Some(body) = body(code) else { return vec![] };
    let mut notes = vec![];
    if code.lines().any(|line| line.trim_start().starts_with(":toolchain ")) {
        notes.push(
            "note: with another toolchain, the next cell first compiles all crates, which takes minutes.".to_owned(),
        );
    }
    for item in body.syntax().children().filter_map(ast::Item::cast) {
        match item {
            ast::Item::Static(item) if may_change(&item) => {
                let name = item.name().map(|name| name.text().to_string()).unwrap_or_default();
                notes.push(format!(
                    "note: the static `{name}` starts over in every cell, for each cell is compiled with its own copy. \
                     Keep a value that has to last in a variable (`let`), and pass it to functions."
                ));
            }
            ast::Item::Fn(item)
                if item.name().is_some_and(|name| name.text() == "main") && !calls(body.syntax(), "main") =>
            {
                notes.push(
                    "note: `main` was defined and not called. A cell's statements run without it; `main()` calls it."
                        .to_owned(),
                );
            }
            _ => {}
        }
    }
    if macro_calls(code).any(|call| macro_name(&call) == "thread_local") {
        notes.push(
            "note: what `thread_local!` declares starts over in every cell, and only the statements of this cell see \
             it. Keep a value that has to last in a variable (`let`)."
                .to_owned(),
        );
    }
    notes
}

/// Returns the note on variables that evcxr dropped.
pub fn dropped_note(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    let (was, whose, it) = match names {
        [_] => ("was", "its type was", "it"),
        _ => ("were", "their types were", "them"),
    };
    format!(
        "note: {} {was} dropped, because {whose} defined again. Run the cell that makes {it} again.",
        quoted.join(", ")
    )
}

/// Returns the note on variables that a failed cell moved away and would have replaced.
pub fn lost_note(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    let (is, it) = if names.len() == 1 { ("is", "it") } else { ("are", "them") };
    format!(
        "note: {} {is} lost, because the cell moved {it} away before it replaced {it}, and then failed. \
         Run the cell that makes {it} again, and use a new name here.",
        quoted.join(", ")
    )
}

/// Removes evcxr's own lines about dropped variables from `text`.
pub fn without_redefined(text: &str) -> String {
    let own = |line: &str| line.starts_with(REDEFINED.0) && line.trim_end().ends_with(REDEFINED.1);
    text.split_inclusive('\n').filter(|line| !own(line)).collect()
}

/// Returns advice on what the compiler `said` of `code`; `dropped` holds the names of dropped variables.
pub fn on_errors(code: &str, said: &str, dropped: &[String]) -> Vec<String> {
    let mut advice = vec![];
    if said.contains("conflicting implementations of trait") || said.contains("duplicate definitions with name") {
        advice.push(
            "help: an `impl` of an earlier cell is replaced only by one with the same words before its braces. Write \
             them as there, or restart the kernel."
                .to_owned(),
        );
    }
    advice.extend(closure(code, said));
    advice.extend(of_another_account(said));
    for name in missing_names(said) {
        if dropped.contains(&name) {
            advice.push(format!(
                "help: `{name}` was dropped when its type was defined again. Run the cell that makes it again."
            ));
        } else if let Some(call) = macro_calls(code).find(|call| declares(call, &name)) {
            advice.push(format!(
                "help: `{name}` is made by the macro `{}!`. Items made by a macro are seen only by the statements of \
                 their own cell, not by its functions or by later cells: write the item out, or keep the value in a \
                 variable and pass it to the function.",
                macro_name(&call)
            ));
        }
    }
    advice
}

/// Explains evcxr's errors about a variable of type `!`, which evcxr cannot keep. evcxr names no place, or shows
/// warnings as errors.
pub fn on_never(errors: &[Value]) -> Option<Failure> {
    let text = |error: &Value| error["evalue"].as_str().unwrap_or_default().to_owned();
    let never = errors.iter().any(|error| text(error).contains("the `!` type is experimental"));
    (never || report::are_warnings(errors)).then(|| {
        let help = "help: a closure can say what it returns, as in `|| -> () { .. }`; and `let _ = ..` keeps nothing.";
        let value = "a variable of this cell can't be kept: its type is `!`, that of what never returns, or holds it";
        Failure::new("error", value, &[help.to_owned()])
    })
}

/// Returns a line to paste in place of a closure that no variable can hold.
fn closure(code: &str, said: &str) -> Option<String> {
    let name = said.split_once("The variable `")?.1.split_once("` is a closure")?.0;
    let statements = body(code)?.syntax().children().filter_map(ast::LetStmt::cast);
    let bound = statements.filter(|bound| bound.pat().is_some_and(|pat| pat.syntax().text() == name)).last()?;
    let Some(ast::Expr::ClosureExpr(closure)) = bound.initializer() else { return None };
    let parameters = closure.param_list()?.params();
    let types: Option<Vec<String>> = parameters.map(|param| Some(param.ty()?.syntax().text().to_string())).collect();
    let returned = closure.ret_type().and_then(|given| given.ty()).map(|ty| ty.syntax().text().to_string());
    let types = types.unwrap_or_else(|| vec!["INPUT".to_owned()]).join(", ");
    // A function of one number most often returns a number of the same type.
    let returned = match returned {
        Some(ty) => ty,
        None if !types.contains(',') && !types.is_empty() && !types.contains("INPUT") => types.clone(),
        None => "OUTPUT".to_owned(),
    };
    let source = closure.syntax().text();
    Some(format!(
        "help: a variable keeps a closure in a box: `let {name}: Box<dyn Fn({types}) -> {returned}> = \
         Box::new({source});`, with the types that it takes and returns. A function (`fn`) needs no box."
    ))
}

/// Explains that cargo may not write where it keeps crates.
fn of_another_account(said: &str) -> Option<String> {
    let (home, after) = said.split_once("failed to open `")?.1.split_once("/registry/")?;
    let refused = ["Permission denied", "Read-only file system"].iter().any(|words| after.contains(words));
    refused.then(|| {
        format!(
            "help: this account may not add crates to {home}. Ask the owner of that folder to run this cell once in a \
             notebook: then every account can use the crate."
        )
    })
}

/// Returns the names that the compiler could not find.
fn missing_names(said: &str) -> Vec<String> {
    let mut found: Vec<String> = vec![];
    for rest in said.split("cannot find ").skip(1) {
        let mut words = rest.splitn(3, '`');
        if let (Some(_), Some(name)) = (words.next(), words.next())
            && !found.iter().any(|known| known == name)
        {
            found.push(name.to_owned());
        }
    }
    found
}

/// Returns whether a static can change or is made at its first use. Others look the same in every cell.
fn may_change(item: &ast::Static) -> bool {
    let last = |path: ast::PathType| Some(path.path()?.segment()?.name_ref()?.text().to_string());
    let types = item.ty().into_iter().flat_map(|ty| ty.syntax().descendants().collect::<Vec<_>>());
    let named = types.filter_map(ast::PathType::cast).filter_map(last);
    item.mut_token().is_some()
        || named.into_iter().any(|name| {
            name.starts_with(char::is_uppercase) && !["String", "Vec", "Option", "Duration"].contains(&name.as_str())
        })
}

fn calls(body: &SyntaxNode, name: &str) -> bool {
    let mut calls = body.descendants().filter_map(ast::CallExpr::cast);
    calls.any(|call| call.expr().is_some_and(|called| called.syntax().text() == name))
}

/// Returns the macro calls among the cell's own statements.
fn macro_calls(code: &str) -> impl Iterator<Item = ast::MacroCall> {
    let children = body(code).into_iter().flat_map(|body| body.syntax().children().collect::<Vec<_>>());
    let within = |node: SyntaxNode| node.descendants().take(4).find_map(ast::MacroCall::cast);
    children.filter(|node| node.kind() != SyntaxKind::FN).filter_map(within)
}

fn macro_name(call: &ast::MacroCall) -> String {
    call.path().map(|path| path.syntax().text().to_string()).unwrap_or_default()
}

/// Returns whether the arguments of the macro declare an item `name`.
fn declares(call: &ast::MacroCall, name: &str) -> bool {
    let given = call.token_tree().into_iter().flat_map(|tree| {
        tree.syntax().descendants_with_tokens().filter_map(|element| element.into_token()).collect::<Vec<_>>()
    });
    let words: Vec<_> = given.into_iter().filter(|token| token.kind() != SyntaxKind::WHITESPACE).collect();
    let begins = ["static", "ref", "const", "fn", "struct", "enum", "union", "trait", "type", "mod"];
    words.windows(2).any(|pair| begins.contains(&pair[0].text()) && pair[1].text() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statics_that_change_and_an_uncalled_main_are_noted() {
        let one = |code: &str| notes(code).join("\n");
        assert!(one("static HITS: AtomicUsize = AtomicUsize::new(0);").contains("`HITS` starts over"));
        assert!(one("static mut N: u32 = 0;").contains("`N` starts over"));
        assert!(one("thread_local! { static SEEN: Cell<u8> = Cell::new(0); }").contains("starts over"));
        assert!(one("fn main() { println!(\"x\"); }").contains("not called"));
        assert!(one(":toolchain nightly").contains("takes minutes"));
        for code in
            [":toolchain", "static NAMES: [&str; 2] = [\"a\", \"b\"];", "fn main() {}\nmain();", "let a = 1;", "let ="]
        {
            assert_eq!(notes(code), [""; 0], "{code}");
        }
    }

    #[test]
    fn errors_come_with_a_way_out() {
        let code = "let twice = |x: i64| 2 * x;\ntwice(21)";
        let said = "The variable `twice` is a closure, which cannot be persisted.";
        let advice = on_errors(code, said, &[]).join("\n");
        assert!(advice.contains("let twice: Box<dyn Fn(i64) -> i64> = Box::new(|x: i64| 2 * x);"), "{advice}");
        let made = "thread_local! { static SEEN: u8 = 1; }\nfn f() { SEEN; }";
        let advice = on_errors(made, "cannot find value `SEEN` in this scope", &[]).join("\n");
        assert!(advice.contains("`thread_local!`"), "{advice}");
        let advice = on_errors("p.x", "cannot find value `p` in this scope", &["p".to_owned()]).join("\n");
        assert!(advice.contains("`p` was dropped"), "{advice}");
        let said = "error: failed to open `/opt/kdlab/.kdlab/cargo/registry/cache/index-1/roman-0.1.6.crate`\n\n\
                    Caused by:\n  Permission denied (os error 13)";
        let advice = on_errors(":dep roman = \"0.1\"", said, &[]).join("\n");
        assert!(advice.contains("may not add crates to /opt/kdlab/.kdlab/cargo."), "{advice}");
        let used = "println!(\"{}\", later);\nvec![&mut later];";
        assert_eq!(on_errors(used, "cannot find value `later` in this scope", &[]), [""; 0]);
        assert_eq!(on_errors("q", "cannot find value `q` in this scope", &["p".to_owned()]), [""; 0]);
    }

    #[test]
    fn the_line_about_dropped_variables_is_said_once() {
        let text = "a\nThe type of the variable p was redefined, so was lost.\nb\n";
        assert_eq!(without_redefined(text), "a\nb\n");
        assert!(dropped_note(&["p".into(), "q".into()]).starts_with("note: `p`, `q` were dropped"));
    }
}
