//! Turns a panic or a failed `?` on stderr into Jupyter's error: the message, the line of the cell, and a hint.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::Config;

pub const PANICKED: &str = " panicked at ";
pub const THREAD: &str = "thread '";

/// The content of an `error` output of Jupyter.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub name: String,
    pub value: String,
    pub traceback: Vec<String>,
}

impl Failure {
    pub fn new(name: &str, value: &str, notes: &[String]) -> Self {
        // The name is bold and has the theme's own colour, because no red has enough contrast on both the light and
        // the dark background of errors.
        let mut traceback = vec![format!("\u{1b}[1m{name}\u{1b}[0m: {value}")];
        traceback.extend(notes.iter().cloned());
        Self { name: name.into(), value: value.into(), traceback }
    }

    /// Returns the content of the `error` message.
    pub fn content(&self) -> Value {
        json!({"ename": self.name, "evalue": self.value, "traceback": self.traceback})
    }

    /// Makes a failure of the text that a failed `?` printed.
    pub fn of_error(text: &str, config: &Config) -> Self {
        let text = message(text.trim(), config);
        Self::new("error", &text, &hint(&text, config).into_iter().collect::<Vec<_>>())
    }

    /// Makes a failure of `todo!`, which is a task and no crash.
    fn of_todo(task: &str, cell: &str) -> Self {
        let task = if task.is_empty() { "this code is still to be written" } else { task };
        let then = if cell.contains("todo!") { "run this cell again" } else { "run its cell, then this one" };
        Self::new("to do", task, &[format!("Write your code in the place of `todo!`, and {then}.")])
    }

    /// Makes a failure of a panic as Rust prints it. `cell` is the user's code, and the file `generated` holds the
    /// source that evcxr made of it.
    pub fn of_panic(text: &str, cell: &str, generated: Option<&Path>, config: &Config) -> Self {
        let (header, rest) = text.split_once('\n').unwrap_or((text, ""));
        let place = header.split_once(PANICKED).map_or("", |(_, place)| place.trim_end_matches(':'));
        let (message, frames) = rest.split_once("\nstack backtrace:\n").unwrap_or((rest, ""));
        let message = message.split("\nnote: run with `RUST_BACKTRACE").next().unwrap_or(message);
        let message = self::message(message.trim(), config);
        if let Some(task) = message.strip_prefix(TODO) {
            return Self::of_todo(task.trim_start_matches(':').trim(), cell);
        }
        let frames = frames.lines().filter_map(|line| line.trim_start().strip_prefix("at "));
        let places: Vec<&str> = std::iter::once(place).chain(frames).collect();
        let mut notes: Vec<String> = vec![];
        if let Some(line) = places.iter().find_map(|place| line_of_cell(place, cell, generated)) {
            notes.push(line);
        }
        // A place in generated code means nothing to the reader. Of a place in a library, its name says more than its
        // folder.
        if !place.is_empty() && !is_generated(place) && !place.starts_with("/rustc/") {
            let library = place.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
            notes.push(format!("  at {}", library.map_or(place, |(_, place)| place)));
        }
        notes.extend(hint(&message, config));
        Self::new("panic", &message, &notes)
    }
}

/// The message of `todo!`; its own text follows after ": ".
const TODO: &str = "not yet implemented";

/// Returns whether `place` lies in the `src/lib.rs` that evcxr makes of a cell.
fn is_generated(place: &str) -> bool {
    place.starts_with("src/lib.rs:") || place.starts_with("./src/lib.rs:")
}

/// Returns the line of the cell that stands at `place` of the generated source.
fn line_of_cell(place: &str, cell: &str, generated: Option<&Path>) -> Option<String> {
    let generated = generated?;
    let local = place.strip_prefix(generated.to_str()?).map(|rest| format!("src/lib.rs{rest}"));
    let place = local.as_deref().unwrap_or(place);
    if !is_generated(place) {
        return None;
    }
    let number: usize = place.rsplit(':').nth(1)?.parse().ok()?;
    let source = std::fs::read_to_string(generated).ok()?;
    let line = source.lines().nth(number.checked_sub(1)?)?.trim();
    // evcxr puts each statement on a line of its own, and its own code before some.
    let ends_with = |line: &str, own: &str| {
        let before = line.strip_suffix(own).and_then(|before| before.chars().next_back());
        line == own || before.is_some_and(|c| !c.is_alphanumeric() && c != '_' && c != '.')
    };
    let part = |line: &str, own: &str| line.len() > 3 && own.contains(line);
    type Alike<'a> = &'a dyn Fn(&str, &str) -> bool;
    let alike: [Alike; 2] = [&ends_with, &part];
    let found = alike.iter().find_map(|alike| {
        let same = |own: &str| !own.trim().is_empty() && alike(line, own.trim());
        let all: Vec<_> = cell.lines().enumerate().filter(|(_, own)| same(own)).collect();
        let (_, own) = all.last()?;
        // Where the cell holds this line several times, count its copies further down in the generated source, and
        // take the line with as many copies further down in the cell. Code of other cells stands before both.
        let after = source.lines().skip(number).filter(|other| alike(other.trim(), own.trim())).count();
        all.get(all.len().saturating_sub(1 + after)).copied()
    });
    let (index, own) = found?;
    Some(format!("  in line {} of this cell: {}", index + 1, own.trim()))
}

