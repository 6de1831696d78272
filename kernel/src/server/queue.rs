//! The queue of cells: which runs next, how one begins and ends, and Interrupt.

use std::time::{Duration, Instant};

use jupyter_protocol::{JupyterMessage, JupyterMessageContent};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::cells::compile::impls;
use crate::cells::compile::stops;
use crate::cells::failures::{Failure, end_of_process};
use crate::cells::interrupt::Stop;
use crate::cells::{advice, replaced, report, syntax};
use crate::server::cell::{Asker, Cell};
use crate::server::expressions::Expressions;
use crate::server::pages::Unseen;
use crate::server::state::{RAN_NOTHING, Server};
use crate::server::wire::{content, message};

/// A second Interrupt within this time ends the child.
const AGAIN: Duration = Duration::from_secs(3);

/// Closures are stopped, too, where no loop has stopped within this time.
const BEFORE_CLOSURES: Duration = Duration::from_millis(200);

/// The user learns what a second Interrupt costs where the cell goes on for this time.
const BEFORE_WARNING: Duration = Duration::from_secs(1);

impl Server {
    pub fn start_next(&mut self) {
        if self.cell.is_some() || self.expressions.is_some() {
            return;
        }
        if let Some(error) = self.start_error.clone() {
            for request in std::mem::take(&mut self.queue) {
                self.begin(request);
                self.end(Some(Failure::new("error", &format!("the kernel could not start: {error}"), &[])));
            }
            return;
        }
        if self.ready
            && let Some(code) = self.warm_up.pop_front()
        {
            return self.run_internal(&code);
        }
        if let (true, Some(interpreter)) = (self.ready, self.interpreter.clone())
            && let Some(request) = self.queue.pop_front()
        {
            let code = content(&request)["code"].as_str().unwrap_or_default().to_owned();
            if !self.knows_question_mark && syntax::ends_by_question_mark(&code) {
                self.queue.push_front(request);
                return self.run_question_mark();
            }
            replaced::announce(&self.folder, &replaced::of(&code, &self.variables));
            impls::announce(&self.folder, &code);
            self.begin(request.clone());
            if let Some(error) = syntax::error(&code) {
                // evcxr would leave out the code that it cannot parse, and report success.
                self.end(Some(Failure::new("error", &error, &[])));
                return self.start_next();
            }
            let mut request = request;
            request.zmq_identities.clear();
            if let JupyterMessageContent::UnknownMessage(asked) = &mut request.content {
                asked.content["code"] = json!(syntax::for_evcxr(&code));
            }
            let _ = interpreter.shell.send(request);
        }
    }

    /// Runs a cell that ends by `?`, so that evcxr can show the value of one.
    pub fn run_question_mark(&mut self) {
        self.knows_question_mark = true;
        self.run_internal("Ok::<(), std::fmt::Error>(())?;");
    }

    /// Runs code that is no cell of the user's, such as code that changes evcxr's state.
    pub fn run_internal(&mut self, code: &str) {
        let Some(interpreter) = &self.interpreter else { return };
        replaced::announce(&self.folder, &Default::default());
        impls::announce(&self.folder, "");
        let request = message("execute_request", json!({"code": code, "silent": true, "allow_stdin": false}), None);
        let _ = interpreter.shell.send(request.clone());
        self.cell = Some(Cell { internal: true, ..Cell::new(request, code.to_owned(), 0) });
    }

    pub fn begin(&mut self, request: JupyterMessage) {
        let asked = content(&request);
        let code = asked["code"].as_str().unwrap_or_default().to_owned();
        self.end_floods();
        self.status("busy", &request);
        if asked["silent"] != true {
            if asked["store_history"] != false {
                self.count += 1;
                self.history.push(self.count, &code);
            }
            self.publish("execute_input", json!({"code": code, "execution_count": self.count}), Some(&request));
        }
        self.last_request = Some(request.clone());
        self.cell = Some(Cell::new(request, code, self.count));
        if let Some(request) = self.last_request.clone().filter(|_| asked["silent"] != true) {
            self.show_unseen_note(&request);
        }
    }

