//! The child's stdout: text of the cell, results to show, and lines for evcxr.

use std::time::Instant;

use serde_json::{Map, Value};

const COMPLETE: &str = "EVCXR_EXECUTION_COMPLETE";
const ERROR: &str = "EVCXR_ERROR_OCCURRED";
const PANIC: &str = "EVCXR_PANIC_NOTIFICATION";
const BEGIN_CONTENT: &str = "EVCXR_BEGIN_CONTENT ";
const END_CONTENT: &str = "EVCXR_END_CONTENT";
/// Beginnings of other lines for evcxr, which ignores those that it does not know.
const FOR_EVCXR: [&str; 2] = [CHANGED_TYPE, ASKS_INPUT];
pub const CHANGED_TYPE: &str = "EVCXR_VARIABLE_CHANGED_TYPE:";
pub const ASKS_INPUT: &str = "EVCXR_INPUT_REQUEST";
/// Common beginning of all these lines.
const OURS: &str = "EVCXR_";

/// A piece of the child's stdout.
#[derive(Debug, PartialEq)]
pub enum Piece {
    Text(String),
    /// Something to show: its representations by MIME type.
    Display(Map<String, Value>),
    /// The cell's value, by MIME type: the last output, if nothing follows it.
    Result(Map<String, Value>),
    /// The cell ended by `?` or a panic; `line` is for evcxr.
    Failed {
        panic: bool,
        line: String,
    },
    /// A line for evcxr alone.
    Control(String),
    /// The cell has ended; `line` is for evcxr.
    Complete {
        line: String,
    },
}

/// Divides stdout into pieces as it arrives.
#[derive(Default)]
pub struct Stdout {
    rest: Vec<u8>,
    text: String,
    content: Option<(String, String)>,
    bundle: Map<String, Value>,
    /// When the last representation arrived.
    since: Option<Instant>,
    pieces: Vec<Piece>,
}