/// Returns the message of an error without what a library appends, and without the words of `unwrap`.
fn message(text: &str, config: &Config) -> String {
    let end = config.message_ends.iter().filter_map(|mark| text.find(mark)).min().unwrap_or(text.len());
    let text = &text[..end];
    let Some(value) = text.strip_prefix("called `Result::unwrap()` on an `Err` value: ") else {
        return text.to_owned();
    };
    let held = config.text_errors.iter().find_map(|name| value.strip_prefix(name)?.strip_prefix("(\""));
    held.map_or_else(
        || text.to_owned(),
        |held| held.trim_end_matches("\")").replace("\\n", "\n").replace("\\\"", "\"").replace("\\'", "'"),
    )
}

/// Returns advice on a common error.
fn hint(text: &str, config: &Config) -> Option<String> {
    const UNWRAP: &str = "`?` instead of `unwrap()` ends the cell with the error's own words";
    const POISONED: &str =
        "a cell failed or was interrupted while it held this lock; `clear_poison()` makes the lock usable again";
    let configured = config.hints.iter().find(|hint| hint.words.iter().any(|word| text.contains(word)));
    let unwrapped = ["called `Option::unwrap()` on a `None`", "called `Result::unwrap()` on an `Err`"];
    let found = configured.map(|hint| hint.hint.as_str());
    let found = found.or_else(|| text.contains("PoisonError").then_some(POISONED));
    let found = found.or_else(|| unwrapped.iter().any(|words| text.contains(words)).then_some(UNWRAP));
    found.map(|advice| format!("hint: {advice}"))
}

/// Lines that evcxr prints when a signal ends the process of the cells. The end of the line comes separately, and for
/// seconds all frames of evcxr follow.
pub const SIGNALS: [&str; 3] = ["Segmentation fault.", "Illegal instruction.", "Bus error."];

/// Beginning of Rust's message on lack of memory. Frames of evcxr follow here, too.
pub const NO_MEMORY: &str = "memory allocation of ";

/// Says why a process ended with `status` after it wrote `said` to stderr.
pub fn end_of_process(status: &str, said: &str) -> String {
    let killed = status.contains("signal");
    let memory = said.lines().rev().find(|line| line.starts_with(NO_MEMORY));
    // evcxr's words when it can't load a compiled cell, before it exits with status 99.
    let not_loaded = said.lines().rev().find_map(|line| Some(line.split_once("While processing instruction")?.1));
    if status.contains("SIGKILL") {
        format!("something ended the cell's process: {status}; out of memory?")
    } else if let Some(line) = memory {
        format!("the cell ended its process: {status}; out of memory: {line}")
    } else if let Some(words) = not_loaded {
        let reason = words.split_once("got error: ").map_or(words, |(_, reason)| reason);
        format!("the cell ended its process: {status}; the compiled cell could not be loaded: {reason}")
    } else if status.contains("SIGSEGV") || killed && said.contains("has overflowed its stack") {
        // evcxr's signal handler needs some stack itself, so it cannot report a full one.
        format!("the cell ended its process: {status}; its stack is full: calls are nested too deeply")
    } else if killed && said.contains("Bus error.") {
        format!(
            "the cell ended its process: {status}; a file that it read in place, such as one in runs/*/cache, was cut \
             off meanwhile, or the disk is full"
        )
    } else if killed && SIGNALS.iter().any(|signal| said.contains(signal)) {
        format!("the cell ended its process: {status}; unsafe code used memory that is not its own")
    } else {
        format!("the cell ended its process: {status}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_lines_the_one_that_panicked_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let generated = folder.path().join("lib.rs");
        std::fs::write(&generated, "check(a);\nfn run() {\ncheck(a);\nlet a = 2;\n{ check(a);\n}\n").expect("written");
        let line = |number| line_of_cell(&format!("src/lib.rs:{number}:3"), CELL, Some(&generated));
        const CELL: &str = "check(a);\nlet a = 2;\ncheck(a);\nlet b = recheck(a);";
        assert_eq!(line(3).as_deref(), Some("  in line 1 of this cell: check(a);"));
        assert_eq!(line(5).as_deref(), Some("  in line 3 of this cell: check(a);"));
    }

    #[test]
    fn a_todo_is_told_in_a_sentence_and_is_no_panic() {
        let text =
            |said: &str| format!("\nthread 'x' panicked at src/lib.rs:2:5:\n{said}\nstack backtrace:\n   0: f\n");
        let of = |said: &str, cell: &str| Failure::of_panic(text(said).trim_start(), cell, None, &Config::default());
        let failure = of("not yet implemented: half_width: return half the width", "check(half_width(1.0));");
        assert_eq!((failure.name.as_str(), failure.value.as_str()), ("to do", "half_width: return half the width"));
        assert_eq!(failure.traceback.len(), 2);
        assert!(failure.traceback[1].contains("in the place of `todo!`, and run its cell, then this one."));
        let failure = of("not yet implemented", "todo!()");
        assert_eq!(failure.value, "this code is still to be written");
        assert!(failure.traceback[1].contains("run this cell again"));
    }
}
