//! Finds where a cell needs checks for Interrupt, and where it can have none.

use std::collections::BTreeSet;
use std::ops::Range;

use ra_ap_syntax::ast::{self, HasLoopBody, HasName};
use ra_ap_syntax::{AstNode, NodeOrToken, SyntaxKind, SyntaxNode, SyntaxToken, T, TextSize};

use crate::cells::compile::own::{Own, arguments, is_run};

/// The module of the checks in the cell's source, unless the cell uses this name itself.
pub const MODULE: &str = "live_kernel";

/// A cell with many variables and loops could get more code for storing variables than it has itself. Further loops
/// only stop.
const MOST_PUTS: usize = 400;

/// A `for` over more than this is not short.
const SHORT: u64 = 1_000_000;

/// A check, by the place of its loop, closure or function in the source, or the part of it that stores a variable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    check: usize,
    variable: Option<String>,
}

/// Text to insert into the source of a cell.
pub struct Insertion {
    pub at: usize,
    pub text: String,
    check: usize,
    /// Where in `text` variables are stored.
    puts: Vec<(Range<usize>, String)>,
}

impl Insertion {
    pub fn new(at: usize, text: String) -> Self {
        Self { at, text, check: at, puts: vec![] }
    }

    /// Returns the part to which the character with this index belongs.
    pub fn part(&self, character: usize) -> Part {
        let byte = self.text.char_indices().nth(character).map_or(self.text.len(), |(byte, _)| byte);
        let variable = self.puts.iter().find(|(range, _)| range.contains(&byte)).map(|(_, name)| name.clone());
        Part { check: self.check, variable }
    }
}

/// The checks of a cell while they are collected.
pub struct Checks<'a> {
    pub own: &'a Own,
    /// The names of functions that may call themselves.
    pub recursive: BTreeSet<String>,
    /// The name of the module with the functions of the checks.
    pub module: &'a str,
    /// Parts that rustc refuses.
    pub left_out: &'a BTreeSet<Part>,
    pub insertions: Vec<Insertion>,
    /// Insertions into functions that nothing may unwind.
    pub guards: Vec<Insertion>,
    pub taken_up: Vec<Vec<String>>,
    pub puts: usize,
}

