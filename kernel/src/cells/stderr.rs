//! The child's stderr: text to show at once, and text that may turn out to be the reason why a cell failed.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cells::failures::{Failure, NO_MEMORY, PANICKED, SIGNALS, THREAD};
use crate::config::Config;

/// The kernel's macro `eprintln!` puts these around the text of an error that ends a cell by `?`.
const ERROR_BEGIN: &str = "\u{1e}error\n";
const ERROR_END: &str = "\n\u{1e}end\n";
/// The lines before and after the frames of a panic.
const FRAMES: &str = "stack backtrace:\n";
const END_OF_FRAMES: &str = "note: Some details are omitted";

/// Text that may be the reason of a failure is held back no longer than this.
pub const HOLD: Duration = Duration::from_millis(300);
const HOLD_OF_FRAMES: Duration = Duration::from_secs(10);

/// The child's stderr. It holds text back for a moment that may be the reason of a failure.
#[derive(Default)]
pub struct Stderr {
    held: String,
    since: Option<Instant>,
    bytes: Vec<u8>,
    frames: Frames,
}

/// Removes the frames that follow a panic in a thread of the cell's own.
#[derive(Default)]
struct Frames {
    within: bool,
    /// The beginning of a line that has not ended.
    rest: String,
}

impl Frames {
    fn without(&mut self, text: &str) -> String {
        let mut kept = String::new();
        for line in text.split_inclusive('\n') {
            if !self.within {
                self.within = line == FRAMES;
                kept.push_str(if self.within { "" } else { line });
                continue;
            }
            self.rest.push_str(line);
            if self.rest.ends_with('\n') {
                let line = std::mem::take(&mut self.rest);
                self.within = is_frame(&line);
                kept.push_str(if self.within { "" } else { &line });
            }
        }
        kept
    }
}

fn is_frame(line: &str) -> bool {
    let words = line.trim_start();
    let number = words.split_once(": ").is_some_and(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()));
    number && words.len() < line.len()
        || words.starts_with("at ") && line.starts_with("    ")
        || line.starts_with(END_OF_FRAMES)
}

impl Stderr {
    /// Takes bytes in and returns the text that can be shown at once.
    pub fn feed(&mut self, bytes: &[u8]) -> String {
        self.bytes.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.bytes) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.bytes.len(),
        };
        let text: Vec<u8> = self.bytes.drain(..whole).collect();
        self.held.push_str(&String::from_utf8_lossy(&text));
        let start = self.held_from();
        let shown = self.held[..start].to_owned();
        self.held.drain(..start);
        self.since = (!self.held.is_empty()).then(|| self.since.unwrap_or_else(Instant::now));
        self.frames.without(&shown)
    }

    /// Returns whether text has been held back for too long. The cell may be `running` or not.
    pub fn is_overdue(&self, running: bool) -> bool {
        // Finding frames takes seconds where libraries are large.
        let panics = self.held.contains(FRAMES) || running && self.held.contains(PANICKED);
        let hold = if panics && !self.held.contains(END_OF_FRAMES) { HOLD_OF_FRAMES } else { HOLD };
        self.since.is_some_and(|since| since.elapsed() > hold) && self.end_of_signal().is_none()
    }

    /// Returns the text that was held back, because it is ordinary text.
    pub fn release(&mut self) -> String {
        self.since = None;
        let text = std::mem::take(&mut self.held);
        self.frames.without(&text.replace(ERROR_BEGIN, "").replace(ERROR_END, "\n"))
    }

    /// Returns the text that was held back when the process ended, without evcxr's frames.
    pub fn release_of_ended(&mut self) -> String {
        if let Some(end) = self.end_of_signal() {
            self.held.truncate(end);
        }
        self.release()
    }

    /// Returns whether the text of a failed `?` is held back.
    pub fn holds_error(&self) -> bool {
        self.held.contains(ERROR_BEGIN)
    }

    /// Returns the end of the line that reports a signal.
    fn end_of_signal(&self) -> Option<usize> {
        if let Some(start) = line_start(&self.held, NO_MEMORY) {
            return Some(self.held[start..].find('\n').map_or(self.held.len(), |length| start + length + 1));
        }
        SIGNALS.iter().find_map(|signal| {
            let end = line_start(&self.held, signal)? + signal.len();
            match self.held[end..].chars().next() {
                None => Some(end),
                Some('\n') => Some(end + 1),
                Some(_) => None,
            }
        })
    }

    /// Returns the text that was printed before the failure, and the failure.
    pub fn failure(&mut self, panic: bool, cell: &str, generated: Option<&Path>, config: &Config) -> (String, Failure) {
        let held = std::mem::take(&mut self.held);
        let start = if panic { last_panic(&held) } else { held.rfind(ERROR_BEGIN) };
        let (before, reason) = held.split_at(start.unwrap_or(held.len()));
        let failure = if panic {
            Failure::of_panic(reason, cell, generated, config)
        } else {
            let reason = reason.strip_prefix(ERROR_BEGIN).unwrap_or(reason);
            Failure::of_error(reason.split(ERROR_END).next().unwrap_or(reason), config)
        };
        self.held = before.to_owned();
        let mut before = self.release();
        if panic && (before.ends_with("\n\n") || before == "\n") {
            before.pop();
        }
        (before, failure)
    }

    /// Returns the first byte that may belong to a panic or an error.
    fn held_from(&self) -> usize {
        let lines = std::iter::once(0).chain(self.held.match_indices('\n').map(|(at, _)| at + 1));
        for start in lines {
            let line = &self.held[start..];
            // Rust prints an empty line before a panic.
            let text = line.strip_prefix('\n').unwrap_or(line);
            let panic = match text.split_once('\n') {
                Some((first, _)) => first.starts_with(THREAD) && first.contains(PANICKED),
                None => line == "\n" || may_be(text, THREAD),
            };
            let ends = SIGNALS.iter().chain([&NO_MEMORY]).any(|words| may_be(line, words));
            if panic || line.starts_with('\u{1e}') || ends {
                return start;
            }
        }
        self.held.len()
    }
}

