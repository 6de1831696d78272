//! What rust-analyzer's parser finds in a cell before it runs.

use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxToken, TextSize, ast};

/// Returns the status of `is_complete_reply`: whether Return should run the code or start a new line.
pub fn completeness(code: &str) -> &'static str {
    let code = without_commands(code);
    let mut open = vec![];
    for token in tokens(&code) {
        let closing = match token.kind() {
            SyntaxKind::L_PAREN => Some(SyntaxKind::R_PAREN),
            SyntaxKind::L_BRACK => Some(SyntaxKind::R_BRACK),
            SyntaxKind::L_CURLY => Some(SyntaxKind::R_CURLY),
            _ => None,
        };
        open.extend(closing);
        match token.kind() {
            kind @ (SyntaxKind::R_PAREN | SyntaxKind::R_BRACK | SyntaxKind::R_CURLY) if open.pop() != Some(kind) => {
                return "invalid";
            }
            SyntaxKind::STRING | SyntaxKind::BYTE_STRING if !is_closed(token.text()) => return "incomplete",
            SyntaxKind::COMMENT if token.text().starts_with("/*") && !token.text().ends_with("*/") => {
                return "incomplete";
            }
            _ => {}
        }
    }
    if !open.is_empty() {
        return "incomplete";
    }
    let parse = in_function(&code);
    // More code can mend an error at the end of the code.
    let end = TextSize::of(BEFORE) + TextSize::of(code.trim_end());
    match parse.errors().iter().map(|error| error.range().start()).min() {
        None => "complete",
        Some(first) if first >= end => "incomplete",
        Some(_) => "invalid",
    }
}

/// Returns the first mistake, with its line, in code that no further line can mend.
pub fn error(code: &str) -> Option<String> {
    // evcxr would accept the level, and could not compile any cell from then on.
    let levels = ["", "0", "1", "2", "3", "s", "z"];
    let commands = code.lines().take(first_of_rust(code).unwrap_or(usize::MAX));
    if let Some(level) =
        commands.filter_map(|line| line.trim().strip_prefix(":opt")).find(|l| !levels.contains(&l.trim()))
    {
        return Some(format!("the optimization level is 0, 1, 2, 3, s or z, got {}", level.trim()));
    }
    if completeness(code) != "invalid" {
        return None;
    }
    let first = in_function(&without_commands(code)).errors().into_iter().min_by_key(|error| error.range().start())?;
    let at = usize::from(first.range().start()).saturating_sub(BEFORE.len()).min(code.len());
    let line = code.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1;
    Some(format!("syntax error in line {line} of this cell: {first}"))
}

/// Returns the names that a cell binds for later cells, in order.
pub fn variables(code: &str) -> Vec<String> {
    let statements = body(code).into_iter().flat_map(|body| body.syntax().children()).filter_map(ast::LetStmt::cast);
    let patterns = statements.filter_map(|statement| statement.syntax().children().find_map(ast::Pat::cast));
    patterns
        .flat_map(|pattern| pattern.syntax().descendants().filter_map(ast::IdentPat::cast))
        .filter_map(|pattern| pattern.syntax().children().find_map(ast::Name::cast))
        .map(|name| name.syntax().text().to_string())
        .collect()
}

/// Returns the statements and items of a cell.
pub fn body(code: &str) -> Option<ast::StmtList> {
    in_function(&without_commands(code)).tree().syntax().descendants().find_map(ast::StmtList::cast)
}

/// Returns whether `code` is one expression and nothing else.
pub fn is_expression(code: &str) -> bool {
    let body = body(code).filter(|_| completeness(code) == "complete" && parted(code).0.trim().is_empty());
    body.is_some_and(|body| body.tail_expr().is_some() && body.statements().next().is_none())
}

/// Returns whether the cell's value contains a `?`.
pub fn ends_by_question_mark(code: &str) -> bool {
    let tail = body(code).and_then(|body| body.tail_expr());
    tail.is_some_and(|tail| tail.syntax().descendants().any(|node| node.kind() == SyntaxKind::TRY_EXPR))
}

/// Returns the code by which evcxr inspects the word at `cursor`, counted in characters. evcxr inspects the last word
/// of the code, and understands no open bracket. Where there is no word, the function is inspected whose call is
/// open.
pub fn inspected(code: &str, cursor: usize) -> String {
    let at = code.char_indices().nth(cursor).map_or(code.len(), |(at, _)| at);
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut end = code[at..].find(|c| !in_word(c)).map_or(code.len(), |length| at + length);
    if !code[..end].ends_with(in_word) {
        let open = Brackets::of(&code[..end]).open;
        let call =
            open.iter().rev().find(|open| open.kind == SyntaxKind::L_PAREN && code[..open.at].ends_with(in_word));
        match call {
            Some(call) => end = call.at,
            None => return code[..end].to_owned(),
        }
    }
    // evcxr recognises the name of a method only before a bracket.
    let call = if code[end..].starts_with('(') { "(" } else { "" };
    let brackets = Brackets::of(&code[..end]);
    let first = brackets.open.iter().find(|open| open.kind != SyntaxKind::L_CURLY);
    match first {
        Some(first) => format!("{}{}{call}", &code[..first.statement], code[brackets.argument..end].trim_start()),
        None => format!("{}{call}", &code[..end]),
    }
}

