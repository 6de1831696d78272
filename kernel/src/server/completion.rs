//! Completion and inspection, forwarded to evcxr in a form that it understands. Private names are left out of its
//! replies.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use jupyter_protocol::JupyterMessage;
use serde_json::{Value, json};
use unicode_segmentation::UnicodeSegmentation;

use crate::cells::names::{self, Names, Verdict};
use crate::cells::syntax;
use crate::server::wire::{content, message};

/// Asking evcxr about a name takes time. Where more methods than this may be private, they most likely belong to a type
/// of another crate, and all are offered. So are fields, where there are more.
const MOST: usize = 24;

/// The purpose of a request to evcxr.
enum Purpose {
    Completion(JupyterMessage),
    Inspection(JupyterMessage),
    /// Whether one name of the completion with this number is private.
    Name {
        completion: u64,
        index: usize,
        field: bool,
    },
}

/// A completion that waits for evcxr's replies about some of its names.
struct Completion {
    request: JupyterMessage,
    reply: Value,
    waits_for: usize,
    hidden: Vec<usize>,
}

/// The next step after a reply of evcxr.
pub enum Next {
    /// Send this reply to this request.
    Reply(Box<JupyterMessage>, Value),
    /// Send these requests to evcxr.
    Send(Vec<JupyterMessage>),
    Wait,
}

/// The requests to which evcxr has not replied yet, and the names of crates that are being edited.
pub struct Forwarded {
    /// By the id of the request to evcxr.
    requests: HashMap<String, Purpose>,
    completions: HashMap<u64, Completion>,
    /// The kinds of request that evcxr works on, each with the newest that came in the meantime.
    newest: HashMap<String, Option<JupyterMessage>>,
    /// Number of completions that needed further requests.
    completed: u64,
    /// evcxr's `Cargo.toml`.
    manifest: PathBuf,
    /// The names, and the text of the `Cargo.toml` from which they were found.
    known: Option<(String, Arc<Names>)>,
}

impl Forwarded {
    pub fn new(manifest: PathBuf) -> Self {
        let newest = HashMap::new();
        Self { requests: HashMap::new(), completions: HashMap::new(), newest, completed: 0, manifest, known: None }
    }

    /// Turns a request of a frontend into one to evcxr. People type faster than evcxr completes: of those that come
    /// while it works on one, only the newest is sent, later, and the others find nothing.
    pub fn forward(&mut self, request: JupyterMessage) -> Next {
        if let Some(newest) = self.newest.get_mut(&request.header.msg_type) {
            return newest.replace(request).map_or(Next::Wait, |overtaken| {
                let empty = Self::empty_reply(&overtaken);
                Next::Reply(Box::new(overtaken), empty)
            });
        }
        self.newest.insert(request.header.msg_type.clone(), None);
        Next::Send(vec![self.translated(request)])
    }

    /// Returns the request that waits for the end of one of this kind.
    pub fn ended(&mut self, kind: &str) -> Option<JupyterMessage> {
        self.newest.remove(kind).flatten()
    }

    fn translated(&mut self, request: JupyterMessage) -> JupyterMessage {
        let asked = content(&request);
        let code = asked["code"].as_str().unwrap_or_default();
        let cursor = asked["cursor_pos"].as_u64().unwrap_or_default() as usize;
        if request.header.msg_type == "complete_request" {
            let asked = json!({"code": code, "cursor_pos": in_graphemes(code, cursor)});
            return self.request(message("complete_request", asked, None), Purpose::Completion(request));
        }
        let code = syntax::inspected(code, cursor);
        self.request(inspection(&code), Purpose::Inspection(request))
    }

    /// Returns the reply to give while evcxr is busy.
    pub fn empty_reply(request: &JupyterMessage) -> Value {
        if request.header.msg_type == "complete_request" {
            let at = &content(request)["cursor_pos"];
            return json!({"status": "ok", "matches": [], "cursor_start": at, "cursor_end": at, "metadata": {}});
        }
        json!({"status": "ok", "found": false, "data": {}, "metadata": {}})
    }

    fn request(&mut self, request: JupyterMessage, purpose: Purpose) -> JupyterMessage {
        self.requests.insert(request.header.msg_id.clone(), purpose);
        request
    }

    /// Takes in evcxr's reply to the request `id`. Returns `None` where the request was not sent from here.
    pub fn take_reply(&mut self, id: &str, reply: impl FnOnce() -> Value) -> Option<Next> {
        Some(match self.requests.remove(id)? {
            Purpose::Inspection(request) => Next::Reply(Box::new(request), reply()),
            Purpose::Completion(request) => self.sift(request, reply()),
            Purpose::Name { completion, index, field } => {
                let is_private = |said: &str| match field {
                    true => names::is_private_field(said),
                    false => self.names().is_private(said),
                };
                let private = reply()["data"]["text/plain"].as_str().is_some_and(is_private);
                let waiting = self.completions.get_mut(&completion)?;
                waiting.waits_for -= 1;
                if private {
                    waiting.hidden.push(index);
                }
                if waiting.waits_for > 0 {
                    return Some(Next::Wait);
                }
                let done = self.completions.remove(&completion)?;
                Next::Reply(Box::new(done.request), without(done.reply, &done.hidden))
            }
        })
    }