    /// Ends the cell once evcxr has replied and is idle.
    pub fn finish(&mut self) {
        if !self.cell.as_ref().is_some_and(|cell| cell.idle && cell.reply.is_some()) {
            return;
        }
        // A process that ended may have left output in its pipes.
        self.drain();
        let Some(mut cell) = self.cell.take() else { return };
        let (failed_running, skipped, internal) = (cell.failure.is_some(), cell.skip, cell.internal);
        let failure = cell.failure.take().or_else(|| self.explain(&cell));
        let restore = match &failure {
            Some(_) if failed_running && !internal && !cell.killed => self.restore(skipped),
            // The cell ended by itself in the same moment, and evcxr has not noticed yet that its process is gone.
            Some(_) if cell.killed && cell.errors.is_empty() => "();".to_owned(),
            _ => String::new(),
        };
        if internal {
            if failure.is_some() {
                let lost = syntax::variables(&cell.code);
                self.variables.retain(|name| !lost.contains(name));
            } else if cell.ran {
                self.forget_moved();
            }
            if let (Some(name), Some(expressions)) = (cell.expression.take(), &mut self.expressions) {
                expressions.add(name, cell.value.take(), failure);
            }
        } else {
            let went_on = match (cell.input_ended, cell.interrupted) {
                _ if failure.is_some() => None,
                (true, _) => Some("the input is empty; the cell went on with it, and all variables are kept"),
                (_, Some(_)) if self.stop.has_ended_something() => Some(
                    "a part of the cell was stopped, such as a thread; the cell went on without it, and all variables \
                     are kept",
                ),
                _ => None,
            };
            self.cell = Some(cell);
            if let Some(why) = went_on {
                self.bind();
                self.end(Some(Failure::new("Interrupted", why, &[])));
            } else {
                self.end(failure);
            }
        }
        if !restore.is_empty() {
            self.run_internal(&restore);
        } else if internal && self.expressions.is_some() {
            self.next_expression();
        } else {
            self.start_next();
        }
    }

    /// Returns code by which evcxr recovers the variables that a failed cell would have replaced. Shows which are
    /// lost.
    fn restore(&mut self, skipped: bool) -> String {
        // Statements for the variables that an interrupted loop has put into the store.
        let mut taken_up = self.stop.place().map(|place| stops::taken_up(&self.folder, place)).unwrap_or_default();
        let stored = syntax::variables(&taken_up.join("\n"));
        let (mut code, mut lost) = replaced::restore(&self.folder, skipped);
        lost.retain(|name| !stored.contains(name));
        match skipped {
            true => code += &replaced::take_up_moved(&self.generated_source()),
            false => self.forget_moved(),
        }
        taken_up.extend(
            code.lines()
                .filter(|line| !syntax::variables(line).iter().any(|name| stored.contains(name)))
                .map(str::to_owned),
        );
        self.variables.retain(|name| !stored.contains(name));
        self.variables.extend(stored);
        if !lost.is_empty() {
            self.variables.retain(|name| !lost.contains(name));
            self.stream("stderr", &(advice::lost_note(&lost) + "\n"));
        }
        taken_up.join("\n")
    }

    pub fn end(&mut self, failure: Option<Failure>) {
        self.end_floods();
        self.show_notes(failure.is_none());
        if failure.is_none() {
            self.bind();
        }
        let Some(cell) = self.cell.take() else { return };
        self.remember_unseen(&cell);
        let asked = content(&cell.request);
        let Some(failure) = failure else {
            self.expressions = Some(Expressions::of(cell, &asked["user_expressions"]));
            return self.next_expression();
        };
        let mut error = failure.content();
        self.publish("error", error.clone(), Some(&cell.request));
        error["status"] = json!("error");
        error["execution_count"] = json!(cell.count);
        self.complete(&cell.request, error);
        if asked["stop_on_error"] != false {
            self.abort_queue();
        }
    }

    /// Remembers the variables that the cell has bound.
    fn bind(&mut self) {
        let Some(cell) = &self.cell else { return };
        // evcxr ends the process and forgets all variables before it runs the rest of the cell.
        if cell.code.lines().any(|line| line.trim() == ":clear") {
            self.variables.clear();
            self.knows_question_mark = false;
        }
        let new = syntax::variables(&cell.code);
        self.variables.retain(|name| !new.contains(name));
        self.dropped.retain(|name| !new.contains(name));
        self.variables.extend(new);
        if cell.ran {
            self.forget_moved();
        }
    }

