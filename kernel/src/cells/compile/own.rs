//! The user's own statements in the source that evcxr makes of a cell, and the variables that evcxr stores after them.

use std::collections::BTreeSet;

use ra_ap_syntax::ast::{self, HasArgList, HasName};
use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxNode};

use crate::cells::compile::loops::is_evcxr_s_own;

/// A variable that the cell stores at its end.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    /// The statement that puts it into the store.
    pub put: String,
    /// The statement by which a later cell takes it out again.
    pub take_up: String,
}

/// The user's own statements in the function that runs a cell.
pub struct Own {
    pub statements: Vec<SyntaxNode>,
    stored: Vec<Stored>,
    /// The names that each statement binds, at its top level and below.
    bound: Vec<(Vec<String>, Vec<String>)>,
}

impl Own {
    /// Returns `None` where evcxr does not catch panics: it compiles such code only to see its errors, or because the
    /// user has told it to.
    pub fn of(run: &ast::Fn) -> Option<Self> {
        let fn_text = run.syntax().text().to_string();
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
    pub fn bound_before(&self, index: usize) -> Vec<Stored> {
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

/// Returns whether this function runs the cell.
pub fn is_run(function: &ast::Fn) -> bool {
    function.name().is_some_and(|name| name.text().starts_with("run_user_code_"))
}

/// Returns whether evcxr wrote this item.
pub fn is_generated(item: &SyntaxNode) -> bool {
    is_evcxr_s_own(item)
        || item.kind() == SyntaxKind::IMPL && item.text().to_string().contains("for EvcxrUserCodeError")
}

/// Macros of Rust's library whose arguments are expressions. Not among them is `dbg`, which shows the expression.
const MACROS: &str = " assert assert_eq assert_ne debug_assert debug_assert_eq debug_assert_ne eprint eprintln \
    format panic print println vec write writeln ";

/// Returns the arguments of such a macro, and at which place of the source the first of their positions lies.
pub fn arguments(call: &ast::MacroCall) -> Option<(SyntaxNode, isize)> {
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
    // Where it has no message of its own, `assert` shows the expression, too.
    if name.ends_with("assert") && arguments.args().count() < 2 {
        return None;
    }
    let at = isize::try_from(usize::from(tokens.text_range().start()) + 1).ok()?;
    Some((arguments.syntax().clone(), at - isize::try_from(BEFORE.len()).ok()?))
}

fn bound_at_top(statement: &SyntaxNode) -> Vec<String> {
    let pattern = ast::LetStmt::cast(statement.clone()).and_then(|bound| bound.pat());
    pattern.into_iter().flat_map(|pattern| bound_within(pattern.syntax())).collect()
}

/// Returns the names that `node` binds anywhere, also in the arguments of macros, and those of its items.
fn bound_within(node: &SyntaxNode) -> Vec<String> {
    let names = node.descendants().filter_map(ast::Name::cast).map(|name| name.text().to_string());
    let calls = node.descendants().filter_map(ast::MacroCall::cast);
    let within = calls.filter_map(|call| arguments(&call)).flat_map(|(arguments, _)| bound_within(&arguments));
    names.chain(within).collect()
}