    /// Removes private and repeated names from a completion, or asks evcxr which are private.
    fn sift(&mut self, request: JupyterMessage, mut reply: Value) -> Next {
        let asked = content(&request);
        let code = asked["code"].as_str().unwrap_or_default();
        to_code_points(code, &mut reply);
        let start = reply["cursor_start"].as_u64().unwrap_or_default() as usize;
        let before: String = code.chars().take(start).collect();
        let matches: Vec<String> = serde_json::from_value(reply["matches"].clone()).unwrap_or_default();
        let all = self.names();
        // rust-analyzer offers the private fields of all crates. Fields are few, and methods have a bracket.
        let is_field = |completion: &str| before.trim_end().ends_with('.') && names::name(completion) == completion;
        let (mut hidden, mut doubtful, mut fields) = (vec![], vec![], vec![]);
        for (index, completion) in matches.iter().enumerate() {
            match all.judge(&before, names::name(completion)) {
                _ if matches[..index].contains(completion) => hidden.push(index),
                Verdict::Hide => hidden.push(index),
                _ if is_field(completion) => fields.push(index),
                Verdict::Ask => doubtful.push(index),
                Verdict::Offer => {}
            }
        }
        for list in [&mut doubtful, &mut fields] {
            if list.len() > MOST {
                list.clear();
            }
        }
        doubtful.append(&mut fields);
        if doubtful.is_empty() {
            return Next::Reply(Box::new(request), without(reply, &hidden));
        }
        self.completed += 1;
        let completion = self.completed;
        let waiting = Completion { request, reply, waits_for: doubtful.len(), hidden };
        self.completions.insert(completion, waiting);
        let request = |index: usize| {
            let call = if matches[index].contains('(') { "(" } else { "" };
            let code = format!("{before}{}{call}", names::name(&matches[index]));
            let code = syntax::inspected(&code, code.chars().count());
            let field = is_field(&matches[index]);
            self.request(inspection(&code), Purpose::Name { completion, index, field })
        };
        Next::Send(doubtful.into_iter().map(request).collect())
    }

    /// Returns the names, found again where a cell has changed the dependencies.
    fn names(&mut self) -> Arc<Names> {
        let text = std::fs::read_to_string(&self.manifest).unwrap_or_default();
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

/// Jupyter counts code points, and evcxr counts graphemes: what a reader sees as one character.
fn in_graphemes(code: &str, code_points: usize) -> usize {
    let at = code.char_indices().nth(code_points).map_or(code.len(), |(at, _)| at);
    code.grapheme_indices(true).take_while(|(start, _)| *start < at).count()
}

fn in_code_points(code: &str, graphemes: usize) -> usize {
    code.graphemes(true).take(graphemes).map(|grapheme| grapheme.chars().count()).sum()
}

/// Counts the places in evcxr's reply to a completion in code points.
fn to_code_points(code: &str, reply: &mut Value) {
    let convert = |place: Option<&mut Value>| {
        if let Some(place) = place
            && let Some(graphemes) = place.as_u64()
        {
            *place = json!(in_code_points(code, graphemes as usize));
        }
    };
    ["cursor_start", "cursor_end"].into_iter().for_each(|name| convert(reply.get_mut(name)));
    let types = reply.pointer_mut("/metadata/_jupyter_types_experimental").and_then(Value::as_array_mut);
    for entry in types.into_iter().flatten() {
        ["start", "end"].into_iter().for_each(|name| convert(entry.get_mut(name)));
    }
}

fn inspection(code: &str) -> JupyterMessage {
    let asked = json!({"code": code, "cursor_pos": code.chars().count(), "detail_level": 0});
    message("inspect_request", asked, None)
}

/// Removes the matches at these places from the reply to a completion.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_code_points() {
        // A scientist of three code points, an accent of its own, and a flag of two.
        let code = "let s = \"\u{1f469}\u{200d}\u{1f52c} e\u{301} \u{1f1e9}\u{1f1ea}\"; s.le";
        let all = code.chars().count();
        assert_eq!(in_graphemes(code, all), all - 4);
        let mut reply = json!({
            "cursor_start": all - 6, "cursor_end": all - 4,
            "metadata": {"_jupyter_types_experimental": [{"start": all - 6, "end": all - 4, "text": "len()"}]},
        });
        to_code_points(code, &mut reply);
        assert_eq!((&reply["cursor_start"], &reply["cursor_end"]), (&json!(all - 2), &json!(all)));
        let entry = &reply["metadata"]["_jupyter_types_experimental"][0];
        assert_eq!((&entry["start"], &entry["end"]), (&json!(all - 2), &json!(all)));
        assert_eq!((in_graphemes("abc", 2), in_code_points("abc", 2)), (2, 2));
        // Within a character that a reader sees as one, the place is behind it.
        assert_eq!(in_graphemes("e\u{301}x", 1), 1);
    }
}
