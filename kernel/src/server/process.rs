//! Handles the output of the child, and evcxr's commands to it.

use std::time::{Duration, Instant};

use jupyter_protocol::JupyterMessage;
use rustix::process::Signal;
use serde_json::{Map, Value, json};

use crate::cells::advice;
use crate::cells::child::{Child, read};
use crate::cells::compile::stops;
use crate::cells::failures::Failure;
use crate::cells::output::{ASKS_INPUT, CHANGED_TYPE, Piece};
use crate::cells::replaced;
use crate::cells::stderr::HOLD;
use crate::cells::syntax;
use crate::server::cell::Asker;
use crate::server::state::{RAN_NOTHING, STDERR, STDOUT, Server};
use crate::server::wire::{content, message};

/// Number of reads before other events get their turn. Together they hold twice the maximum of a pipe.
const READS: usize = 32;

/// A cell that seems to have ended must come to rest within this time.
const UNSURE: Duration = Duration::from_millis(200);

/// Note on stdin where the frontend asks nobody, shown once a cell.
const NO_STDIN: &str = "note: nobody can type here, so stdin ends at once. In JupyterLab an input box appears, for \
    reads of stdin and for the crate evcxr_input.\n";

/// MIME type of a form that holds the metadata of the other forms, such as the width of a picture.
const METADATA: &str = "application/vnd.live-kernel.metadata+json";

fn take_metadata(data: &mut Map<String, Value>) -> Value {
    data.remove(METADATA).filter(Value::is_object).unwrap_or_else(|| json!({}))
}

/// Gives each image an alternative text: nbconvert reads it from the metadata, VS Code from `text/plain`.
fn describe(data: &mut Map<String, Value>, metadata: &mut Value) {
    const PLAIN: &str = "text/plain";
    let images: Vec<String> = data.keys().filter(|mime| mime.starts_with("image/")).cloned().collect();
    for mime in images {
        let alt = &metadata[&mime]["alt"];
        match data.get(PLAIN).and_then(Value::as_str) {
            None if alt.is_string() => drop(data.insert(PLAIN.into(), alt.clone())),
            Some(text) if !alt.is_string() && (metadata[&mime].is_null() || metadata[&mime].is_object()) => {
                metadata[&mime]["alt"] = json!(text);
            }
            _ => {}
        }
    }
}

impl Server {
    pub fn publish_display(&self, content: &Value, parent: Option<&JupyterMessage>) {
        let kind = if content["update"] == true { "update_display_data" } else { "display_data" };
        let or_empty = |value: &Value| value.as_object().cloned().unwrap_or_default();
        let (mut data, mut metadata) = (or_empty(&content["data"]), json!(or_empty(&content["metadata"])));
        describe(&mut data, &mut metadata);
        let transient = if content["id"].is_string() { json!({"display_id": content["id"]}) } else { json!({}) };
        let content = json!({"data": data, "metadata": metadata, "transient": transient});
        self.publish(kind, content, parent);
    }

    /// Reads everything that the child has printed so far. The number of reads is limited, because the child may go
    /// on printing; returns whether nothing was left.
    pub fn drain(&mut self) -> bool {
        (0..READS).any(|_| !self.pump_once())
    }

    pub fn pump_once(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        let mut buffer = [0; 64 * 1024];
        let mut any = false;
        if let Some(length) = read(&mut child.commands, &mut buffer) {
            any = true;
            if let Some(command) = child.whole_command(&buffer[..length]) {
                self.command(&mut child, &command);
            }
        }
        if child.commands.is_none() {
            child.stdin = None;
        }
        if let Some(length) = read(&mut child.stdout, &mut buffer) {
            any = true;
            let pieces = child.out.feed(&buffer[..length]);
            child.waiting.extend(pieces);
            self.show_waiting(&mut child);
        }
        any |= self.read_stderr(&mut child, &mut buffer);
        self.child = Some(child);
        any
    }

