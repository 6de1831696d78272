//! Handles what comes through the sockets in the private folder: the requests of cells, and the child's streams.

use bytes::Bytes;
use jupyter_protocol::JupyterMessage;
use serde_json::{Value, json};

use crate::cells::child::Child;
use crate::cells::interrupt::Stop;
use crate::server::link::{Link, LinkEvent};
use crate::server::state::{STDERR, Server};
use crate::server::wire::message;

impl Server {
    pub fn handle_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Stdin(pid, stdin) => {
                if let Some(child) = self.child.as_mut().filter(|child| child.pid == pid) {
                    child.renew_stdin(stdin);
                }
            }
            LinkEvent::Child(streams, pid, socket) => match Child::new(streams, pid, socket) {
                Ok(child) => self.child = Some(child),
                Err(error) => eprintln!("kernel: cannot read from the cells' process: {error}"),
            },
            LinkEvent::ChildEnded(pid) => {
                self.drain();
                // Dropping the child closes its pipes, by which evcxr notices the end.
                if let Some(mut child) = self.child.take_if(|child| child.pid == pid) {
                    for piece in std::mem::take(&mut child.waiting) {
                        self.show(&mut child, piece);
                    }
                    let text = child.err.release_of_ended();
                    self.print(STDERR, text);
                    child.out.flush().into_iter().for_each(|piece| self.show(&mut child, piece));
                }
            }
            LinkEvent::Connected(id, sender) => {
                let parent = self.parent();
                self.links.insert(id, Link { sender, parent, watches: false });
            }
            LinkEvent::Request(id, request, buffers) => self.handle_cell_request(id, &request, &buffers),
            LinkEvent::Disconnected(id) => {
                self.stop_watching(id);
                let link = self.links.remove(&id);
                let parent = link.and_then(|link| link.parent);
                for content in self.comms.close_all_of(id) {
                    self.publish("comm_close", content, parent.as_ref());
                }
            }
        }
    }

    fn handle_cell_request(&mut self, id: u64, request: &Value, buffers: &[Bytes]) {
        let asked = request.as_object().and_then(|request| request.iter().next());
        let done = match asked {
            Some((kind, content)) => self.dispatch_cell_request(id, kind, content, buffers),
            None => Err("a request is an object".to_owned()),
        };
        if let Some(link) = self.links.get(&id) {
            link.send(done.map_or_else(|why| json!({ "error": why }), |()| json!({"ok": true})));
        }
    }

    /// Handles a request on the link `id`. Returns why it is refused.
    fn dispatch_cell_request(&mut self, id: u64, kind: &str, content: &Value, buffers: &[Bytes]) -> Result<(), String> {
        // The link belongs to the cell that opened it.
        let parent = self.links.get(&id).and_then(|link| link.parent.clone());
        match kind {
            "afterwards" => self.show_afterwards(content),
            "clear_output" => self.clear_output(content, parent),
            "comm_close" => self.close_comm(content, parent),
            "comm_msg" => self.change_comm(content, buffers, parent),
            "comm_open" => self.open_comm(id, content, buffers, parent),
            "comms_keep" => self.comms.keep_all_of(id),
            "display" => self.display(content, parent)?,
            "set_next_input" => self.set_next_input(content)?,
            "unwatch" => self.stop_watching(id),
            "watch" => self.watch(id),
            _ => return Err(format!("unknown request {kind:?}")),
        }
        Ok(())
    }

    fn show_afterwards(&mut self, code: &Value) {
        if let (Some(cell), Some(code)) = (&mut self.cell, code.as_str())
            && !cell.afterwards.iter().any(|known| known == code)
        {
            cell.afterwards.push(code.to_owned());
        }
    }

    fn clear_output(&mut self, content: &Value, parent: Option<JupyterMessage>) {
        // What the cell printed before is cleared, too.
        self.drain();
        let parent = self.parent().or(parent);
        self.publish("clear_output", json!({"wait": content["wait"] == true}), parent.as_ref());
    }

    fn close_comm(&mut self, content: &Value, parent: Option<JupyterMessage>) {
        self.comms.close(content);
        self.publish("comm_close", json!({"comm_id": content["comm_id"], "data": {}}), parent.as_ref());
    }

    fn change_comm(&mut self, content: &Value, buffers: &[Bytes], parent: Option<JupyterMessage>) {
        if self.comms.message(content, buffers) {
            self.publish_with("comm_msg", content.clone(), buffers.to_vec(), parent.as_ref());
        }
    }

    fn open_comm(&mut self, id: u64, content: &Value, buffers: &[Bytes], parent: Option<JupyterMessage>) {
        self.drain();
        self.comms.open(content, buffers, id);
        let mut open = content.clone();
        let metadata = open.as_object_mut().and_then(|open| open.remove("metadata")).unwrap_or(json!({}));
        let mut message = message("comm_open", open, parent.as_ref()).with_metadata(metadata);
        message.zmq_identities.clear();
        message.buffers = buffers.to_vec();
        let _ = self.iopub.send(message);
    }

    fn display(&mut self, content: &Value, parent: Option<JupyterMessage>) -> Result<(), String> {
        if parent.is_none() && self.parent().is_none() {
            return Err("no cell has run yet, so a display has no place".into());
        }
        if !content["data"].is_object() {
            return Err("a display needs `data`: an object of contents by MIME type".into());
        }
        // Text that the cell printed before must appear before the display.
        self.drain();
        // Frontends such as nbclient listen only to the running cell. They find a display by its id.
        let current = self.parent().filter(|_| content["update"] == true);
        self.publish_display(content, current.or(parent).as_ref());
        Ok(())
    }

    fn set_next_input(&mut self, content: &Value) -> Result<(), String> {
        let cell = self.cell.as_mut().ok_or("no cell is running, so none can be followed by another")?;
        let text = content["text"].as_str().ok_or("the next input needs a `text`")?;
        let replace = content["replace"] == true;
        cell.next_input = Some(json!({"source": "set_next_input", "text": text, "replace": replace}));
        Ok(())
    }

    fn watch(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.watches = true;
        // Work that begins after Interrupt, in the same cell.
        if let Some(cell) = self.cell.as_mut().filter(|cell| cell.interrupted.is_some()) {
            cell.watched = true;
            link.send(json!({"stop": "interrupted"}));
        }
    }

    /// Work that watched for Interrupt has ended. After an Interrupt, loops around it stop, too.
    fn stop_watching(&mut self, id: u64) {
        let watched = self.links.get_mut(&id).is_some_and(|link| std::mem::take(&mut link.watches));
        let interrupted = self.cell.as_ref().is_some_and(|cell| cell.interrupted.is_some());
        if watched && interrupted && !self.links.values().any(|link| link.watches) {
            self.stop.set(Stop::Loops);
        }
    }
}