    /// Forgets the variables that the last cell moved away, which evcxr no longer keeps.
    fn forget_moved(&mut self) {
        let moved = replaced::moved(&self.generated_source());
        self.variables.retain(|name| !moved.contains(name));
    }

    /// Returns the source that evcxr made of the last cell.
    pub fn generated_source(&self) -> String {
        std::fs::read_to_string(&self.generated).unwrap_or_default()
    }

    /// Shows notes on side effects of the cell.
    fn show_notes(&mut self, succeeded: bool) {
        let Some(cell) = &self.cell else { return };
        let mut notes = if succeeded { advice::notes(&cell.code) } else { vec![] };
        if !cell.dropped.is_empty() {
            notes.push(advice::dropped_note(&cell.dropped));
            self.variables.retain(|name| !cell.dropped.contains(name));
            self.dropped.extend(cell.dropped.iter().cloned());
        }
        if content(&cell.request)["silent"] != true && !notes.is_empty() {
            self.stream("stderr", &(notes.join("\n") + "\n"));
        }
    }

    pub fn abort_queue(&mut self) {
        for request in std::mem::take(&mut self.queue) {
            self.status("busy", &request);
            // The reply holds no count, because a frontend would show it although the cell never ran.
            self.reply(&self.shell, json!({"status": "aborted"}), &request);
            self.status("idle", &request);
        }
    }

    /// Returns why the cell failed, according to evcxr's replies.
    pub fn explain(&mut self, cell: &Cell) -> Option<Failure> {
        let failed = cell.reply.as_ref().is_some_and(|reply| reply["status"] == "error");
        let command_ended = || Failure::new("interrupted", "its command was ended; all variables are kept", &[]);
        let has_command = syntax::commands(&cell.code).next().is_some();
        if !failed && cell.errors.is_empty() && !cell.killed {
            // Of a command that was ended, evcxr has shown the output so far, and reports no error.
            return (cell.skip && !cell.ran && has_command).then(command_ended);
        }
        let text = |error: &Value| error["evalue"].as_str().unwrap_or_default().to_owned();
        let first = cell.errors.first().map(text).unwrap_or_default();
        let died = first.split_once("Subprocess terminated with status: ").map(|(_, status)| status.to_owned());
        if cell.killed || died.is_some() {
            let lost = self.lose_variables();
            let (name, why) = match died {
                _ if cell.killed => ("interrupted", "the cell could only be stopped by ending its process".to_owned()),
                Some(status) => ("died", end_of_process(&status, &self.last_words)),
                None => ("died", "the cell ended its process".to_owned()),
            };
            let notes = [self.config.after_loss.clone()];
            return Some(Failure::new(name, &format!("{why}; {lost}"), &notes));
        }
        if cell.skip {
            let nothing_ran = || Failure::new("interrupted", RAN_NOTHING, &[]);
            return Some(if has_command { command_ended() } else { nothing_ran() });
        }
        let lines = |error: &Value| -> Vec<String> {
            let lines = error["traceback"].as_array().into_iter().flatten().filter_map(|line| line.as_str());
            let theirs = format!("command_{}", cell.evcxr_count);
            let ours = if cell.internal { "expression".to_owned() } else { format!("cell {}", cell.count) };
            report::readable(&lines.map(|line| line.replace(&theirs, &ours)).collect::<Vec<_>>())
        };
        if let Some(failure) = advice::on_never(&cell.errors) {
            return Some(failure);
        }
        let errors = report::without_consequences(&cell.errors);
        let mut traceback: Vec<String> = errors.iter().flat_map(|error| lines(error)).collect();
        let said = format!("{first}\n{}", traceback.join("\n"));
        traceback.extend(advice::on_errors(&cell.code, &said, &self.dropped));
        let value = match errors.as_slice() {
            [] => "evcxr gave no reason".to_owned(),
            [error] => text(error),
            [error, ..] => format!("{} (the first of {} errors)", text(error), errors.len()),
        };
        Some(Failure { name: "error".into(), value, traceback })
    }