    /// Checks again whether the waiting output can be shown.
    pub fn look_again(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.show_waiting(&mut child);
            self.child = Some(child);
        }
    }

    /// Shows what the child printed. evcxr's runtime prints a certain line when a cell has ended, but the cell may
    /// print the same line itself. So the line counts only once the child has come to rest.
    fn show_waiting(&mut self, child: &mut Child) {
        while let Some(piece) = child.waiting.pop_front() {
            match piece {
                Piece::Complete { line } if !child.is_at_rest() => {
                    if child.waits_since.get_or_insert_with(Instant::now).elapsed() < UNSURE {
                        child.waiting.push_front(Piece::Complete { line });
                        return;
                    }
                    self.print(STDOUT, format!("{line}\n"));
                    child.doubtful = Some(line);
                }
                piece => self.show(child, piece),
            }
            child.waits_since = None;
        }
        // Either the child came to rest late, or the cell printed that line itself and has really ended since.
        if child.doubtful.is_some()
            && child.running
            && !child.asked_input
            && child.is_at_rest()
            && let Some(line) = child.doubtful.take()
        {
            self.show(child, Piece::Complete { line });
        }
    }

    /// Reads everything that has been on stderr when this began.
    fn drain_stderr(&mut self, child: &mut Child) {
        let mut buffer = [0; 64 * 1024];
        let _ = (0..READS).all(|_| self.read_stderr(child, &mut buffer));
    }

    pub fn read_stderr(&mut self, child: &mut Child, buffer: &mut [u8]) -> bool {
        match read(&mut child.stderr, buffer) {
            Some(length) => {
                let text = advice::without_redefined(&child.err.feed(&buffer[..length]));
                self.print(STDERR, text);
                true
            }
            None => false,
        }
    }

    /// Handles a line from evcxr to the child: a command to run compiled code, or input for a cell.
    pub fn command(&mut self, child: &mut Child, command: &[u8]) {
        if command.starts_with(b"LOAD_AND_RUN ") {
            child.running = true;
            if let Some(cell) = &mut self.cell {
                cell.ran = true;
            }
            self.stop.clear();
            self.last_words.clear();
            child.doubtful = None;
            if let Some(cell) = self.cell.as_mut().filter(|cell| cell.skip) {
                // Report as if the cell had failed at once, so that evcxr forgets the variables that it would have
                // made.
                cell.failure = Some(Failure::new("interrupted", RAN_NOTHING, &[]));
                child.tell_evcxr("EVCXR_ERROR_OCCURRED");
                child.tell_evcxr("EVCXR_EXECUTION_COMPLETE");
                child.running = false;
                return;
            }
        }
        child.asked_input = false;
        if let Some(stdin) = &child.stdin {
            stdin.send(command);
        }
    }

    pub fn show(&mut self, child: &mut Child, piece: Piece) {
        match piece {
            Piece::Text(text) => self.print(STDOUT, text),
            Piece::Display(data) => self.show_display(data),
            Piece::Result(mut data) => match &self.cell {
                Some(cell) if cell.expression.is_some() => {
                    let mut metadata = take_metadata(&mut data);
                    describe(&mut data, &mut metadata);
                    if let Some(cell) = &mut self.cell {
                        cell.value = Some((data.into(), metadata));
                    }
                }
                Some(cell) if content(&cell.request)["silent"] == true => {}
                Some(cell) => {
                    let mut metadata = take_metadata(&mut data);
                    describe(&mut data, &mut metadata);
                    let content = json!({"data": data, "metadata": metadata, "execution_count": cell.count});
                    self.publish("execute_result", content, Some(&cell.request));
                }
                // evcxr runs a test while it starts.
                None if !self.ready => {}
                None => self.show_display(data),
            },
            Piece::Control(line) => {
                if let (Some(name), Some(cell)) = (line.strip_prefix(CHANGED_TYPE), &mut self.cell) {
                    cell.dropped.push(name.to_owned());
                }
                child.asked_input |= line.starts_with(ASKS_INPUT);
                child.tell_evcxr(&line);
            }
            Piece::Failed { panic, line } => {
                self.drain_stderr(child);
                if !panic && !child.err.holds_error() {
                    // The cell printed this line itself.
                    return self.print(STDOUT, format!("{line}\n"));
                }
                let code = self.cell.as_ref().map(|cell| cell.code.clone()).unwrap_or_default();
                let (before, failure) = if panic && self.stop.has_ended_cell() {
                    // A panic on stderr is one of another thread.
                    (child.err.release(), self.interrupted(&code))
                } else {
                    let (before, failure) = child.err.failure(panic, &code, Some(&self.generated), &self.config);
                    // A check for Interrupt unwinds without a message. Where it stopped a thread or a task, `join`,
                    // `scope` and `await` have these.
                    let stopped = ["Any { .. }", "a scoped thread panicked", "panicked with message \"interrupted\""];
                    let stopped = stopped.iter().any(|end| failure.value.ends_with(end));
                    let interrupted = self.stop.is_set() && (panic && failure.value.is_empty() || stopped);
                    (before, if interrupted { self.interrupted(&code) } else { failure })
                };
                self.print(STDERR, before);
                if let Some(cell) = &mut self.cell {
                    cell.failure.get_or_insert(failure);
                }
                child.tell_evcxr(&line);
            }
            Piece::Complete { line } => {
                self.drain_stderr(child);
                let text = child.err.release();
                self.print(STDERR, text);
                child.tell_evcxr(&line);
                child.running = false;
            }
        }
    }

    /// Asks the user for the line that the cell's code waits for. Where nobody can type, the read ends.
    fn ask_for_line(&mut self) {
        let (Some(child), Some(cell)) = (&mut self.child, &mut self.cell) else { return };
        if content(&cell.request)["allow_stdin"] == true && !cell.input_ended {
            cell.awaits_input = Some(Asker::Stdin);
            let asked = json!({"prompt": "", "password": false});
            let _ = self.stdin.send(message("input_request", asked, Some(&cell.request)));
            return;
        }
        child.end_stdin();
        if !std::mem::replace(&mut cell.met_end, true) && !cell.internal && !cell.input_ended {
            self.stream(STDERR, NO_STDIN);
        }
    }

    /// Says which variables are kept after a loop of the cell was interrupted.
    fn interrupted(&self, code: &str) -> Failure {
        let taken_up = self.stop.place().map(|place| stops::taken_up(&self.folder, place)).unwrap_or_default();
        let kept = syntax::variables(&taken_up.join("\n"));
        let (kept, unset): (Vec<_>, Vec<_>) = syntax::variables(code).into_iter().partition(|name| kept.contains(name));
        let listed = |before: &str, names: &[String]| match names {
            [] => String::new(),
            names => format!("{before}{}", names.join(", ")),
        };
        let (_, mut moved) = replaced::restore(&self.folder, false);
        moved.extend(replaced::moved(&self.generated_source()));
        moved.retain(|name| self.variables.contains(name) && !kept.contains(name));
        let moved = listed(", except those that this cell has moved: ", &moved);
        let (kept, unset) = (listed("; kept from this cell: ", &kept), listed("; not kept: ", &unset));
        Failure::new("Interrupted", &format!("all variables of earlier cells are kept{moved}{kept}{unset}"), &[])
    }

    pub fn show_display(&self, mut data: Map<String, Value>) {
        let metadata = take_metadata(&mut data);
        self.publish_display(&json!({"data": data, "metadata": metadata}), self.parent().as_ref());
    }

    pub fn tick(&mut self) {
        self.look_again();
        self.stop_closures();
        self.warn_of_interrupt();
        if let Some(mut child) = self.child.take() {
            if child.err.is_overdue(child.running) {
                let text = child.err.release();
                self.print(STDERR, text);
            }
            if child.out.since().is_some_and(|since| since.elapsed() > HOLD) {
                child.out.flush().into_iter().for_each(|piece| self.show(&mut child, piece));
            }
            self.child = Some(child);
        }
        let asked = self.cell.as_ref().is_some_and(|cell| cell.awaits_input.is_some());
        let reads = |server: &Self| server.child.as_ref().map(Child::waiting_reads).filter(|reads| !reads.is_empty());
        if let Some(before) = reads(self).filter(|_| !asked) {
            // What the child has written is read now. If it waits for evcxr's next command, this includes the end of
            // the cell, which counts because the child has come to rest. It must be the same read as before: a fast
            // cell may have run meanwhile, and the child would take the end of its stdin for a command, and end.
            let all = self.drain();
            self.look_again();
            if all && reads(self).is_some_and(|now| now == before) {
                self.ask_for_line();
            }
        }
        if self.cell.as_ref().is_some_and(|cell| cell.skip) && self.child.as_ref().is_none_or(|child| !child.running) {
            self.stop_compilers(Signal::TERM);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_an_alternative_text() {
        let described = |data: Value, mut metadata: Value| {
            let mut data = data.as_object().cloned().unwrap_or_default();
            describe(&mut data, &mut metadata);
            (Value::from(data), metadata)
        };
        let (png, size) = ("image/png", json!({"width": 4}));
        let (_, metadata) = described(json!({png: "AA", "text/plain": "a line"}), json!({png: size}));
        assert_eq!(metadata, json!({png: {"width": 4, "alt": "a line"}}));
        let (data, metadata) = described(json!({png: "AA"}), json!({png: {"alt": "a curve"}}));
        assert_eq!((&data["text/plain"], metadata), (&json!("a curve"), json!({png: {"alt": "a curve"}})));
        let kept = described(json!({png: "AA", "text/plain": "a"}), json!({png: {"alt": "b"}}));
        assert_eq!(kept, (json!({png: "AA", "text/plain": "a"}), json!({png: {"alt": "b"}})));
        let text = json!({"text/plain": "a"});
        assert_eq!(described(text.clone(), json!({})), (text, json!({})));
        assert_eq!(described(json!({png: "AA"}), json!({})), (json!({png: "AA"}), json!({})));
    }
}
