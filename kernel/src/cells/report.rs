//! The compiler's report on a cell, corrected for readers: with the right place, and without colours that a theme
//! makes unreadable.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

static COLOURS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("\u{1b}\\[[0-9;]*m").ok());
/// evcxr's header, which always names the beginning of the cell as the place.
static HEADER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^(\s*[╭├,]─\[ ?[^\]]*?):\d+:\d+( ?\])$").ok());
static SOURCE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^(\s*(\d+) [│|] )").ok());

/// Removes colours: they suit one background only, but the theme's own colour of text suits all.
pub fn plain(line: &str) -> String {
    COLOURS.as_ref().map_or_else(|| line.to_owned(), |colours| colours.replace_all(line, "").into_owned())
}

/// Removes colours from the lines of an error, and puts its place into the header.
pub fn readable(lines: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = lines.iter().map(|line| plain(line)).collect();
    if let Some(header) = HEADER.as_ref() {
        let headers: Vec<usize> = (0..lines.len()).filter(|&at| header.is_match(&lines[at])).collect();
        for (index, &at) in headers.iter().enumerate() {
            let end = headers.get(index + 1).copied().unwrap_or(lines.len());
            if let Some((row, column)) = place(&lines[at..end]) {
                lines[at] = header.replace(&lines[at], format!("${{1}}:{row}:{column}${{2}}")).into_owned();
            }
        }
    }
    if let Some(first) = lines.first_mut().filter(|line| !line.is_empty()) {
        *first = format!("\u{1b}[1m{first}\u{1b}[0m");
    }
    lines
}

/// Beginnings of labels that explain another place than that of the error.
const BESIDE: [&str; 4] = ["expected due to", "note:", "help:", "arguments to this"];

/// Errors that follow from an earlier one: beginnings of the cause, which may be any, and of the effect.
const FOLLOW: [(&str, &str); 2] =
    [("duplicate definitions", "multiple applicable items in scope"), ("", "type annotations needed")];

/// How rustc ranks what evcxr calls an error. evcxr passes on the name of a lint, and the rank only where the compiler
/// gave no label.
#[derive(Clone, Copy, PartialEq)]
enum Rank {
    Error,
    /// A lint, whose rank evcxr does not say.
    Lint,
    Warning,
}

static LINT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\[[a-z_:]+\] Error: ").ok());