/// Returns whether an unfinished `line` may begin with `start`.
fn may_be(line: &str, start: &str) -> bool {
    !line.is_empty() && (line.starts_with(start) || start.starts_with(line))
}

fn line_start(text: &str, line: &str) -> Option<usize> {
    text.match_indices(line).map(|(at, _)| at).find(|&at| at == 0 || text[..at].ends_with('\n'))
}

fn last_panic(text: &str) -> Option<usize> {
    let starts = text.match_indices(THREAD).map(|(at, _)| at).filter(|&at| at == 0 || text[..at].ends_with('\n'));
    starts.filter(|&at| text[at..].lines().next().is_some_and(|line| line.contains(PANICKED))).last()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::failures::end_of_process;

    #[test]
    fn ordinary_text_is_shown_and_errors_are_told_from_it() {
        let mut stderr = Stderr::default();
        assert_eq!(stderr.feed(b"loading\nthread pool of 4\n"), "loading\nthread pool of 4\n");
        assert_eq!(stderr.feed(b"careful\n\x1eerror\ntemperature must be > 0\n\x1eend\n"), "careful\n");
        let (before, failure) = stderr.failure(false, "", None, &Config::default());
        assert_eq!((before.as_str(), failure.value.as_str()), ("", "temperature must be > 0"));
        // Without a failure, it is text that somebody wrote with `eprintln!`.
        assert_eq!(stderr.feed(b"\x1eerror\nodd\n\x1eend\n"), "");
        std::thread::sleep(HOLD);
        assert!(stderr.is_overdue(false));
        assert_eq!(stderr.release(), "odd\n");
        assert!(!stderr.is_overdue(false));
    }

    #[test]
    fn a_panic_is_one_message_without_frames() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let generated = folder.path().join("lib.rs");
        std::fs::write(&generated, "fn run() {\n{ let y = x.matmul(&x);\n}\n").expect("it can be written");
        let text = "before\n\nthread '<unnamed>' (7) panicked at \
            /home/user/.cargo/registry/src/index-1/tch-0.26.0/src/tensor.rs:9:5:\n\
            called `Result::unwrap()` on an `Err` value: Torch(\"mat1 and mat2 shapes cannot be multiplied (2x3 and \
            2x3)\\nException raised from meta at Blas.cpp:189\\nframe #0: c10::Error\")\n\
            stack backtrace:\n   0: core::panicking::panic_fmt\n\
            \x20            at /rustc/1/library/core/src/panicking.rs:80:14\n\
            \x20  1: run_user_code_3\n             at ./src/lib.rs:2:20\n";
        let config = toml::from_str(
            "message_ends = ['\\nException raised']\ntext_errors = ['Torch']\n\
             hints = [{ words = ['shapes'], hint = 'try `x.size()`' }]",
        );
        let config = config.expect("a configuration");
        let mut stderr = Stderr::default();
        assert_eq!(stderr.feed(text.as_bytes()), "before\n");
        let (before, failure) = stderr.failure(true, "let x = 1;\nlet y = x.matmul(&x);", Some(&generated), &config);
        assert_eq!(before, "");
        assert_eq!(failure.name, "panic");
        assert_eq!(failure.value, "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)");
        assert_eq!(failure.traceback[1], "  in line 2 of this cell: let y = x.matmul(&x);");
        assert_eq!(failure.traceback[2], "  at tch-0.26.0/src/tensor.rs:9:5");
        assert!(failure.traceback[3].starts_with("hint: try `x.size()`"), "{failure:?}");
    }

    #[test]
    fn a_panic_of_a_thread_comes_without_frames() {
        let mut stderr = Stderr::default();
        let panic = "\nthread '<unnamed>' (7) panicked at src/lib.rs:3:9:\nout\n";
        let frames = "stack backtrace:\n   0: __rustc::rust_begin_unwind\n\
            \x20            at /rustc/1/library/std/src/panicking.rs:689:5\n";
        stderr.feed(format!("{panic}{frames}").as_bytes());
        std::thread::sleep(HOLD);
        assert!(!stderr.is_overdue(false), "the last frame has not come");
        assert_eq!(stderr.release(), panic);
        // The rest comes later, in pieces.
        let pieces = ["   1: core::pan", "icking::panic_fmt\n             at /ru", "stc/1\n  12: main\n", "go on\n"];
        assert_eq!(pieces.map(|piece| stderr.feed(piece.as_bytes())), ["", "", "", "go on\n"]);
        assert_eq!(stderr.feed(b"  1: one\n"), "  1: one\n");
    }

    #[test]
    fn why_a_process_ended_is_told_by_what_it_said() {
        let mut stderr = Stderr::default();
        let said = b"memory allocation of 2199023255552 bytes failed\nstack backtrace:\n   0: __rustc::__rust_alloc\n";
        assert_eq!(stderr.feed(said), "");
        let said = stderr.release_of_ended();
        assert_eq!(said, "memory allocation of 2199023255552 bytes failed\n");
        let abort = "signal: 6 (SIGABRT)";
        assert!(
            end_of_process(abort, &said).ends_with("out of memory: memory allocation of 2199023255552 bytes failed")
        );
        assert!(end_of_process("signal: 11 (SIGSEGV)", "").contains("nested too deeply"));
        assert!(end_of_process(abort, "Segmentation fault.\n").contains("unsafe code"));
        assert!(end_of_process(abort, "Bus error.\n").contains("cut off meanwhile"));
        for said in ["Bus error.\n", "thread 'main' has overflowed its stack\n"] {
            let own = "the cell ended its process: exit status: 3";
            assert_eq!(end_of_process("exit status: 3", said), own, "what a cell wrote before it ended itself");
        }
        assert!(end_of_process("signal: 9 (SIGKILL)", "").contains("out of memory?"));
        assert_eq!(end_of_process(abort, ""), "the cell ended its process: signal: 6 (SIGABRT)");
        let said = "While processing instruction `Ok(\"LOAD_AND_RUN a.so f\")`, got error: a.so: undefined symbol: g";
        assert!(end_of_process("exit status: 99", said).ends_with("could not be loaded: a.so: undefined symbol: g"));
        // The cell's own words on memory, and the cell goes on.
        assert_eq!(stderr.feed(b"memory allocation of the plan\n"), "");
        assert_eq!(stderr.release(), "memory allocation of the plan\n");
    }

    #[test]
    fn frames_that_follow_a_signal_late_are_not_shown() {
        let mut stderr = Stderr::default();
        assert_eq!(stderr.feed(b"before\nSegmentation fault.\n"), "before\n");
        // The frames take longer than text is held back.
        std::thread::sleep(HOLD);
        assert!(!stderr.is_overdue(false));
        assert_eq!(stderr.feed(b"   0: evcxr::runtime\n  10: main\n"), "");
        assert_eq!(stderr.release_of_ended(), "Segmentation fault.\n");
        // The end of the line arrives separately.
        let pieces: [&[u8]; 3] = [b"Segmentation fault.", b"\n", b"   0: evcxr::runtime\n"];
        assert_eq!(pieces.map(|piece| stderr.feed(piece)), ["", "", ""]);
        std::thread::sleep(HOLD);
        assert!(!stderr.is_overdue(false));
        assert_eq!(stderr.release_of_ended(), "Segmentation fault.\n");
        // The cell goes on, so it wrote these words itself.
        assert_eq!(stderr.feed(b"Segmentation fault.\nof somebody else\n"), "");
        assert_eq!(stderr.release(), "Segmentation fault.\nof somebody else\n");
    }

    #[test]
    fn a_panic_that_comes_in_pieces_is_held_back() {
        let mut stderr = Stderr::default();
        let pieces = [
            "note\n\n",
            "thr",
            "ead 'main' (3) panicked at src/lib.rs:4:1:\nboom",
            "\nnote: run with `RUST_BACKTRACE=1`\n",
        ];
        let shown: Vec<_> = pieces.iter().map(|piece| stderr.feed(piece.as_bytes())).collect();
        assert_eq!(shown, ["note\n", "", "", ""]);
        let (before, failure) = stderr.failure(true, "", None, &Config::default());
        assert_eq!(before, "");
        assert_eq!(failure.value, "boom");
        assert_eq!(failure.traceback.len(), 1);
    }
}