impl Checks<'_> {
    /// Adds checks to `root`, which begins at `offset` of the source if its own positions count from 0. `statement` is
    /// the index of the cell's own statement in which it stands.
    pub fn visit(&mut self, root: &SyntaxNode, offset: isize, statement: Option<usize>) {
        for node in root.descendants() {
            if let Some(function) = ast::Fn::cast(node.clone()).filter(|function| !unwinds(function)) {
                self.guard(&function, offset);
            }
            if is_constant(&node) {
                continue;
            }
            let direct = statement.filter(|_| is_direct(&node, root));
            if let Some(call) = ast::MacroCall::cast(node.clone()) {
                if let Some((arguments, at)) = arguments(&call) {
                    self.visit(&arguments, offset + at, direct);
                }
            } else if let Some(rules) = ast::MacroRules::cast(node.clone()) {
                rules.token_tree().into_iter().for_each(|tree| self.macro_rules(tree.syntax(), offset));
            } else if !is_short(&node) {
                self.check(&node, offset, direct);
            }
        }
    }

    /// Adds a check to a loop, a closure or a function that calls itself.
    fn check(&mut self, node: &SyntaxNode, offset: isize, direct: Option<usize>) {
        let Some(check) = place(offset, node.text_range().start()) else { return };
        let in_function = format!(" crate::{}::in_function();", self.module);
        if let Some(at) = loop_body(node).and_then(|body| start(&body)) {
            match direct.map(|index| self.own.bound_before(index)) {
                Some(kept) if self.puts + kept.len() <= MOST_PUTS => {
                    let kept = kept.into_iter().filter(|kept| !kept.put.contains('\n'));
                    let kept: Vec<_> = kept.filter(|kept| !self.is_left_out(check, Some(&kept.name))).collect();
                    self.puts += kept.len();
                    let (mut text, mut puts) = (format!(" if crate::{}::is_set() {{ ", self.module), vec![]);
                    for stored in &kept {
                        puts.push((text.len()..text.len() + stored.put.len(), stored.name.clone()));
                        text += &format!("{} ", stored.put);
                    }
                    text += &format!("crate::{}::leave_at({}) }}", self.module, self.taken_up.len());
                    self.taken_up.push(kept.into_iter().map(|kept| kept.take_up).collect());
                    self.insert(check, offset, at, text, puts);
                }
                _ => self.insert(check, offset, at, format!(" crate::{}::in_loop();", self.module), vec![]),
            }
        } else if let Some(function) = ast::Fn::cast(node.clone()) {
            let recursive = function.name().is_some_and(|name| self.recursive.contains(name.text()));
            let at = function.body().filter(|_| recursive).and_then(|body| start(&body));
            at.into_iter().for_each(|at| self.insert(check, offset, at, in_function.clone(), vec![]));
        } else if let Some(body) = ast::ClosureExpr::cast(node.clone()).and_then(|closure| closure.body()) {
            match &body {
                ast::Expr::BlockExpr(block) if block.const_token().is_none() => {
                    let at = start(block);
                    at.into_iter().for_each(|at| self.insert(check, offset, at, in_function.clone(), vec![]));
                }
                _ => {
                    let range = body.syntax().text_range();
                    // In a block, `match a {} + 1` would be two statements.
                    let (open, close) = if begins_like_a_statement(&body) { ("(", ")") } else { ("", "") };
                    self.insert(check, offset, range.start(), format!("{{{in_function} {open}"), vec![]);
                    self.insert(check, offset, range.end(), format!("{close} }}"), vec![]);
                }
            }
        }
    }

    /// Adds checks to the loops that `macro_rules!` writes. What is passed on to other macros stays as it is, because
    /// these may look at every token.
    fn macro_rules(&mut self, rules: &SyntaxNode, offset: isize) {
        let mut written = false;
        for child in rules.children_with_tokens() {
            match child {
                NodeOrToken::Token(token) => written |= matches!(token.kind(), T![>] | T![=>]),
                NodeOrToken::Node(tree) if std::mem::take(&mut written) => self.written(&tree, offset),
                // What a rule matches.
                NodeOrToken::Node(_) => {}
            }
        }
    }

    fn written(&mut self, tree: &SyntaxNode, offset: isize) {
        let (mut begun, mut in_macro) = (None::<SyntaxToken>, false);
        for child in tree.children_with_tokens() {
            match child {
                NodeOrToken::Token(token) => match token.kind() {
                    SyntaxKind::WHITESPACE | SyntaxKind::COMMENT => {}
                    // The `for` of a loop has an `in`, that of an `impl` has none.
                    T![loop] | T![while] | T![in] => (begun, in_macro) = (Some(token), false),
                    kind => {
                        let ends = kind == T![;] || begun.as_ref().is_some_and(|token| token.kind() == T![loop]);
                        begun = begun.filter(|_| !ends);
                        // `name! {` and `macro_rules! name {`.
                        in_macro = kind == T![!] || in_macro && kind == SyntaxKind::IDENT;
                    }
                },
                NodeOrToken::Node(tree) if std::mem::take(&mut in_macro) => drop(tree),
                NodeOrToken::Node(tree) => {
                    let brace = tree.first_token().filter(|token| token.kind() == T!['{']);
                    if let (Some(token), Some(brace)) = (&begun, brace) {
                        let check = place(offset, token.text_range().start());
                        let text = format!(" crate::{}::in_loop();", self.module);
                        check.into_iter().for_each(|check| {
                            self.insert(check, offset, brace.text_range().end(), text.clone(), vec![])
                        });
                        begun = None;
                    }
                    self.written(&tree, offset);
                }
            }
        }
    }

    /// Lets nothing unwind the function, because that would end the process.
    fn guard(&mut self, function: &ast::Fn, offset: isize) {
        let at = function.body().filter(|_| function.const_token().is_none()).and_then(|body| start(&body));
        let Some(at) = at.and_then(|at| place(offset, at)) else { return };
        if !self.is_left_out(at, None) && !is_run(function) {
            self.guards.push(Insertion::new(at, format!(" let _{0} = crate::{0}::whole();", self.module)));
        }
    }

    fn is_left_out(&self, check: usize, variable: Option<&str>) -> bool {
        self.left_out.contains(&Part { check, variable: variable.map(str::to_owned) })
    }

    fn insert(&mut self, check: usize, offset: isize, at: TextSize, text: String, puts: Vec<(Range<usize>, String)>) {
        if let Some(at) = place(offset, at).filter(|_| !self.is_left_out(check, None)) {
            self.insertions.push(Insertion { at, text, check, puts });
        }
    }
}

