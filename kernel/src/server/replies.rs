//! Handles the messages of evcxr_jupyter: replies, output, requests for input, and its end.

use jupyter_protocol::JupyterMessage;
use serde_json::json;

use crate::cells::failures::Failure;
use crate::server::cell::Asker;
use crate::server::channels::{follow, outbox};
use crate::server::completion::Next;
use crate::server::evcxr::Connections;
use crate::server::state::{Event, Interpreter, Server};
use crate::server::wire::{content, message, parent_id};

/// What a frontend in a terminal sends for Ctrl-D, the end of the input.
const END_OF_INPUT: &str = "\u{4}";

impl Server {
    pub fn connect_interpreter(&mut self, connections: Connections) {
        let (to_shell, from_shell) = connections.shell.split();
        let (to_stdin, from_stdin) = connections.stdin.split();
        follow(from_shell, Event::InterpreterShell, self.events.clone());
        follow(from_stdin, Event::InterpreterStdin, self.events.clone());
        follow(connections.iopub, Event::InterpreterIopub, self.events.clone());
        let interpreter = Interpreter { shell: outbox(to_shell), stdin: outbox(to_stdin) };
        // evcxr replies once it has read its start-up configuration.
        let _ = interpreter.shell.send(message("kernel_info_request", json!({}), None));
        self.interpreter = Some(interpreter);
    }

    pub fn handle_interpreter_reply(&mut self, reply: &JupyterMessage) {
        let id = parent_id(reply).to_owned();
        if reply.header.msg_type == "kernel_info_reply" {
            self.ready = true;
            self.start_next();
        } else if let Some(next) = self.forwarded.take_reply(&id, || content(reply)) {
            let kind = match &next {
                Next::Reply(request, _) => request.header.msg_type.clone(),
                Next::Send(_) | Next::Wait => String::new(),
            };
            self.complete_forwarded(next);
            if let Some(newest) = self.forwarded.ended(&kind) {
                self.pass_on(newest);
            }
        } else if let Some(cell) = self.cell.as_mut().filter(|cell| cell.request.header.msg_id == id) {
            cell.reply = Some(content(reply));
            self.finish();
        }
    }

    pub fn handle_interpreter_output(&mut self, output: &JupyterMessage) {
        let Some(cell) = self.cell.as_mut().filter(|cell| cell.request.header.msg_id == parent_id(output)) else {
            return;
        };
        let mut content = content(output);
        let internal = cell.internal;
        match output.header.msg_type.as_str() {
            "status" if content["execution_state"] == "idle" => {
                cell.idle = true;
                self.finish();
            }
            "execute_input" => cell.evcxr_count = content["execution_count"].as_u64().unwrap_or_default(),
            "error" => cell.errors.push(content),
            kind @ ("execute_result" | "stream" | "display_data") if !internal => {
                if kind == "execute_result" {
                    content["execution_count"] = json!(cell.count);
                    // The output of a command that was ended, behind which the shell says so.
                    if let Some(text) = content["data"]["text/plain"].as_str().filter(|_| cell.skip) {
                        content["data"]["text/plain"] = json!(text.trim_end_matches("Terminated\n"));
                    }
                }
                self.publish(kind, content, self.parent().as_ref());
            }
            _ => {}
        }
    }

    pub fn interpreter_ended(&mut self, why: &str) {
        // The reason precedes the backtrace of evcxr.
        let why = why.split("Stack backtrace:").next().unwrap_or(why).trim();
        if self.ready {
            // cargo's progress lines are not the reason.
            let noise = ["Compiling ", "Finished ", "Blocking ", "Updating ", "Locking ", "Adding "];
            let of_work = |line: &&str| !noise.iter().any(|word| line.trim_start().starts_with(word));
            let why: Vec<&str> = why.lines().filter(of_work).collect();
            let why = format!("the process that compiles cells ended: {}; {}", why.join("; "), self.lose_variables());
            self.end(Some(Failure::new("died", &why, std::slice::from_ref(&self.config.after_loss))));
            // Jupyter restarts a kernel that ended.
            self.ended = true;
        } else {
            self.start_error = Some(why.to_owned());
            self.start_next();
        }
    }

    pub fn ask_for_input(&mut self, request: &JupyterMessage) {
        if let Some(cell) = &mut self.cell {
            cell.awaits_input = Some(Asker::Evcxr);
            let _ = self.stdin.send(message("input_request", content(request), Some(&cell.request)));
        }
    }

    pub fn send_input(&mut self, mut reply: JupyterMessage) {
        match (self.cell.as_mut().and_then(|cell| cell.awaits_input.take()), &self.interpreter, &mut self.child) {
            (Some(Asker::Evcxr), Some(interpreter), _) => {
                reply.zmq_identities.clear();
                let _ = interpreter.stdin.send(reply);
            }
            (Some(Asker::Stdin), _, Some(child)) => match content(&reply)["value"].as_str() {
                Some(END_OF_INPUT) | None => child.end_stdin(),
                Some(line) => child.type_line(line),
            },
            _ => {}
        }
    }

    pub fn complete_forwarded(&mut self, next: Next) {
        match next {
            Next::Reply(request, reply) => self.complete(&request, reply),
            Next::Send(requests) => {
                if let Some(interpreter) = &self.interpreter {
                    requests.into_iter().for_each(|request| drop(interpreter.shell.send(request)));
                }
            }
            Next::Wait => {}
        }
    }
}
