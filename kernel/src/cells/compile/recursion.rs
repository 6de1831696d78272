//! Finds functions that may call themselves, directly or through others.

use std::collections::{BTreeMap, BTreeSet};

use ra_ap_syntax::ast::{self, HasName};
use ra_ap_syntax::{AstNode, SyntaxKind, SyntaxNode};

/// Returns the names of the functions and methods in `file` that may call themselves.
///
/// Names are all that it goes by, so another function of the same name may be meant. A method that passes its call on,
/// as `forward` does to its layers, is not counted: a recursion ends, so it has to decide something first.
pub fn recursive(file: &SyntaxNode) -> BTreeSet<String> {
    let own = own_types(file);
    let mut calls = BTreeMap::<String, BTreeSet<String>>::new();
    for function in file.descendants().filter_map(ast::Fn::cast) {
        let (Some(name), Some(body)) = (function.name(), function.body()) else { continue };
        calls.entry(name.text().to_string()).or_default().extend(called(body.syntax(), &own));
    }
    calls.keys().filter(|name| reaches(&calls, name)).cloned().collect()
}

fn reaches(calls: &BTreeMap<String, BTreeSet<String>>, name: &str) -> bool {
    let mut reached = BTreeSet::new();
    let mut left: Vec<&String> = calls.get(name).into_iter().flatten().collect();
    while let Some(next) = left.pop() {
        if next == name {
            return true;
        }
        if reached.insert(next) {
            left.extend(calls.get(next).into_iter().flatten());
        }
    }
    false
}

/// Returns the names of the types, traits and modules that `file` defines. Functions of others are not in it.
fn own_types(file: &SyntaxNode) -> BTreeSet<String> {
    let kinds = [
        SyntaxKind::STRUCT,
        SyntaxKind::ENUM,
        SyntaxKind::UNION,
        SyntaxKind::TRAIT,
        SyntaxKind::MODULE,
        SyntaxKind::TYPE_ALIAS,
        SyntaxKind::TYPE_PARAM,
    ];
    let named = file.descendants().filter(|node| kinds.contains(&node.kind()));
    let names = named.filter_map(|node| node.children().find_map(ast::Name::cast));
    names.map(|name| name.text().to_string()).chain(["Self", "self", "super", "crate"].map(str::to_owned)).collect()
}

fn called(body: &SyntaxNode, own: &BTreeSet<String>) -> BTreeSet<String> {
    let decides = body.descendants().any(|node| {
        let kinds = [SyntaxKind::IF_EXPR, SyntaxKind::MATCH_EXPR, SyntaxKind::FOR_EXPR, SyntaxKind::CLOSURE_EXPR];
        kinds.contains(&node.kind())
    });
    let of_path = |node: &SyntaxNode| {
        let ast::Expr::PathExpr(path) = ast::CallExpr::cast(node.clone())?.expr()? else { return None };
        let path = path.path()?;
        let of_own = match path.qualifier() {
            None => true,
            // `<Type as Trait>::name` has no name here.
            Some(outer) => outer.segment()?.name_ref().is_none_or(|name| own.contains(name.text())),
        };
        path.segment()?.name_ref().filter(|_| of_own)
    };
    let of_method = |node: &SyntaxNode| {
        let call = ast::MethodCallExpr::cast(node.clone())?;
        let own = call.receiver().is_some_and(|receiver| receiver.syntax().text() == "self");
        call.name_ref().filter(|_| own || decides)
    };
    let found = body.descendants().filter_map(|node| of_path(&node).or_else(|| of_method(&node)));
    found.map(|name| name.text().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use ra_ap_syntax::{Edition, SourceFile};

    use super::*;

    #[test]
    fn recursion_is_found_through_other_functions_and_methods() {
        for (code, expected) in [
            ("fn a(n: u8) -> u8 { a(n - 1) }", &["a"][..]),
            ("fn a() { b() } fn b() { if x { c() } } fn c() { a() } fn d() { a() }", &["a", "b", "c"]),
            ("impl T { fn leaves(&self) -> u8 { if self.0 { self.left.leaves() } else { 1 } } }", &["leaves"]),
            ("impl T { fn depth(&self) { self.depth() } }", &["depth"]),
            ("trait D { fn d(n: u8); } impl D for X { fn d(n: u8) { <Y as D>::d(n) } }", &["d"]),
            ("mod m { pub fn f() { super::g() } } fn g() { m::f() }", &["f", "g"]),
            // Calls that are passed on.
            (
                "impl T { fn forward(&self, x: X) -> X { self.0.forward(x).relu() } fn len(&self) { self.0.len() } }",
                &[],
            ),
            ("struct S; impl S { fn new() -> S { Vec::new(); S } }", &[]),
            ("fn f() { g() } fn g() {}", &[]),
        ] {
            let found = recursive(SourceFile::parse(code, Edition::CURRENT).tree().syntax());
            assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{code}");
        }
    }
}
