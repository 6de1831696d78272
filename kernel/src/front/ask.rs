//! Completion and inspection: evcxr's, asked in a way that it understands, and without what is private.

use std::sync::Arc;

use jupyter_protocol::JupyterMessage;
use serde_json::{Value, json};

use super::Front;
use crate::names::{self, Names, Verdict};
use crate::syntax;
use crate::wire::{content, message};

/// More names than this that may be private belong to a type of another crate, most likely. Asking takes time.
const MOST: usize = 16;

/// What an answer of evcxr is for.
pub enum Asked {
    Completion(JupyterMessage),
    Inspection(JupyterMessage),
    /// One name of the completion with this number.
    Name {
        completion: u64,
        index: usize,
    },
}

/// A completion that waits for what evcxr says of some of its names.
pub struct Completion {
    request: JupyterMessage,
    reply: Value,
    waits_for: usize,
    hidden: Vec<usize>,
}

impl Front {
    /// evcxr answers only between cells.
    pub(super) fn ask_evcxr(&mut self, request: JupyterMessage, kind: &str, asked: &Value) {
        self.status("busy", &request);
        let free = self.ready && self.inner.is_some() && self.cell.is_none() && self.queue.is_empty();
        match kind {
            "complete_request" if free => {
                let message = message(kind, asked.clone(), None);
                self.send_to_evcxr(message, Asked::Completion(request));
            }
            "inspect_request" if free => {
                let cursor = asked["cursor_pos"].as_u64().unwrap_or_default() as usize;
                let code = syntax::inspected(asked["code"].as_str().unwrap_or_default(), cursor);
                self.send_to_evcxr(inspection(&code), Asked::Inspection(request));
            }
            "complete_request" => {
                let at = &asked["cursor_pos"];
                let nothing =
                    json!({"status": "ok", "matches": [], "cursor_start": at, "cursor_end": at, "metadata": {}});
                self.answer(&request, nothing);
            }
            _ => self.answer(&request, json!({"status": "ok", "found": false, "data": {}, "metadata": {}})),
        }
    }

    fn send_to_evcxr(&mut self, message: JupyterMessage, asked: Asked) {
        if let Some((shell, _)) = &self.inner {
            self.asked.insert(message.header.msg_id.clone(), asked);
            let _ = shell.send(message);
        }
    }

    fn answer(&self, request: &JupyterMessage, reply: Value) {
        self.reply(&self.shell, reply, request);
        self.status("idle", request);
    }

    pub(super) fn evcxr_answered(&mut self, asked: Asked, reply: Value) {
        match asked {
            Asked::Inspection(request) => self.answer(&request, reply),
            Asked::Completion(request) => self.sift(request, reply),
            Asked::Name { completion, index } => {
                let private = reply["data"]["text/plain"].as_str().is_some_and(|said| self.names().is_private(said));
                let Some(waiting) = self.completions.get_mut(&completion) else { return };
                waiting.waits_for -= 1;
                if private {
                    waiting.hidden.push(index);
                }
                if waiting.waits_for == 0
                    && let Some(done) = self.completions.remove(&completion)
                {
                    self.answer(&done.request, without(done.reply, &done.hidden));
                }
            }
        }
    }

    /// Takes private and repeated names out, or asks which are private.
    fn sift(&mut self, request: JupyterMessage, reply: Value) {
        let asked = content(&request);
        let code = asked["code"].as_str().unwrap_or_default();
        let start = reply["cursor_start"].as_u64().unwrap_or_default() as usize;
        let before: String = code.chars().take(start).collect();
        let matches: Vec<String> = serde_json::from_value(reply["matches"].clone()).unwrap_or_default();
        let all = self.names();
        let (mut hidden, mut doubtful) = (vec![], vec![]);
        for (index, completion) in matches.iter().enumerate() {
            match all.judge(&before, names::name(completion)) {
                _ if matches[..index].contains(completion) => hidden.push(index),
                Verdict::Hide => hidden.push(index),
                Verdict::Ask => doubtful.push(index),
                Verdict::Offer => {}
            }
        }
        if doubtful.is_empty() || doubtful.len() > MOST {
            return self.answer(&request, without(reply, &hidden));
        }
        self.completed += 1;
        let completion = self.completed;
        let waiting = Completion { request, reply, waits_for: doubtful.len(), hidden };
        self.completions.insert(completion, waiting);
        for index in doubtful {
            let call = if matches[index].contains('(') { "(" } else { "" };
            let code = format!("{before}{}{call}", names::name(&matches[index]));
            let code = syntax::inspected(&code, code.chars().count());
            self.send_to_evcxr(inspection(&code), Asked::Name { completion, index });
        }
    }

    /// Read again when a cell has changed which crates there are.
    fn names(&mut self) -> Arc<Names> {
        let manifest = self.generated.as_ref().and_then(|file| Some(file.parent()?.parent()?.join("Cargo.toml")));
        let text = manifest.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        match &self.known {
            Some((of, names)) if *of == text => Arc::clone(names),
            _ => {
                let names = Arc::new(Names::of(&text));
                self.known = Some((text, Arc::clone(&names)));
                names
            }
        }
    }
}

fn inspection(code: &str) -> JupyterMessage {
    let asked = json!({"code": code, "cursor_pos": code.chars().count(), "detail_level": 0});
    message("inspect_request", asked, None)
}

/// The reply to a completion without the matches at these places.
fn without(mut reply: Value, hidden: &[usize]) -> Value {
    let lists = ["/matches", "/metadata/_jupyter_types_experimental"];
    for list in lists {
        if let Some(list) = reply.pointer_mut(list).and_then(Value::as_array_mut) {
            let mut index = 0..;
            list.retain(|_| index.next().is_none_or(|index| !hidden.contains(&index)));
        }
    }
    reply
}
