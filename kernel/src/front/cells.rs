//! The life of a cell: in line, handed to evcxr, interrupted, answered.

use std::time::{Duration, Instant};

use jupyter_protocol::JupyterMessage;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use super::Front;
use crate::advice;
use crate::failure::Failure;
use crate::inner;
use crate::report;
use crate::syntax;
use crate::wire::{content, message};

/// A second Interrupt within this time ends the process.
const AGAIN: Duration = Duration::from_secs(3);
pub const RAN_NOTHING: &str = "interrupted while it was compiled: nothing ran, all variables are kept";

/// A cell from the moment it is handed to evcxr.
pub struct Cell {
    pub request: JupyterMessage,
    pub code: String,
    pub count: u64,
    /// evcxr's own count, which its messages name.
    pub inner_count: u64,
    pub failure: Option<Failure>,
    /// `error` messages of evcxr.
    pub errors: Vec<Value>,
    pub reply: Option<Value>,
    /// evcxr has nothing more to say about it.
    pub idle: bool,
    /// When those who watch were last told to stop.
    pub told: Option<Instant>,
    /// Interrupt came before it ran.
    pub skip: bool,
    pub killed: bool,
    pub awaits_input: bool,
    /// It was told that its stdin has ended.
    pub met_end: bool,
    /// Another page came while it ran.
    pub joined: bool,
    /// Code that shows afterwards what it made.
    pub afterwards: Vec<String>,
    /// Variables that evcxr dropped, for their types were defined anew.
    pub dropped: Vec<String>,
}

impl Front {
    pub(super) fn start_next(&mut self) {
        if self.cell.is_some() {
            return;
        }
        if let Some(error) = self.start_error.clone() {
            for request in std::mem::take(&mut self.queue) {
                self.begin(request);
                self.end(Some(Failure::new("error", &format!("the kernel could not start: {error}"), &[])));
            }
            return;
        }
        if let (true, Some((shell, _))) = (self.ready, self.inner.clone())
            && let Some(request) = self.queue.pop_front()
        {
            self.begin(request.clone());
            let code = self.cell.as_ref().map_or("", |cell| cell.code.as_str());
            if let Some(error) = syntax::error(code) {
                // evcxr leaves out what it cannot parse, and reports ok.
                self.end(Some(Failure::new("error", &error, &[])));
                return self.start_next();
            }
            let mut request = request;
            request.zmq_identities.clear();
            let _ = shell.send(request);
        }
    }

    pub(super) fn begin(&mut self, request: JupyterMessage) {
        let asked = content(&request);
        let code = asked["code"].as_str().unwrap_or_default().to_owned();
        self.status("busy", &request);
        if asked["silent"] != true {
            if asked["store_history"] != false {
                self.count += 1;
                self.history.push(self.count, &code);
            }
            self.publish("execute_input", json!({"code": code, "execution_count": self.count}), Some(&request));
        }
        self.last = Some(request.clone());
        self.cell = Some(Cell {
            request,
            code,
            count: self.count,
            inner_count: 0,
            failure: None,
            errors: vec![],
            reply: None,
            idle: false,
            told: None,
            skip: false,
            killed: false,
            awaits_input: false,
            met_end: false,
            joined: false,
            afterwards: vec![],
            dropped: vec![],
        });
        if let Some(request) = self.last.clone().filter(|_| asked["silent"] != true) {
            self.tell_unseen(&request);
        }
    }

    /// Ends the cell once evcxr has answered and has nothing more to say.
    pub(super) fn finish(&mut self) {
        if !self.cell.as_ref().is_some_and(|cell| cell.idle && cell.reply.is_some()) {
            return;
        }
        // A process that ended may have left something to read.
        self.pump();
        let failure = self.cell.take().and_then(|mut cell| {
            let failure = cell.failure.take().or_else(|| self.explain(&cell));
            self.cell = Some(cell);
            failure
        });
        self.end(failure);
        self.start_next();
    }

    pub(super) fn end(&mut self, failure: Option<Failure>) {
        self.note(failure.is_none());
        let Some(cell) = self.cell.take() else { return };
        self.remember_unseen(&cell);
        let mut content = json!({"status": "ok", "execution_count": cell.count, "user_expressions": {}, "payload": []});
        match &failure {
            None => {
                // evcxr ends the process and forgets all of them, before it runs what else is in the cell.
                if cell.code.lines().any(|line| line.trim() == ":clear") {
                    self.variables.clear();
                }
                let new = syntax::variables(&cell.code);
                self.variables.retain(|name| !new.contains(name));
                self.gone.retain(|name| !new.contains(name));
                self.variables.extend(new);
            }
            Some(failure) => {
                let error = json!({"ename": failure.name, "evalue": failure.value, "traceback": failure.traceback});
                self.publish("error", error.clone(), Some(&cell.request));
                content = error;
                content["status"] = json!("error");
                content["execution_count"] = json!(cell.count);
            }
        }
        self.reply(&self.shell, content, &cell.request);
        self.status("idle", &cell.request);
        let asked = self::content(&cell.request);
        if failure.is_some() && asked["stop_on_error"] != false {
            self.abort_queue();
        }
    }