struct Open {
    kind: SyntaxKind,
    at: usize,
    /// Where the statement around the bracket begins, and where the argument begins.
    statement: usize,
    argument: usize,
}

/// The brackets that are open at the end of code, and where its last argument begins.
struct Brackets {
    open: Vec<Open>,
    argument: usize,
}

impl Brackets {
    fn of(code: &str) -> Self {
        let (mut open, mut statement, mut argument) = (Vec::<Open>::new(), 0, 0);
        for token in tokens(code) {
            let (at, end) = (usize::from(token.text_range().start()), usize::from(token.text_range().end()));
            match token.kind() {
                kind @ (SyntaxKind::L_PAREN | SyntaxKind::L_BRACK | SyntaxKind::L_CURLY) => {
                    open.push(Open { kind, at, statement, argument });
                    argument = end;
                    if kind == SyntaxKind::L_CURLY {
                        statement = end;
                    }
                }
                SyntaxKind::R_PAREN | SyntaxKind::R_BRACK | SyntaxKind::R_CURLY => {
                    if let Some(closed) = open.pop() {
                        (statement, argument) = (closed.statement, closed.argument);
                    }
                }
                SyntaxKind::SEMICOLON => (statement, argument) = (end, end),
                SyntaxKind::COMMA => argument = end,
                _ => {}
            }
        }
        Self { open, argument }
    }
}

const BEFORE: &str = "fn cell() {";

fn in_function(code: &str) -> ra_ap_syntax::Parse<SourceFile> {
    SourceFile::parse(&format!("{BEFORE}{}\n}}", code.trim_end()), Edition::Edition2024)
}

fn tokens(code: &str) -> impl Iterator<Item = SyntaxToken> {
    let parse = SourceFile::parse(code, Edition::Edition2024);
    parse.tree().syntax().clone().descendants_with_tokens().filter_map(|element| element.into_token())
}

