//! Rust's own library in outline, for rust-analyzer. It reads all of core, alloc and std and expands their macros
//! before the first cell's variables have types. The bodies of functions, and comments that macros repeat for each
//! number type, would take a quarter of a kernel's start. Private methods are left out, so that they are not completed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use ra_ap_syntax::SyntaxKind::{
    BLOCK_EXPR, COMMENT, IDENT, IMPL, MACRO_DEF, MACRO_RULES, STRING, TOKEN_TREE, TRAIT, WHITESPACE,
};
use ra_ap_syntax::ast::HasVisibility;
use ra_ap_syntax::{AstNode, Edition, NodeOrToken, SourceFile, SyntaxNode, T, TextRange, WalkEvent, ast};

/// Replaces the body of a function; valid for any type that it returns.
const BODY: &str = "{ loop {} }";

/// Writes the sources below `from` as outlines below `to`.
pub fn write(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let (path, name) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if path.is_dir() {
            write(&path, &name)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            fs::write(&name, outline(&code)).with_context(|| format!("cannot write {}", name.display()))?;
        }
    }
    Ok(())
}

/// Removes the bodies of functions and the comments in macros. A `const fn` stays whole, because the length of an
/// array may depend on it. So does a function whose body determines the type behind `impl Trait`.
fn outline(code: &str) -> String {
    let file = SourceFile::parse(code, Edition::CURRENT).tree();
    let mut cuts: Vec<(TextRange, &str)> = vec![];
    let mut walk = file.syntax().preorder();
    while let Some(event) = walk.next() {
        let WalkEvent::Enter(node) = event else { continue };
        match node.kind() {
            MACRO_RULES | MACRO_DEF => {
                node.children().filter(|child| child.kind() == TOKEN_TREE).for_each(|tree| in_macro(&tree, &mut cuts));
            }
            BLOCK_EXPR => {
                if let Some(function) = node.parent().and_then(ast::Fn::cast)
                    && function.const_token().is_none()
                    && !node.ancestors().any(|outer| matches!(outer.kind(), IMPL | TRAIT) && has_const(&outer))
                    && !function.ret_type().is_some_and(|given| given.syntax().text().to_string().contains("impl "))
                {
                    cuts.push(match is_private_method(&function) {
                        true => (function.syntax().text_range(), ""),
                        false => (node.text_range(), BODY),
                    });
                }
            }
            _ => continue,
        }
        walk.skip_subtree();
    }
    let (mut text, mut end) = (String::new(), 0);
    for (range, instead) in cuts {
        text += &code[end..range.start().into()];
        text += instead;
        end = range.end().into();
    }
    text + &code[end..]
}

/// Returns whether this is a function of a type that only its crate may call. rust-analyzer would offer it.
fn is_private_method(function: &ast::Fn) -> bool {
    let block = function.syntax().ancestors().nth(2).and_then(ast::Impl::cast);
    block.is_some_and(|block| block.trait_().is_none())
        && function.visibility().is_none_or(|visibility| visibility.syntax().text() != "pub")
}

/// Returns whether this is an `impl const` or a `const trait`.
fn has_const(node: &SyntaxNode) -> bool {
    node.children_with_tokens().any(|child| child.kind() == T![const])
}

/// Does the same in the tokens of a macro's definition.
fn in_macro(tree: &SyntaxNode, cuts: &mut Vec<(TextRange, &str)>) {
    // `constant`: the next token follows `const`, except for `unsafe` and the like. `head`: it belongs to the head of
    // a function that may lose its body.
    let (mut constant, mut head, mut last) = (false, false, WHITESPACE);
    let mut children = tree.children_with_tokens().filter(|child| child.kind() != WHITESPACE).peekable();
    while let Some(child) = children.next() {
        let kind = child.kind();
        match kind {
            COMMENT => cuts.push((child.text_range(), "")),
            // An `fn` without a name is a type.
            T![fn] => head = !constant && children.peek().is_some_and(|next| matches!(next.kind(), IDENT | T![$])),
            T![impl] | T![;] => head = false,
            _ => {}
        }
        constant =
            kind == T![const] || constant && matches!(kind, COMMENT | STRING | T![unsafe] | T![extern] | T![async]);
        if let NodeOrToken::Node(inner) = child {
            if head && last != T![$] && inner.first_token().is_some_and(|first| first.kind() == T!['{']) {
                cuts.push((inner.text_range(), BODY));
                head = false;
            } else if last != T![!] {
                // The arguments of another macro stay as they are, because that macro may need them.
                in_macro(&inner, cuts);
            }
        }
        last = kind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_functions_do_is_left_out() {
        for (code, left) in [
            ("/// Doc.\npub fn f(x: u8) -> u8 { x + 1 }\n", "/// Doc.\npub fn f(x: u8) -> u8 { loop {} }\n"),
            ("impl A for B { fn f(&self) { fn g() {} g() } }", "impl A for B { fn f(&self) { loop {} } }"),
            (
                "impl A { fn f(&self) {} pub fn g() { 1 } pub(crate) unsafe fn h() {} }",
                "impl A {  pub fn g() { loop {} }  }",
            ),
            ("trait A { fn f(); fn g() { 1; } }", "trait A { fn f(); fn g() { loop {} } }"),
            ("const fn f() -> usize { 3 }", "const fn f() -> usize { 3 }"),
            ("fn f() -> impl Fn() { || {} }", "fn f() -> impl Fn() { || {} }"),
            (
                "macro_rules! m { () => { g! { /// Doc.\n fn f() { 1 } } } }",
                "macro_rules! m { () => { g! { /// Doc.\n fn f() { 1 } } } }",
            ),
            ("impl const A for B { fn f() { 1 } }", "impl const A for B { fn f() { 1 } }"),
            (
                "macro_rules! m { () => { fn ${concat(a, b)}() { 1 } } }",
                "macro_rules! m { () => { fn ${concat(a, b)}() { loop {} } } }",
            ),
            ("const N: usize = { 3 };\nfn f() {}", "const N: usize = { 3 };\nfn f() { loop {} }"),
            (
                "macro_rules! m { ($t:ident) => { /// Doc.\n pub fn $t<T>(f: fn() -> u8) -> $t where T: A { 1 } \
                 fn g() { 2 } } }",
                "macro_rules! m { ($t:ident) => { \n pub fn $t<T>(f: fn() -> u8) -> $t where T: A { loop {} } \
                 fn g() { loop {} } } }",
            ),
            (
                "macro_rules! m { () => { pub const unsafe fn f() { 1 } fn g(); struct S { f: fn() } \
                 fn h() -> impl A { 2 } } }",
                "macro_rules! m { () => { pub const unsafe fn f() { 1 } fn g(); struct S { f: fn() } \
                 fn h() -> impl A { 2 } } }",
            ),
        ] {
            assert_eq!(outline(code), left);
        }
    }
}