    /// Says under the cell what it did beside what it was asked for.
    fn note(&mut self, ran: bool) {
        let Some(cell) = &self.cell else { return };
        let mut notes = if ran { advice::notes(&cell.code) } else { vec![] };
        if !cell.dropped.is_empty() {
            notes.push(advice::dropped(&cell.dropped));
            self.variables.retain(|name| !cell.dropped.contains(name));
            self.gone.extend(cell.dropped.iter().cloned());
        }
        if content(&cell.request)["silent"] != true && !notes.is_empty() {
            self.stream("stderr", &(notes.join("\n") + "\n"));
        }
    }

    pub(super) fn abort_queue(&mut self) {
        for request in std::mem::take(&mut self.queue) {
            self.status("busy", &request);
            // A front end shows a count that it is given, though the cell never ran.
            self.reply(&self.shell, json!({"status": "aborted"}), &request);
            self.status("idle", &request);
        }
    }

    /// What evcxr's own errors mean.
    pub(super) fn explain(&mut self, cell: &Cell) -> Option<Failure> {
        let failed = cell.reply.as_ref().is_some_and(|reply| reply["status"] == "error");
        if !failed && cell.errors.is_empty() && !cell.killed {
            return None;
        }
        let text = |error: &Value| error["evalue"].as_str().unwrap_or_default().to_owned();
        let first = cell.errors.first().map(text).unwrap_or_default();
        let died = first.split_once("Subprocess terminated with status: ").map(|(_, status)| status.to_owned());
        if cell.killed || died.is_some() {
            let lost = match std::mem::take(&mut self.variables) {
                names if names.is_empty() => "there were no variables to lose".to_owned(),
                names => format!("lost: {}", names.join(", ")),
            };
            let kept =
                "checkpoints and results of finished epochs are on disk; run the notebook again from its first cell";
            let (name, why) = match died {
                _ if cell.killed => ("interrupted", "the cell could only be stopped by ending its process".to_owned()),
                Some(status) if status.contains("SIGKILL") => {
                    ("died", format!("something ended the cell's process: {status}; out of memory?"))
                }
                // How Rust ends a process that gets no more memory, or whose calls are nested too deeply.
                Some(status) if status.contains("SIGABRT") => {
                    ("died", format!("the cell ended its process: {status}; out of memory, or of stack?"))
                }
                Some(status) => ("died", format!("the cell ended its process: {status}")),
                None => ("died", "the cell ended its process".to_owned()),
            };
            return Some(Failure::new(name, &format!("{why}; {lost}"), &[kept.to_owned()]));
        }
        if cell.skip {
            return Some(Failure::new("interrupted", RAN_NOTHING, &[]));
        }
        let lines = |error: &Value| -> Vec<String> {
            let lines = error["traceback"].as_array().into_iter().flatten().filter_map(|line| line.as_str());
            let (theirs, ours) = (format!("command_{}", cell.inner_count), format!("cell {}", cell.count));
            report::readable(&lines.map(|line| line.replace(&theirs, &ours)).collect::<Vec<_>>())
        };
        let errors = report::without_consequences(&cell.errors);
        let mut traceback: Vec<String> = errors.iter().flat_map(|error| lines(error)).collect();
        let said = format!("{first}\n{}", traceback.join("\n"));
        traceback.extend(advice::on_errors(&cell.code, &said, &self.gone));
        let value = match errors.len() {
            0 => "evcxr gave no reason".to_owned(),
            1 => first,
            n => format!("{first} (the first of {n} errors)"),
        };
        Some(Failure { name: "error".into(), value, traceback })
    }

    pub(super) fn interrupt(&mut self) {
        self.abort_queue();
        let Some(cell) = &mut self.cell else { return };
        if !self.child.as_ref().is_some_and(|child| child.running) {
            cell.skip = true;
            return self.stop_compilers();
        }
        let again = cell.told.is_some_and(|told| told.elapsed() < AGAIN);
        let mut watching = self.clients.values().filter(|client| client.watches).peekable();
        if watching.peek().is_some() && !again {
            cell.told = Some(Instant::now());
            for client in watching {
                let _ = client.sender.send(json!({"stop": "interrupted"}));
            }
            return;
        }
        cell.killed = true;
        // evcxr would wait for the input first.
        if std::mem::take(&mut cell.awaits_input)
            && let Some((_, stdin)) = &self.inner
        {
            let _ = stdin.send(message("input_reply", json!({"value": "", "status": "ok"}), None));
        }
        if let Some(pid) = self.child.as_ref().and_then(|child| Pid::from_raw(child.pid)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    pub(super) fn stop_compilers(&self) {
        for pid in inner::compilers(self.inner_pid, self.child.as_ref().map(|child| child.pid)) {
            let _ = Pid::from_raw(pid).map(|pid| rustix::process::kill_process(pid, Signal::TERM));
        }
    }
}