/// Replaces evcxr's commands, such as `:dep` and `!ls`, by empty lines. They stand above the first line of Rust,
/// which may begin with `::`.
fn without_commands(code: &str) -> String {
    let rust = first_of_rust(code);
    let lines =
        code.lines().enumerate().map(|(index, line)| if rust.is_none_or(|rust| index < rust) { "" } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the index of the first line that is neither a command, nor a comment, nor empty.
fn first_of_rust(code: &str) -> Option<usize> {
    code.lines().position(|line| {
        let begun = line.trim_start();
        let command = line.starts_with('!') || begun.starts_with(':') && !begun.starts_with("::");
        !command && !begun.is_empty() && !line.starts_with("//")
    })
}

/// Divides code into evcxr's commands, with the comments among them, and Rust.
pub fn parted(code: &str) -> (String, String) {
    let lines: Vec<&str> = code.split_inclusive('\n').collect();
    let (commands, rust) = lines.split_at(first_of_rust(code).unwrap_or(lines.len()));
    (commands.concat(), rust.concat())
}

/// Returns the commands for the shell.
pub fn commands(code: &str) -> impl Iterator<Item = &str> {
    let rust = first_of_rust(code).unwrap_or(usize::MAX);
    code.lines().take(rust).filter_map(|line| line.strip_prefix('!'))
}

/// Changes code for evcxr. A first line of Rust that begins with `::` is indented, because evcxr would take it for a
/// command. A command that Interrupt ends reports success, because evcxr shows the output of no other one.
pub fn for_evcxr(code: &str) -> String {
    let rust = first_of_rust(code).unwrap_or(usize::MAX);
    let lines = code.split_inclusive('\n').enumerate().map(|(index, line)| match line.strip_prefix('!') {
        Some(command) if index < rust => format!("!trap 'exit 0' TERM; {}", command.trim_start_matches('!')),
        None if index == rust && line.trim_start().starts_with(':') => format!("\t{line}"),
        _ => line.to_owned(),
    });
    lines.collect()
}

fn is_closed(string: &str) -> bool {
    let inner = string.trim_start_matches(['b', 'c', 'r']);
    let marks = inner.len() - inner.trim_start_matches('#').len();
    let closing = format!("\"{}", "#".repeat(marks));
    let raw = string.len() > inner.len() && string[..string.len() - inner.len()].contains('r');
    let escaped = |text: &str| text.trim_end_matches('"').chars().rev().take_while(|&c| c == '\\').count() % 2 == 1;
    inner.len() > closing.len() + marks && inner.ends_with(&closing) && (raw || !escaped(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_commands_and_paths_from_the_root_are_no_mistakes() {
        for code in ["!echo hello from the shell", "!ls -1 / | head -3", "::std::mem::drop(1);", "!pwd\n!echo it's"] {
            assert_eq!(error(code), None, "{code}");
        }
        assert!(error("let a = ) 1;").is_some());
        assert!(error(":opt 9\n1 + 1").is_some_and(|error| error.ends_with("got 9")));
        for code in [":opt", ":opt 3", ":opt s\n1", "let a = \"\n:opt 9\";"] {
            assert_eq!(error(code), None, "{code}");
        }
        // Below the first line of Rust nothing is a command.
        for code in ["let css = r\"\n:root { color: red }\n!x\";", "let a = true &&\n!false;\na"] {
            assert_eq!((completeness(code), error(code)), ("complete", None), "{code}");
        }
        assert_eq!(completeness("a &&\n:b"), "invalid");
        assert_eq!(for_evcxr(":vars\n// a\n\n ::a();\n::b();"), ":vars\n// a\n\n\t ::a();\n::b();");
        for code in ["a();\n::b();", ":dep a", "", "a\r\nb\n", "a ||\n!b"] {
            assert_eq!(for_evcxr(code), code);
        }
        assert_eq!(for_evcxr(":dep a\n!ls -l\na()"), ":dep a\n!trap 'exit 0' TERM; ls -l\na()");
        assert_eq!(commands("!ls\n:dep a\n!pwd\n!a()\nb\n!c").collect::<Vec<_>>(), ["ls", "pwd", "a()"]);
    }

    #[test]
    fn the_word_under_the_cursor_is_inspected() {
        // The cursor is at the bar.
        for (code, asked) in [
            ("lab.ru|ns()?", "lab.runs("),
            ("lab.|runs()?", "lab.runs("),
            ("l|ab.runs()?", "lab"),
            ("let x = 1;\nla|b", "let x = 1;\nlab"),
            ("println!(\"{}\", lab.ru|ns()?);", "lab.runs("),
            ("let x = 1;\nfit(&mut pupil, &tr|ain, x)", "let x = 1;&train"),
            ("fit(&mut pu|pil, &train, x)", "&mut pupil"),
            ("fit(|)", "fit("),
            ("let h = fit(&mut pupil, |", "let h = fit("),
            ("for i in 0..3 {\n    let x = lab.qu|eue;\n}", "for i in 0..3 {\n    let x = lab.queue"),
            ("let a = [1, nu|mber];", "number"),
            ("let \u{e9} = 1; nu|mber", "let \u{e9} = 1; number"),
            ("", ""),
        ] {
            let cursor = code.chars().position(|c| c == '|').unwrap_or_default();
            assert_eq!(inspected(&code.replacen('|', "", 1), cursor), asked, "{code}");
        }
    }

    #[test]
    fn return_runs_whole_cells_only() {
        for code in [
            "1 + 1",
            "let a = vec![1, 2];\na",
            ":dep serde = \"1\"",
            "fn f() -> i32 { 3 }",
            "\"a \\\" b\"",
            "r#\"x\"#",
            "",
        ] {
            assert_eq!(completeness(code), "complete", "{code}");
        }
        for code in ["let a = [1,", "fn f() {", "\"open", "\"open \\\"", "/* note", "let x =", "if a", "r#\"x\""] {
            assert_eq!(completeness(code), "incomplete", "{code}");
        }
        for code in ["let a = );", "fn f() { ] }", "let 5x = ;\nlet y = 1;", "a b c;\n1"] {
            assert_eq!(completeness(code), "invalid", "{code}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        assert_eq!(
            error("let a = 1;\nlet = 3;\na"),
            Some("syntax error in line 2 of this cell: expected pattern".into())
        );
        for code in
            ["let a = vec![1, 2];", ":dep x = \"1\"\nx::y()", "let a =", "#![allow(unused)]\nlet a = 1;", "let a = 1"]
        {
            assert_eq!(error(code), None, "{code}");
        }
    }

    #[test]
    fn the_value_of_a_cell_may_come_out_of_a_question_mark() {
        assert!(ends_by_question_mark("let a = 1;\ngallery(&a)?"));
        assert!(ends_by_question_mark("lab.runs()?.len()"));
        for code in ["gallery(&a)?;", "let a = b()?;\na", "", "let a ="] {
            assert!(!ends_by_question_mark(code), "{code}");
        }
    }

    #[test]
    fn an_expression_has_a_value_and_no_statements() {
        for code in ["a", "f(1)?", "{ let b = 1; b }", "::std::mem::size_of::<u8>()", "if a { 1 } else { 2 }"] {
            assert!(is_expression(code), "{code}");
        }
        for code in ["", "a;", "let a = 1", "a; b", ":vars", "!ls", "fn f() {}", "a b", "(", "!ls\na"] {
            assert!(!is_expression(code), "{code}");
        }
    }

    #[test]
    fn only_what_outlives_the_cell_is_a_variable() {
        let code = ":vars\nlet mut a = 1;\nlet (b, _c) = { let inner = 2; (inner, 3) };\nfn f() { let d = 1; }\n\
            if let Some(e) = Some(1) {}\nlet Point { x, y: z } = p;";
        assert_eq!(variables(code), ["a", "b", "_c", "x", "z"]);
    }
}
