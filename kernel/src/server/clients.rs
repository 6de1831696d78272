//! Handles what comes through the sockets in the private folder: the requests of cells, and the process that runs
//! them.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::cells::child::Child;
use crate::cells::interrupt::Stop;
use crate::server::front::{Client, Front, STDERR};
use crate::server::link::LinkEvent;
use crate::server::wire::message;

impl Front {
    pub fn handle_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Stdin(pid, stdin) => {
                if let Some(child) = self.child.as_mut().filter(|child| child.pid == pid) {
                    child.renew_stdin(stdin);
                }
            }
            LinkEvent::Child(streams, pid, line) => match Child::new(streams, pid, line) {
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
            LinkEvent::Opened(id, sender) => {
                let parent = self.parent();
                self.clients.insert(id, Client { sender, parent, watches: false });
            }
            LinkEvent::Request(id, request, buffers) => self.handle_request(id, &request, &buffers),
            LinkEvent::Closed(id) => {
                self.stop_watching(id);
                let client = self.clients.remove(&id);
                let parent = client.and_then(|client| client.parent);
                for content in self.comms.close_all_of(id) {
                    self.publish("comm_close", content, parent.as_ref());
                }
            }
        }
    }

    fn handle_request(&mut self, id: u64, request: &Value, buffers: &[Bytes]) {
        let Some(parent) = self.clients.get(&id).map(|client| client.parent.clone()) else { return };
        let parent = parent.as_ref();
        let asked = request.as_object().and_then(|request| request.iter().next());
        let mut answer = json!({"ok": true});
        match asked.map(|(kind, content)| (kind.as_str(), content)) {
            Some(("display", _)) if parent.is_none() && self.parent().is_none() => {
                answer = json!({"error": "no cell has run yet, so a display has no place"})
            }
            Some(("display", content)) if content["data"].is_object() => {
                // Text that the cell printed before must appear before the display.
                self.drain();
                // Clients such as nbclient listen only to the running cell. They find a display by its id.
                let current = self.parent().filter(|_| content["update"] == true);
                self.publish_display(content, current.as_ref().or(parent));
            }
            Some(("display", _)) => {
                answer = json!({"error": "a display needs `data`: an object of contents by MIME type"})
            }
            Some(("comm_open", content)) => {
                self.drain();
                self.comms.open(content, buffers, id);
                let mut open = content.clone();
                let metadata = open.as_object_mut().and_then(|open| open.remove("metadata")).unwrap_or(json!({}));
                let mut message = message("comm_open", open, parent).with_metadata(metadata);
                message.zmq_identities.clear();
                message.buffers = buffers.to_vec();
                let _ = self.iopub.send(message);
            }
            Some(("comm_msg", content)) => {
                if self.comms.message(content, buffers) {
                    self.publish_with("comm_msg", content.clone(), buffers.to_vec(), parent);
                }
            }
            Some(("comm_close", content)) => {
                self.comms.close(content);
                self.publish("comm_close", json!({"comm_id": content["comm_id"], "data": {}}), parent);
            }
            Some(("comms_keep", _)) => self.comms.keep_all_of(id),
            Some(("clear_output", content)) => {
                // What the cell printed before is cleared, too.
                self.drain();
                let current = self.parent();
                self.publish("clear_output", json!({"wait": content["wait"] == true}), current.as_ref().or(parent));
            }
            Some(("set_next_input", content)) => match (&mut self.cell, content["text"].as_str()) {
                (Some(cell), Some(text)) => {
                    let replace = content["replace"] == true;
                    cell.next_input = Some(json!({"source": "set_next_input", "text": text, "replace": replace}));
                }
                (None, _) => answer = json!({"error": "no cell is running, so none can be followed by another"}),
                (_, None) => answer = json!({"error": "the next input needs a `text`"}),
            },
            Some(("afterwards", code)) => {
                if let (Some(cell), Some(code)) = (&mut self.cell, code.as_str())
                    && !cell.afterwards.iter().any(|known| known == code)
                {
                    cell.afterwards.push(code.to_owned());
                }
            }
            Some(("watch", _)) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.watches = true;
                    // A fit that begins after Interrupt, in the same cell.
                    if let Some(cell) = self.cell.as_mut().filter(|cell| cell.told.is_some()) {
                        cell.watched = true;
                        client.send(json!({"stop": "interrupted"}));
                    }
                }
            }
            Some(("unwatch", _)) => self.stop_watching(id),
            other => answer = json!({"error": format!("unknown request {:?}", other.map(|(kind, _)| kind))}),
        }
        if let Some(client) = self.clients.get(&id) {
            client.send(answer);
        }
    }

    /// Work that watched for Interrupt has ended. After an Interrupt, loops around it stop, too.
    fn stop_watching(&mut self, id: u64) {
        let watched = self.clients.get_mut(&id).is_some_and(|client| std::mem::take(&mut client.watches));
        let told = self.cell.as_ref().is_some_and(|cell| cell.told.is_some());
        if watched && told && !self.clients.values().any(|client| client.watches) {
            self.stop.set(Stop::Loops);
        }
    }
}
