//! Decides whether a cell may run long by itself and so needs the optimiser.

use std::collections::BTreeSet;

use ra_ap_syntax::ast::{self, HasArgList, HasName};
use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxNode};

/// Returns whether the cell in `code`, the source that evcxr made of it, may run long by itself: by a loop, a chain of
/// iterators or recursion. Other cells spend their time in crates, which are always optimised.
pub fn loops(code: &str) -> bool {
    reached(SourceFile::parse(code, Edition::CURRENT).tree().syntax()).iter().any(|item| repeats(item, 4))
}

/// Returns the function that runs the cell, and the items whose names it contains, directly or through other items. The
/// source holds the items of all earlier cells, too.
fn reached(file: &SyntaxNode) -> Vec<SyntaxNode> {
    let (mut reached, mut left): (Vec<_>, Vec<_>) = file.children().partition(|item| {
        let function = ast::Fn::cast(item.clone()).and_then(|function| function.name());
        function.is_some_and(|name| name.text().starts_with("run_user_code_"))
    });
    let mut words = BTreeSet::new();
    let mut next = 0;
    while next < reached.len() {
        words.extend(words_of(&reached[next]));
        next += 1;
        if next == reached.len() {
            let (found, others) = left.into_iter().partition(|item| names_of(item).any(|name| words.contains(&name)));
            left = others;
            reached.extend::<Vec<_>>(found);
        }
    }
    reached
}

fn words_of(node: &SyntaxNode) -> impl Iterator<Item = String> {
    let tokens = node.descendants_with_tokens().filter_map(|element| element.into_token());
    tokens.filter(|token| token.kind() == SyntaxKind::IDENT).map(|token| token.text().to_owned())
}

/// Returns the names by which other code can use an item: its own, those of its methods, and the type of an `impl`.
fn names_of(item: &SyntaxNode) -> impl Iterator<Item = String> {
    let of_impl = ast::Impl::cast(item.clone()).and_then(|block| block.self_ty()).map(|ty| ty.syntax().clone());
    let names: Vec<_> = item.descendants().filter_map(ast::Name::cast).map(|name| name.text().to_string()).collect();
    names.into_iter().chain(of_impl.into_iter().flat_map(|ty| words_of(&ty).collect::<Vec<_>>()))
}

/// Methods of iterators and collections only, which call their argument once for each element.
const REPEATING: &str = " all any chunk_by cmp_by dedup_by dedup_by_key filter_map find_map flat_map fold for_each \
    is_sorted_by map_while max_by max_by_key min_by min_by_key partition position reduce retain rposition scan \
    skip_while sort_by sort_by_cached_key sort_by_key sort_unstable_by sort_unstable_by_key take_while try_fold \
    try_for_each ";

/// Methods that go through an iterator, but that other types have too, such as `map` of `Option`.
const OF_MANY: &str = " collect count cycle filter find inspect last map max min nth product step_by sum unzip ";

/// Methods that make an iterator.
const SOURCES: &str =
    " bytes chars chunks chunks_exact drain into_iter iter iter_mut lines split split_whitespace windows zip ";

/// Functions that make an iterator by calling their argument.
const MAKERS: &str = " from_fn repeat_with successors ";

/// Looks also into the arguments of macros, down to a depth. They are tokens, so they are parsed as expressions
/// first.
fn repeats(node: &SyntaxNode, depth: u8) -> bool {
    let is_in = |name: &str, list: &str| list.contains(&format!(" {name} "));
    node.descendants().any(|node| {
        let found = match node.kind() {
            SyntaxKind::FOR_EXPR | SyntaxKind::WHILE_EXPR | SyntaxKind::LOOP_EXPR => true,
            SyntaxKind::METHOD_CALL_EXPR => ast::MethodCallExpr::cast(node.clone()).is_some_and(|call| {
                let name = call.name_ref().map(|name| name.text().to_string()).unwrap_or_default();
                let closure = call.arg_list().is_some_and(|list| list.syntax().children().any(|arg| is_function(&arg)));
                closure && is_in(&name, REPEATING) || is_in(&name, OF_MANY) && call.receiver().is_some_and(iterates)
            }),
            SyntaxKind::CALL_EXPR => called(&node).is_some_and(|name| is_in(&name, MAKERS)),
            SyntaxKind::FN => ast::Fn::cast(node.clone()).is_some_and(|function| calls_itself(&function)),
            SyntaxKind::MACRO_CALL if depth > 0 => ast::MacroCall::cast(node.clone())
                .and_then(|call| call.token_tree())
                .map(|tokens| tokens.to_string())
                .and_then(|text| Some(text.get(1..text.len().checked_sub(1)?)?.to_owned()))
                .is_some_and(|inner| {
                    // The tokens may be arguments or the body of a function.
                    [format!("fn f() {{ g({inner}); }}"), format!("fn f() {{ {inner} }}")]
                        .iter()
                        .any(|code| repeats(SourceFile::parse(code, Edition::CURRENT).tree().syntax(), depth - 1))
                }),
            _ => false,
        };
        found && !node.ancestors().any(|node| is_evcxr_s_own(&node))
    })
}

