//! Handles the requests of front ends on the shell and control channels.

use jupyter_protocol::JupyterMessage;
use serde_json::{Value, json};

use crate::cells::syntax;
use crate::server::channels::Outbox;
use crate::server::completion::Questions;
use crate::server::front::Front;
use crate::server::pages::same_page;
use crate::server::wire::{content, kernel_info};

impl Front {
    pub fn handle_shell(&mut self, request: JupyterMessage) {
        let kind = request.header.msg_type.clone();
        if kind == "execute_request" {
            self.queue.push_back(request);
            return self.start_next();
        }
        let asked = content(&request);
        let code = asked["code"].as_str().unwrap_or_default();
        if kind == "complete_request" || kind == "inspect_request" {
            return self.ask_evcxr(request);
        }
        self.status("busy", &request);
        match kind.as_str() {
            "kernel_info_request" => {
                self.somebody_came(&request);
                self.reply(&self.shell, kernel_info(&self.rust), &request);
            }
            "is_complete_request" => {
                self.reply(&self.shell, json!({"status": syntax::completeness(code), "indent": ""}), &request);
            }
            "history_request" => {
                self.reply(&self.shell, json!({"status": "ok", "history": self.history.recall(&asked)}), &request);
            }
            "comm_info_request" => {
                let comms = self.comms.info(&asked["target_name"]);
                self.reply(&self.shell, json!({"status": "ok", "comms": comms}), &request);
            }
            "comm_open" | "comm_msg" | "comm_close" => {
                let effect = self.comms.receive(&kind, &asked, &request.buffers);
                for (kind, content, buffers) in effect.publish {
                    self.publish_with(kind, content, buffers, Some(&request));
                }
                if effect.opened {
                    self.page_opened(&request);
                }
                if let Some((owner, push, buffers)) = effect.push
                    && let Some(client) = self.clients.get(&owner)
                {
                    client.send_with(push, buffers);
                }
            }
            "shutdown_request" => self.shut_down(&self.shell.clone(), &request, &asked),
            _ => eprintln!("kernel: unknown message `{kind}`"),
        }
        self.status("idle", &request);
    }

    pub fn handle_control(&mut self, request: &JupyterMessage) {
        let control = self.control.clone();
        self.status("busy", request);
        match request.header.msg_type.as_str() {
            "interrupt_request" => {
                self.interrupt();
                self.reply(&control, json!({"status": "ok"}), request);
            }
            "kernel_info_request" => {
                self.somebody_came(request);
                self.reply(&control, kernel_info(&self.rust), request);
            }
            "usage_request" => {
                let usage = self.usage.measure(std::process::id());
                self.reply(&control, usage, request);
            }
            "shutdown_request" => self.shut_down(&control, request, &content(request)),
            kind => eprintln!("kernel: unknown message `{kind}`"),
        }
        self.status("idle", request);
    }

    fn shut_down(&mut self, outbox: &Outbox, request: &JupyterMessage, asked: &Value) {
        self.reply(outbox, json!({"status": "ok", "restart": asked["restart"]}), request);
        self.ended = true;
    }

    /// Passes completion and inspection to evcxr, which answers only between cells.
    fn ask_evcxr(&mut self, request: JupyterMessage) {
        self.status("busy", &request);
        let free = self.ready && self.cell.is_none() && self.queue.is_empty();
        match self.inner.clone().filter(|_| free) {
            Some((shell, _)) => drop(shell.send(self.questions.of(request))),
            None => self.answer(&request, Questions::unanswered(&request)),
        }
    }

    /// Tells the clients that another page now shows their widgets, so that they put more into them.
    fn page_opened(&self, request: &JupyterMessage) {
        let elsewhere =
            |parent: &Option<JupyterMessage>| parent.as_ref().is_some_and(|parent| !same_page(parent, request));
        for client in self.clients.values().filter(|client| elsewhere(&client.parent)) {
            client.send(json!({"opened": true}));
        }
    }

    /// Notes a new page: every page sends `kernel_info_request` first.
    fn somebody_came(&mut self, request: &JupyterMessage) {
        if let Some(cell) = self.cell.as_mut().filter(|cell| !same_page(&cell.request, request)) {
            cell.joined = true;
        }
    }
}