fn place(offset: isize, at: TextSize) -> Option<usize> {
    offset.checked_add_unsigned(at.into()).and_then(|at| at.try_into().ok())
}

/// Returns whether a panic may leave the function.
fn unwinds(function: &ast::Fn) -> bool {
    let Some(abi) = function.abi() else { return true };
    let name = abi.syntax().text().to_string();
    name.ends_with("-unwind\"") || name.ends_with("\"Rust\"")
}

/// Returns whether code here runs in the compiler, or in a function that cannot be unwound.
fn is_constant(node: &SyntaxNode) -> bool {
    let constant = |node: SyntaxNode| match node.kind() {
        SyntaxKind::CONST
        | SyntaxKind::STATIC
        | SyntaxKind::CONST_ARG
        | SyntaxKind::CONST_PARAM
        | SyntaxKind::ARRAY_TYPE
        | SyntaxKind::VARIANT => true,
        SyntaxKind::FN => ast::Fn::cast(node)
            .is_some_and(|function| function.const_token().is_some() || !unwinds(&function) && !is_run(&function)),
        SyntaxKind::BLOCK_EXPR => ast::BlockExpr::cast(node).is_some_and(|block| block.const_token().is_some()),
        _ => false,
    };
    node.ancestors().any(|node| is_length(&node) || constant(node))
}