pub fn is_evcxr_s_own(node: &SyntaxNode) -> bool {
    let module = ast::Module::cast(node.clone()).and_then(|module| ast::HasName::name(&module));
    module.is_some_and(|name| name.text() == "evcxr_internal_runtime")
}

fn is_function(argument: &SyntaxNode) -> bool {
    argument.kind() == SyntaxKind::CLOSURE_EXPR || argument.kind() == SyntaxKind::PATH_EXPR
}

/// Returns whether a chain of methods begins with a range or contains a method that makes an iterator.
fn iterates(chain: ast::Expr) -> bool {
    match chain {
        ast::Expr::RangeExpr(_) => true,
        ast::Expr::ParenExpr(inner) => inner.expr().is_some_and(iterates),
        ast::Expr::CallExpr(call) => called(call.syntax()).is_some_and(|name| MAKERS.contains(&format!(" {name} "))),
        ast::Expr::MethodCallExpr(call) => {
            let name = call.name_ref().map(|name| name.text().to_string()).unwrap_or_default();
            SOURCES.contains(&format!(" {name} ")) || call.receiver().is_some_and(iterates)
        }
        _ => false,
    }
}

/// Returns the last name in the path of a called function.
fn called(call: &SyntaxNode) -> Option<String> {
    let ast::Expr::PathExpr(path) = ast::CallExpr::cast(call.clone())?.expr()? else { return None };
    Some(path.path()?.segment()?.name_ref()?.text().to_string())
}

pub fn calls_itself(function: &ast::Fn) -> bool {
    let Some(own) = ast::HasName::name(function).map(|name| name.text().to_string()) else { return false };
    let body = function.body().map(|body| body.syntax().clone());
    body.into_iter().flat_map(|body| body.descendants()).any(|node| {
        let method = || ast::MethodCallExpr::cast(node.clone()).filter(|call| is_self(call.receiver()))?.name_ref();
        called(&node).or_else(|| method().map(|name| name.text().to_string())).is_some_and(|name| name == own)
    })
}

/// A method may call a method of the same name of another type, as `forward` does with its layers.
fn is_self(receiver: Option<ast::Expr>) -> bool {
    receiver.is_some_and(|receiver| receiver.syntax().text() == "self")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_found_in_what_people_wrote() {
        let generated = "mod evcxr_internal_runtime { fn f() { loop {} } }\nimpl<T> From<T> for E { }\n";
        let once = [
            "let x = y.map(|z| z + 1);",
            "let s = t.sum(Kind::Float).max().min();",
            "let s = t.size().first().map(|n| n + 1);",
            "let y = net.forward(&x).relu().view([-1, 10]);",
            "let y = tch::no_grad(|| net.forward(&x)); println!(\"{y} {:?}\", y.size());",
            "fn forward(&self, x: &Tensor) -> Tensor { self.fc.forward(&forward_of(x)) }",
        ];
        for body in once {
            assert!(!loops(&format!("{generated}fn run_user_code_3() {{ {body} }}")), "{body}");
        }
        let again = [
            "for i in 0..3 {}",
            "while true {}",
            "let n = loop { break 1 };",
            "let f = || { for x in y {} };",
            "let s = (0..n).map(|x| x * x).sum::<u64>();",
            "let s: f64 = (1..=n).map(f64::from).sum();",
            "let n = v.iter().filter(|x| **x > 0).count();",
            "let s = y.fold(0, |a, b| a + b);",
            "v.sort_by(|a, b| a.total_cmp(b));",
            "let n = std::iter::successors(Some(1u64), |x| x.checked_mul(3)).last();",
            "println!(\"{}\", (0..n).map(|x| x ^ 1).max().unwrap_or(0));",
            "assert!(v.iter().all(|x| x.is_finite()));",
            "let s = vec![xs.iter().sum::<f64>(); 3];",
            "fn fib(n: u64) -> u64 { if n < 2 { n } else { fib(n - 1) + fib(n - 2) } }",
            "impl T { fn depth(&self) -> u64 { Self::depth(&self.0) } }",
        ];
        for body in again {
            assert!(loops(&format!("{generated}fn run_user_code_3() {{ {body} }}")), "{body}");
        }
    }

    #[test]
    fn items_of_earlier_cells_count_where_the_cell_reaches_them() {
        let items = "fn slow() { for i in 0..3 {} }\nfn calls() { slow() }\nstruct S;\n\
            impl S { fn mean(&self) { while a {} } }\nimpl Drop for S { fn drop(&mut self) { loop {} } }\n\
            fn other() {}\n";
        for (body, expected) in [
            ("other();", false),
            ("let a = 1;", false),
            ("slow();", true),
            ("calls();", true),
            ("given(&calls);", true),
            ("v.mean();", true),
            ("let x = store.take_variable::<S>();", true),
        ] {
            assert_eq!(loops(&format!("{items}fn run_user_code_3() {{ {body} }}")), expected, "{body}");
        }
    }
}
