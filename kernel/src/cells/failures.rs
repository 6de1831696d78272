//! Why a cell failed, for people: found in what it printed on stderr, without what only tells about generated code.

use std::path::Path;

pub const PANICKED: &str = " panicked at ";
pub const THREAD: &str = "thread '";

/// An `error` output of Jupyter.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub name: String,
    pub value: String,
    pub traceback: Vec<String>,
}

impl Failure {
    pub fn new(name: &str, value: &str, notes: &[String]) -> Self {
        // Bold in the theme's own colour: no red has enough contrast on the light and the dark background of errors.
        let mut traceback = vec![format!("\u{1b}[1m{name}\u{1b}[0m: {value}")];
        traceback.extend(notes.iter().cloned());
        Self { name: name.into(), value: value.into(), traceback }
    }

    /// The text that a cell's last `?` printed.
    pub fn of_error(text: &str) -> Self {
        let text = without_frames(text.trim());
        Self::new("error", &text, &hint(&text).into_iter().collect::<Vec<_>>())
    }

    /// Code that is still to be written is no crash: what to write, in a sentence.
    fn of_todo(task: &str, cell: &str) -> Self {
        let task = if task.is_empty() { "this code is still to be written" } else { task };
        let then = if cell.contains("todo!") { "run this cell again" } else { "run its cell, then this one" };
        Self::new("to do", task, &[format!("Write your code in the place of `todo!`, and {then}.")])
    }

    /// A panic as Rust prints it. `cell` is what the user wrote, `generated` the source that evcxr made of it.
    pub fn of_panic(text: &str, cell: &str, generated: Option<&Path>) -> Self {
        let (header, rest) = text.split_once('\n').unwrap_or((text, ""));
        let place = header.split_once(PANICKED).map_or("", |(_, place)| place.trim_end_matches(':'));
        let (message, frames) = rest.split_once("\nstack backtrace:\n").unwrap_or((rest, ""));
        let message = message.split("\nnote: run with `RUST_BACKTRACE").next().unwrap_or(message);
        let message = without_frames(message.trim());
        if let Some(task) = message.strip_prefix(TODO) {
            return Self::of_todo(task.trim_start_matches(':').trim(), cell);
        }
        let frames = frames.lines().filter_map(|line| line.trim_start().strip_prefix("at "));
        let places: Vec<&str> = std::iter::once(place).chain(frames).collect();
        let mut notes: Vec<String> = vec![];
        if let Some(line) = places.iter().find_map(|place| line_of_cell(place, cell, generated)) {
            notes.push(line);
        }
        // Generated code is no place for a reader, and of libraries the name says more than the folder.
        if !place.is_empty() && !is_generated(place) && !place.starts_with("/rustc/") {
            let library = place.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
            notes.push(format!("  at {}", library.map_or(place, |(_, place)| place)));
        }
        notes.extend(hint(&message));
        Self::new("panic", &message, &notes)
    }
}

/// What `todo!` panics with, and ": " before its text.
const TODO: &str = "not yet implemented";

/// `src/lib.rs` of the package that evcxr makes of a cell.
fn is_generated(place: &str) -> bool {
    place.starts_with("src/lib.rs:") || place.starts_with("./src/lib.rs:")
}

/// Which line of the cell stands at `place` of the generated source.
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
    // evcxr puts statements on lines of their own, and its own code before some.
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
        // Of equal lines it is the one that as many follow: what other cells left in the source stands before.
        let after = source.lines().skip(number).filter(|other| alike(other.trim(), own.trim())).count();
        all.get(all.len().saturating_sub(1 + after)).copied()
    });
    let (index, own) = found?;
    Some(format!("  in line {} of this cell: {}", index + 1, own.trim()))
}

/// libtorch appends where in C++ an error arose; what was wrong, shapes included, stands before that.
pub fn without_frames(text: &str) -> String {
    let end = ["\nException raised from ", "\\nException raised from ", "\nframe #0: ", "\\nframe #0: "];
    let end = end.iter().filter_map(|mark| text.find(mark)).min().unwrap_or(text.len());
    let text = &text[..end];
    let torch = "called `Result::unwrap()` on an `Err` value: Torch(\"";
    match text.strip_prefix(torch) {
        Some(message) => message.trim_end_matches("\")").replace("\\n", "\n").replace("\\\"", "\"").replace("\\'", "'"),
        None => text.to_owned(),
    }
}

/// What to do about errors that everybody meets.
fn hint(text: &str) -> Option<String> {
    let hints = [
        (
            &["shapes cannot be multiplied", "must match the size", "invalid for input of size", "size mismatch"][..],
            "`x.size()` tells the shape of a tensor; inputs of the models here are [batch, 3, height, width]",
        ),
        (&["expected scalar type", "same dtype"], "`x.to_kind(Kind::Float)` converts; labels are Kind::Int64"),
        (&["on the same device", "different devices"], "`x.to_device(lab.device)` moves a tensor"),
        (&["CUDA out of memory"], "a smaller batch needs less: `lab.profile.batch_size = 32;`"),
        (&["does not require grad"], "the loss has to come from a model with trainable weights, outside `no_grad`"),
        (
            &["called `Option::unwrap()` on a `None`", "called `Result::unwrap()` on an `Err`"],
            "`?` instead of `unwrap()` ends the cell with the error's own words",
        ),
    ];
    let found = hints.iter().find(|(words, _)| words.iter().any(|word| text.contains(word)));
    found.map(|(_, advice)| format!("hint: {advice}"))
}

/// evcxr prints these, the end of the line by itself, and then for seconds all of its own frames, when the process of
/// the cells dies of a signal.
pub const SIGNALS: [&str; 3] = ["Segmentation fault.", "Illegal instruction.", "Bus error."];

/// How Rust says that there is no more memory; frames of evcxr's follow here, too.
pub const NO_MEMORY: &str = "memory allocation of ";

/// Why a process ended with `status`, after it said `said` on stderr.
pub fn end_of_process(status: &str, said: &str) -> String {
    let memory = said.lines().rev().find(|line| line.starts_with(NO_MEMORY));
    if status.contains("SIGKILL") {
        format!("something ended the cell's process: {status}; out of memory?")
    } else if let Some(line) = memory {
        format!("the cell ended its process: {status}; out of memory: {line}")
    } else if status.contains("SIGSEGV") || said.contains("has overflowed its stack") {
        // evcxr's handler of signals needs some stack itself.
        format!("the cell ended its process: {status}; its stack is full: calls are nested too deeply")
    } else if SIGNALS.iter().any(|signal| said.contains(signal)) {
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
        let of = |said: &str, cell: &str| Failure::of_panic(text(said).trim_start(), cell, None);
        let failure = of("not yet implemented: half_width: return half the width", "check(half_width(1.0));");
        assert_eq!((failure.name.as_str(), failure.value.as_str()), ("to do", "half_width: return half the width"));
        assert_eq!(failure.traceback.len(), 2);
        assert!(failure.traceback[1].contains("in the place of `todo!`, and run its cell, then this one."));
        let failure = of("not yet implemented", "todo!()");
        assert_eq!(failure.value, "this code is still to be written");
        assert!(failure.traceback[1].contains("run this cell again"));
    }
}