fn rank(error: &Value) -> Rank {
    let said = error["evalue"].as_str().unwrap_or_default();
    let lines = error["traceback"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let lines: Vec<String> = lines.map(plain).collect();
    let labelled = |label: &str| {
        let label = format!("{label}: {}", said.lines().next().unwrap_or_default());
        lines.iter().any(|line| line.contains(&label))
    };
    if labelled("warning") {
        return Rank::Warning;
    }
    let named = lines.first().is_some_and(|line| LINT.as_ref().is_some_and(|lint| lint.is_match(line)));
    if named && !labelled("error") { Rank::Lint } else { Rank::Error }
}

/// Returns whether evcxr reports nothing but warnings.
pub fn are_warnings(errors: &[Value]) -> bool {
    !errors.is_empty() && errors.iter().all(|error| rank(error) == Rank::Warning)
}

/// Removes warnings beside errors, and errors that only follow from an earlier one.
pub fn without_consequences(errors: &[Value]) -> Vec<&Value> {
    let text = |error: &Value| error["evalue"].as_str().unwrap_or_default().to_owned();
    let ranks: Vec<Rank> = errors.iter().map(rank).collect();
    let worst = [Rank::Error, Rank::Lint, Rank::Warning].into_iter().find(|rank| ranks.contains(rank));
    let mut kept: Vec<&Value> = vec![];
    for (error, _) in errors.iter().zip(ranks).filter(|(_, rank)| Some(*rank) == worst) {
        let said = text(error);
        let follows = |first: &&Value| {
            let first = text(first);
            // The same words about another place are the same mistake to the reader.
            first == said && !said.is_empty() && said.starts_with("cannot find ")
                || FOLLOW
                    .iter()
                    .any(|(cause, effect)| first.starts_with(cause) && said.starts_with(effect) && first != said)
        };
        if !kept.iter().any(follows) {
            kept.push(error);
        }
    }
    kept
}

/// Returns line and column of the first mark in a report.
fn place(lines: &[String]) -> Option<(usize, usize)> {
    let source = SOURCE.as_ref()?;
    let numbered = lines.iter().enumerate().filter_map(|(at, line)| Some((at, source.captures(line)?)));
    for (at, captures) in numbered {
        let (margin, row) = (captures[1].chars().count(), captures[2].parse().ok()?);
        // The line below a source line holds the marks. The lines below that hold the labels, each at the column of
        // its mark.
        let Some(marks) = lines.get(at + 1).filter(|line| !source.is_match(line)) else { continue };
        let marks: Vec<char> = marks.chars().skip(margin).collect();
        let is_mark = |c: &char| matches!(c, '─' | '┬' | '╭' | '^');
        let labels = lines.iter().skip(at + 2).take_while(|line| !source.is_match(line)).filter_map(|line| {
            let column = line.chars().skip(margin).position(|c| c == '╰')?;
            Some((column, line.split_once('╰')?.1.trim_start_matches(['─', ' '])))
        });
        let main = labels.into_iter().find(|(_, text)| !BESIDE.iter().any(|start| text.starts_with(start)));
        let column = match main {
            Some((column, _)) if marks.get(column).is_some_and(is_mark) => {
                Some(column - marks[..column].iter().rev().take_while(|c| is_mark(c)).count())
            }
            _ => marks.iter().position(is_mark),
        };
        if let Some(column) = column {
            return Some((row, column + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_that_follows_from_another_is_left_out() {
        let errors = ["duplicate definitions with name `a`", "multiple applicable items in scope", "mismatched types"];
        let errors = errors.map(|text| json!({"evalue": text}));
        assert_eq!(without_consequences(&errors), [&errors[0], &errors[2]]);
        // Two places of the same kind of mistake are two mistakes.
        assert_eq!(without_consequences(&[errors[2].clone(), errors[2].clone()]).len(), 2);
    }

    #[test]
    fn warnings_are_left_out_beside_an_error() {
        let report = |header: &str, said: &str, label: &str| {
            let first = format!("\u{1b}[31m{header}\u{1b}[0m {said}");
            json!({"evalue": said, "traceback": [first, format!("  ── {label}")]})
        };
        let error = report("[E0308] Error:", "mismatched types", "expected `u8`, found `&str`");
        let unused = report("[unused_variables] Error:", "unused variable: `x`", "warning: unused variable: `x`");
        let unreachable = report("[unreachable_code] Error:", "unreachable statement", "unreachable statement");
        let denied = report("[overflowing_literals] Error:", "literal out of range", "error: literal out of range");
        let all = [unused.clone(), error.clone(), unreachable.clone()];
        assert_eq!(without_consequences(&all), [&error]);
        assert_eq!(without_consequences(&[unused.clone(), denied.clone()]), [&denied]);
        assert_eq!(without_consequences(&[unused.clone(), unreachable.clone()]), [&unreachable]);
        assert!(
            are_warnings(std::slice::from_ref(&unused)) && !are_warnings(&[unused, unreachable]) && !are_warnings(&[])
        );
    }

    #[test]
    fn the_header_names_the_first_mark() {
        let report = [
            "\u{1b}[31m[E0308] Error:\u{1b}[0m mismatched types",
            "   ╭─[ cell 3:1:1 ]",
            "   │",
            " 2 │ let b: \u{1b}[38;5;54mbool\u{1b}[0m = 5;",
            "   │        ──┬─   ┬  ",
            "   │          ╰─────── expected due to this",
            "   │               │  ",
            "   │               ╰── expected `bool`, found integer",
            "───╯",
        ]
        .map(str::to_owned);
        let shown = readable(&report);
        assert_eq!(shown[0], "\u{1b}[1m[E0308] Error: mismatched types\u{1b}[0m");
        assert_eq!(shown[1], "   ╭─[ cell 3:2:15 ]");
        assert_eq!(shown[3], " 2 │ let b: bool = 5;");
        assert_eq!(readable(&["no report".to_owned()]), ["\u{1b}[1mno report\u{1b}[0m"]);
    }
}