/// Returns whether `node` is the length in `[value; length]`.
fn is_length(node: &SyntaxNode) -> bool {
    let array = node.parent().filter(|parent| parent.kind() == SyntaxKind::ARRAY_EXPR);
    let semicolon = array.and_then(|array| ast::ArrayExpr::cast(array)?.semicolon_token());
    semicolon.is_some_and(|semicolon| semicolon.text_range().end() <= node.text_range().start())
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

/// Returns whether a `for` or a closure inside another loop calls nothing and does not seem to go on for long. A check
/// could cost more than its body.
fn is_short(node: &SyntaxNode) -> bool {
    let (body, source) = match node.kind() {
        SyntaxKind::FOR_EXPR => {
            let iterable = ast::ForExpr::cast(node.clone()).and_then(|repeated| repeated.iterable());
            (loop_body(node).map(|body| body.syntax().clone()), iterable.map(|iterable| iterable.syntax().clone()))
        }
        SyntaxKind::CLOSURE_EXPR => {
            let body = ast::ClosureExpr::cast(node.clone()).and_then(|closure| closure.body());
            // The chain of iterators that calls it.
            let statement = node.ancestors().take_while(|node| node.kind() != SyntaxKind::STMT_LIST).last();
            (body.map(|body| body.syntax().clone()), statement)
        }
        _ => return false,
    };
    let calls = [
        SyntaxKind::CALL_EXPR,
        SyntaxKind::METHOD_CALL_EXPR,
        SyntaxKind::MACRO_CALL,
        SyntaxKind::AWAIT_EXPR,
        SyntaxKind::WHILE_EXPR,
        SyntaxKind::LOOP_EXPR,
        SyntaxKind::FOR_EXPR,
    ];
    let outer = [SyntaxKind::FOR_EXPR, SyntaxKind::WHILE_EXPR, SyntaxKind::LOOP_EXPR];
    let Some(body) = body else { return false };
    let own = |node: &SyntaxNode| body.text_range().contains_range(node.text_range());
    !body.descendants().any(|node| calls.contains(&node.kind()))
        && source.is_some_and(|source| !source.descendants().any(|node| goes_on(&node) && !own(&node)))
        && node
            .ancestors()
            .skip(1)
            .take_while(|node| node.kind() != SyntaxKind::FN)
            .any(|node| outer.contains(&node.kind()))
}

/// Returns whether `node` makes an iterator go on for long or for ever.
fn goes_on(node: &SyntaxNode) -> bool {
    const NAMES: [&str; 7] = ["MAX", "cycle", "from_fn", "pow", "repeat", "repeat_with", "successors"];
    match node.kind() {
        SyntaxKind::NAME_REF => NAMES.contains(&node.text().to_string().as_str()),
        SyntaxKind::RANGE_EXPR => {
            let open = ast::RangeExpr::cast(node.clone()).is_some_and(|range| ast::RangeItem::end(&range).is_none());
            open && node.parent().is_none_or(|parent| parent.kind() != SyntaxKind::INDEX_EXPR)
        }
        SyntaxKind::LITERAL => {
            let digits: String =
                node.text().to_string().replace('_', "").chars().take_while(char::is_ascii_digit).collect();
            !digits.is_empty() && digits.parse::<u64>().map_or(true, |number| number > SHORT)
        }
        _ => false,
    }
}

fn loop_body(node: &SyntaxNode) -> Option<ast::BlockExpr> {
    match node.kind() {
        SyntaxKind::FOR_EXPR => ast::ForExpr::cast(node.clone())?.loop_body(),
        SyntaxKind::WHILE_EXPR => ast::WhileExpr::cast(node.clone())?.loop_body(),
        SyntaxKind::LOOP_EXPR => ast::LoopExpr::cast(node.clone())?.loop_body(),
        _ => None,
    }
}

/// Returns whether `body` begins with a block, a `match` or the like, and goes on behind it.
fn begins_like_a_statement(body: &ast::Expr) -> bool {
    let first = body.syntax().first_token();
    let leading = first.into_iter().flat_map(|token| token.parent_ancestors().collect::<Vec<_>>());
    let mut within = leading.take_while(|node| node != body.syntax());
    let statements = [
        SyntaxKind::BLOCK_EXPR,
        SyntaxKind::IF_EXPR,
        SyntaxKind::MATCH_EXPR,
        SyntaxKind::LOOP_EXPR,
        SyntaxKind::WHILE_EXPR,
        SyntaxKind::FOR_EXPR,
    ];
    let of_braces = |node: &SyntaxNode| {
        statements.contains(&node.kind())
            || node.kind() == SyntaxKind::MACRO_EXPR && node.last_token().is_some_and(|token| token.kind() == T!['}'])
    };
    // Behind a block, a dot or `?` goes on with the expression.
    let ends = [
        SyntaxKind::BIN_EXPR,
        SyntaxKind::CALL_EXPR,
        SyntaxKind::CAST_EXPR,
        SyntaxKind::INDEX_EXPR,
        SyntaxKind::RANGE_EXPR,
    ];
    within.any(|node| of_braces(&node) && node.parent().is_some_and(|parent| ends.contains(&parent.kind())))
}

/// Returns the place behind the opening brace of a block and its attributes.
fn start(block: &ast::BlockExpr) -> Option<TextSize> {
    let list = block.stmt_list()?;
    let attributes = ast::HasAttrs::attrs(&list).map(|attribute| attribute.syntax().text_range().end()).last();
    Some(attributes.unwrap_or(list.l_curly_token()?.text_range().end()))
}