impl Stdout {
    /// Takes bytes in and returns the pieces that are complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        for line in rest.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) => self.line(&String::from_utf8_lossy(line)),
                None => self.rest = line.to_vec(),
            }
        }
        self.show_unfinished_line();
        self.end_text();
        std::mem::take(&mut self.pieces)
    }

    /// Returns when the output arrived that waits to become the cell's value, or `None` where none waits.
    pub fn since(&self) -> Option<Instant> {
        self.since.filter(|_| !self.bundle.is_empty())
    }

    /// Returns the waiting output as a display, because other output follows it.
    pub fn flush(&mut self) -> Option<Piece> {
        (!self.bundle.is_empty()).then(|| Piece::Display(std::mem::take(&mut self.bundle)))
    }

    fn line(&mut self, line: &str) {
        if let Some((mime, content)) = &mut self.content {
            if line != END_CONTENT && line != PANIC {
                if !content.is_empty() {
                    content.push('\n');
                }
                content.push_str(line);
                return;
            }
            let (mime, content) = (std::mem::take(mime), std::mem::take(content));
            self.content = None;
            self.add_content(mime, content);
            if line == END_CONTENT {
                return;
            }
        }
        // A line for evcxr may follow text that does not end its line.
        let split = |marker| line.strip_suffix(marker).map(|text| (text, marker));
        if let Some((text, marker)) = split(COMPLETE).or(split(ERROR)).or(split(PANIC)) {
            self.print(text, "");
            self.end_text();
            let line = marker.to_owned();
            if marker == COMPLETE {
                let bundle = std::mem::take(&mut self.bundle);
                if !bundle.is_empty() {
                    self.pieces.push(Piece::Result(bundle));
                }
                self.pieces.push(Piece::Complete { line });
            } else {
                self.end_bundle();
                self.pieces.push(Piece::Failed { panic: marker == PANIC, line });
            }
        } else if let Some((text, mime)) = line.split_once(BEGIN_CONTENT) {
            self.print(text, "");
            self.content = Some((mime.split(' ').next().unwrap_or_default().to_owned(), String::new()));
        } else if FOR_EVCXR.iter().any(|start| line.starts_with(start)) {
            self.end_text();
            self.pieces.push(Piece::Control(line.to_owned()));
        } else {
            self.print(line, "\n");
        }
    }

    /// Adds a form. The forms of one thing follow each other, and a second form of the same type begins the next
    /// thing.
    fn add_content(&mut self, mime: String, content: String) {
        self.end_text();
        if self.bundle.contains_key(&mime) {
            self.end_bundle();
        }
        self.since = Some(Instant::now());
        let json = mime.contains("json").then(|| serde_json::from_str(&content).ok()).flatten();
        self.bundle.insert(mime, json.unwrap_or(Value::String(content)));
    }

    fn print(&mut self, text: &str, end: &str) {
        if !(text.is_empty() && end.is_empty()) {
            self.end_bundle();
            self.text.push_str(text);
            self.text.push_str(end);
        }
    }

    fn end_bundle(&mut self) {
        let display = self.flush();
        self.pieces.extend(display);
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            self.pieces.push(Piece::Text(std::mem::take(&mut self.text)));
        }
    }

    /// Shows a line before its end, such as progress that rewrites it, unless it may be a line for evcxr.
    fn show_unfinished_line(&mut self) {
        let start = &self.rest[..self.rest.len().min(OURS.len())];
        if self.content.is_some() || OURS.as_bytes().starts_with(start) {
            return;
        }
        let shown = match std::str::from_utf8(&self.rest) {
            Ok(_) => self.rest.len(),
            // The rest of the last character may still arrive.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => self.rest.len(),
        };
        let text: Vec<u8> = self.rest.drain(..shown).collect();
        self.print(&String::from_utf8_lossy(&text), "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    #[test]
    fn forms_of_one_thing_are_one_display_and_the_last_is_the_value() {
        let block = |mime: &str, content: &str| format!("{BEGIN_CONTENT}{mime}\n{content}\n{END_CONTENT}\n");
        let all = [
            "one\n",
            &block("text/plain", "a"),
            &block("image/png", "AA"),
            &block("text/plain", "b\nc"),
            "two\n",
            &block("application/x+json", r#"{"k": 1}"#),
            COMPLETE,
            "\n",
        ]
        .concat();
        let expected = [
            text("one\n"),
            Piece::Display(map(json!({"text/plain": "a", "image/png": "AA"}))),
            Piece::Display(map(json!({"text/plain": "b\nc"}))),
            text("two\n"),
            Piece::Result(map(json!({"application/x+json": {"k": 1}}))),
            Piece::Complete { line: COMPLETE.into() },
        ];
        assert_eq!(Stdout::default().feed(all.as_bytes()), expected);
        // The same, byte by byte: only the text comes in smaller pieces.
        let mut stdout = Stdout::default();
        let pieces: Vec<_> = all.bytes().flat_map(|byte| stdout.feed(&[byte])).collect();
        let texts = |pieces: &[Piece]| -> String {
            pieces.iter().filter_map(|p| if let Piece::Text(t) = p { Some(t.as_str()) } else { None }).collect()
        };
        assert_eq!(texts(&pieces), texts(&expected));
        let others = |pieces: Vec<Piece>| -> Vec<Piece> {
            pieces.into_iter().filter(|piece| !matches!(piece, Piece::Text(_))).collect()
        };
        assert_eq!(others(pieces), others(expected.into()));
    }

    #[test]
    fn markers_are_found_behind_text_without_a_line_end() {
        let pieces = Stdout::default().feed(b"half\xc3\xa9EVCXR_PANIC_NOTIFICATION\n 50 %EVCXR_EXECUTION_COMPLETE\n");
        let expected = [
            text("half\u{e9}"),
            Piece::Failed { panic: true, line: PANIC.into() },
            text(" 50 %"),
            Piece::Complete { line: COMPLETE.into() },
        ];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn unfinished_lines_are_shown_and_markers_are_not() {
        let mut stdout = Stdout::default();
        assert_eq!(stdout.feed(b"10 %\r"), [text("10 %\r")]);
        assert_eq!(stdout.feed(b"caf\xc3"), [text("caf")]);
        assert_eq!(stdout.feed(b"\xa9"), [text("\u{e9}")]);
        assert_eq!(stdout.feed(b"\nEVC"), [text("\n")]);
        assert_eq!(stdout.feed(b"XR_EXECUTION_"), []);
        assert_eq!(stdout.feed(b"COMPLETE\n"), [Piece::Complete { line: COMPLETE.into() }]);
        assert_eq!(stdout.feed(b"\xff\xfe!\n"), [text("\u{fffd}\u{fffd}!\n")]);
        assert_eq!(stdout.feed(b"EVCXR_INPUT_REQUEST:name?\n"), [Piece::Control("EVCXR_INPUT_REQUEST:name?".into())]);
        assert_eq!(stdout.feed(b"EVCXR_ is a word\n"), [text("EVCXR_ is a word\n")]);
    }
}
