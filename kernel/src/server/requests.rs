//! Handles the requests of frontends on the shell and control channels.

use jupyter_protocol::JupyterMessage;
use serde_json::{Value, json};

use crate::cells::syntax;
use crate::server::channels::Outbox;
use crate::server::completion::Forwarded;
use crate::server::pages::same_page;
use crate::server::state::Server;
use crate::server::wire::{content, kernel_info};

/// Handles a request with this content. Returns the content of its reply; `None` for a message that has no reply.
type Handler = fn(&mut Server, &JupyterMessage, &Value) -> Option<Value>;

/// The messages that are handled at once. Cells, completion and inspection wait for evcxr.
const SHELL: [(&str, Handler); 8] = [
    ("comm_close", Server::comm_message),
    ("comm_info_request", Server::comm_info),
    ("comm_msg", Server::comm_message),
    ("comm_open", Server::comm_message),
    ("history_request", Server::history),
    ("is_complete_request", Server::is_complete),
    ("kernel_info_request", Server::kernel_info),
    ("shutdown_request", Server::shut_down),
];

const CONTROL: [(&str, Handler); 4] = [
    ("interrupt_request", Server::interrupt_request),
    ("kernel_info_request", Server::kernel_info),
    ("shutdown_request", Server::shut_down),
    ("usage_request", Server::usage),
];

impl Server {
    pub fn handle_shell(&mut self, request: JupyterMessage) {
        match request.header.msg_type.as_str() {
            "execute_request" => {
                self.queue.push_back(request);
                self.start_next();
            }
            "complete_request" | "inspect_request" => self.forward(request),
            _ => self.dispatch(&SHELL, &self.shell.clone(), &request),
        }
    }

    pub fn handle_control(&mut self, request: &JupyterMessage) {
        self.dispatch(&CONTROL, &self.control.clone(), request);
    }

    /// Calls the handler of a request, and sends what it returns to `outbox`.
    fn dispatch(&mut self, handlers: &[(&str, Handler)], outbox: &Outbox, request: &JupyterMessage) {
        let kind = &request.header.msg_type;
        self.status("busy", request);
        match handlers.iter().find(|(name, _)| name == kind) {
            Some((_, handle)) => {
                if let Some(reply) = handle(self, request, &content(request)) {
                    self.reply(outbox, reply, request);
                }
            }
            None => eprintln!("kernel: unknown message `{kind}`"),
        }
        self.status("idle", request);
    }

    fn comm_message(&mut self, request: &JupyterMessage, asked: &Value) -> Option<Value> {
        let effect = self.comms.receive(&request.header.msg_type, asked, &request.buffers);
        for (kind, content, buffers) in effect.publish {
            self.publish_with(kind, content, buffers, Some(request));
        }
        if effect.page_opened {
            self.tell_page_opened(request);
        }
        if let Some((owner, push, buffers)) = effect.push
            && let Some(link) = self.links.get(&owner)
        {
            link.send_with(push, buffers);
        }
        None
    }

    fn comm_info(&mut self, _: &JupyterMessage, asked: &Value) -> Option<Value> {
        Some(json!({"status": "ok", "comms": self.comms.info(&asked["target_name"])}))
    }

    fn history(&mut self, _: &JupyterMessage, asked: &Value) -> Option<Value> {
        Some(json!({"status": "ok", "history": self.history.recall(asked)}))
    }

    fn interrupt_request(&mut self, _: &JupyterMessage, _: &Value) -> Option<Value> {
        self.interrupt();
        Some(json!({"status": "ok"}))
    }

    fn is_complete(&mut self, _: &JupyterMessage, asked: &Value) -> Option<Value> {
        let code = asked["code"].as_str().unwrap_or_default();
        Some(json!({"status": syntax::completeness(code), "indent": ""}))
    }

    /// Describes the kernel. Every page asks for this first, so another page than the running cell's is a new one.
    fn kernel_info(&mut self, request: &JupyterMessage, _: &Value) -> Option<Value> {
        if let Some(cell) = self.cell.as_mut().filter(|cell| !same_page(&cell.request, request)) {
            cell.page_opened = true;
        }
        Some(kernel_info(&self.rust))
    }

    fn shut_down(&mut self, _: &JupyterMessage, asked: &Value) -> Option<Value> {
        self.ended = true;
        Some(json!({"status": "ok", "restart": asked["restart"]}))
    }

    fn usage(&mut self, _: &JupyterMessage, _: &Value) -> Option<Value> {
        Some(self.usage.measure(std::process::id()))
    }

    /// Forwards completion or inspection to evcxr, which replies only between cells.
    fn forward(&mut self, request: JupyterMessage) {
        self.status("busy", &request);
        self.pass_on(request);
    }

    pub fn pass_on(&mut self, request: JupyterMessage) {
        let free = self.ready && self.cell.is_none() && self.queue.is_empty();
        if free {
            let next = self.forwarded.forward(request);
            self.complete_forwarded(next);
        } else {
            self.complete(&request, Forwarded::empty_reply(&request));
        }
    }

    /// Tells the links that another page now shows their widgets, so that they put more into them.
    fn tell_page_opened(&self, request: &JupyterMessage) {
        let elsewhere =
            |parent: &Option<JupyterMessage>| parent.as_ref().is_some_and(|parent| !same_page(parent, request));
        for link in self.links.values().filter(|link| elsewhere(&link.parent)) {
            link.send(json!({"opened": true}));
        }
    }
}