    pub fn interrupt(&mut self) {
        self.abort_queue();
        let Some(cell) = &mut self.cell else {
            // Threads that earlier cells started may go on in loops.
            return self.stop.set(Stop::All);
        };
        if cell.internal && cell.expression.is_none() {
            return;
        }
        if !self.child.as_ref().is_some_and(|child| child.running) {
            // A command that ignores the first request to end.
            let signal = if std::mem::replace(&mut cell.skip, true) { Signal::KILL } else { Signal::TERM };
            return self.stop_compilers(signal);
        }
        match (cell.awaits_input.take(), &self.interpreter, &mut self.child) {
            // evcxr waits for the input, and would notice nothing else before it comes.
            (Some(Asker::Evcxr), Some(interpreter), _) => {
                cell.input_ended = true;
                let _ = interpreter.stdin.send(message("input_reply", json!({"value": "", "status": "ok"}), None));
            }
            (Some(Asker::Stdin), _, Some(child)) => {
                cell.input_ended = true;
                child.end_stdin();
            }
            _ => {}
        }
        if cell.interrupted.replace(Instant::now()).is_none_or(|last| last.elapsed() >= AGAIN) {
            cell.warned = false;
            let mut watching = self.links.values().filter(|link| link.watches).peekable();
            cell.watched = watching.peek().is_some();
            if !cell.watched {
                self.stop.set(Stop::Loops);
            }
            for link in watching {
                link.send(json!({"stop": "interrupted"}));
            }
            return;
        }
        cell.killed = true;
        if let Some(pid) = self.child.as_ref().and_then(|child| Pid::from_raw(child.pid)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// Stops closures, too, where no loop has stopped soon after Interrupt. Loops come first, because one of the cell's
    /// own keeps the cell's variables, and because work that begins to watch now stops by itself.
    pub fn stop_closures(&mut self) {
        let watched = self.links.values().any(|link| link.watches);
        let due = |interrupted: Instant| interrupted.elapsed() > BEFORE_CLOSURES && !watched;
        if self.cell.as_ref().is_some_and(|cell| !cell.watched && !cell.warned && cell.interrupted.is_some_and(due)) {
            self.stop.set(Stop::All);
        }
    }

    /// Tells what a second Interrupt costs, once the cell has gone on for a while after the first one.
    pub fn warn_of_interrupt(&mut self) {
        let running = self.child.as_ref().is_some_and(|child| child.running);
        let Some(cell) = self.cell.as_mut().filter(|cell| running && !cell.internal && !cell.warned) else { return };
        if cell.interrupted.is_some_and(|interrupted| interrupted.elapsed() > BEFORE_WARNING) {
            (cell.warned, cell.interrupted) = (true, Some(Instant::now()));
            let lost = match self.variables.as_slice() {
                [] => "end its process".to_owned(),
                names => format!("end its process and lose: {}", names.join(", ")),
            };
            self.stream(
                "stderr",
                &format!(
                    "Interrupt: the cell runs until its present operation ends. Press again within 3 s to {lost}.\n"
                ),
            );
        }
    }

    /// Evaluates the next expression. After the last one, replies to the cell and goes on to the next.
    pub fn next_expression(&mut self) {
        let Some(expressions) = &mut self.expressions else { return };
        while let Some((name, code)) = expressions.left.pop_front() {
            if !syntax::is_expression(&code) {
                let failure = Failure::new("error", &format!("this is no expression of Rust: {code}"), &[]);
                expressions.add(name, None, Some(failure));
            } else if !self.knows_question_mark && syntax::ends_by_question_mark(&code) {
                expressions.left.push_front((name, code));
                return self.run_question_mark();
            } else {
                self.run_internal(&code);
                if let Some(cell) = &mut self.cell {
                    cell.expression = Some(name);
                }
                return;
            }
        }
        let Some(Expressions { cell, values, .. }) = self.expressions.take() else { return };
        let payload: Vec<&Value> = cell.next_input.iter().collect();
        let reply = json!({
            "status": "ok", "execution_count": cell.count, "user_expressions": values, "payload": payload,
        });
        self.complete(&cell.request, reply);
        self.start_next();
    }

    pub fn remember_unseen(&mut self, cell: &Cell) {
        if cell.page_opened {
            let session = cell.request.header.session.clone();
            self.unseen = Some(Unseen { count: cell.count, session, afterwards: cell.afterwards.clone() });
        }
    }

    /// Shows below the first cell of another page where the results of the earlier cell are.
    fn show_unseen_note(&mut self, request: &JupyterMessage) {
        if let Some(unseen) = self.unseen.take().filter(|unseen| unseen.session != request.header.session) {
            self.stream("stderr", &unseen.note());
        }
    }
}
