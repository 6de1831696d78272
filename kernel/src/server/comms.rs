//! The open widgets with their states and owners. The server replies for them, so that they stay alive while a cell
//! runs (`jupyter.widget` comm protocol, version 2, of ipywidgets 8).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Map, Value, json};

/// The comm target by which a reloaded page asks for the states of all widgets.
const CONTROL_TARGET: &str = "jupyter.widget.control";

struct Comm {
    target: Value,
    /// The state as `comm_open` and later updates set it.
    state: Map<String, Value>,
    /// Binary parts of the state, each with its path in the state, such as `["value", 0, "content"]`.
    buffers: Vec<(Value, Bytes)>,
    /// The number of the link that opened it.
    owner: u64,
}

#[derive(Default)]
pub struct Comms {
    open: BTreeMap<String, Comm>,
    controls: BTreeSet<String>,
}

/// The effect of a frontend's message: messages to all frontends, and one to the owner.
#[derive(Default, Debug, PartialEq)]
pub struct Effect {
    /// Types, contents and buffers of messages for iopub.
    pub publish: Vec<(&'static str, Value, Vec<Bytes>)>,
    pub push: Option<(u64, Value, Vec<Bytes>)>,
    /// A page asked for the states of all widgets, as each does when it is opened.
    pub page_opened: bool,
}

/// Stands for the owner of widgets that outlive their link.
const NOBODY: u64 = u64::MAX;

impl Comms {
    /// Handles `comm_open` from a cell.
    pub fn open(&mut self, content: &Value, buffers: &[Bytes], owner: u64) {
        let target = content["target_name"].clone();
        let mut comm = Comm { target, state: Map::new(), buffers: vec![], owner };
        comm.set(&content["data"], buffers);
        self.open.insert(id(content), comm);
    }

    /// Handles `comm_msg` from a cell. Returns `false` where a frontend has closed the comm, so that nobody needs
    /// the message.
    pub fn message(&mut self, content: &Value, buffers: &[Bytes]) -> bool {
        match self.open.get_mut(&id(content)) {
            Some(comm) => comm.merge(&content["data"], buffers),
            None => return false,
        }
        true
    }

    pub fn close(&mut self, content: &Value) {
        self.open.remove(&id(content));
    }

    /// Keeps the widgets of a link in their present state when it ends.
    pub fn keep_all_of(&mut self, owner: u64) {
        self.open.values_mut().filter(|comm| comm.owner == owner).for_each(|comm| comm.owner = NOBODY);
    }

    /// Closes the widgets of a link that ended. Returns the contents of the messages to publish.
    pub fn close_all_of(&mut self, owner: u64) -> Vec<Value> {
        let (closed, kept) = std::mem::take(&mut self.open).into_iter().partition(|(_, comm)| comm.owner == owner);
        self.open = kept;
        let closed: BTreeMap<String, Comm> = closed;
        closed.into_keys().map(|comm_id| json!({"comm_id": comm_id, "data": {}})).collect()
    }

    /// Returns `comms` of a `comm_info_reply`.
    pub fn info(&self, target: &Value) -> Value {
        let wanted = |comm: &&Comm| target.as_str().is_none_or(|name| name.is_empty() || comm.target == name);
        let all = self.open.iter().filter(|(_, comm)| wanted(comm));
        all.map(|(id, comm)| (id.clone(), json!({"target_name": comm.target}))).collect::<Map<_, _>>().into()
    }

    /// Handles `comm_open`, `comm_msg` or `comm_close` from a frontend.
    pub fn receive(&mut self, kind: &str, content: &Value, buffers: &[Bytes]) -> Effect {
        let comm_id = id(content);
        let closed = ("comm_close", json!({"comm_id": comm_id, "data": {}}), vec![]);
        match kind {
            "comm_open" if content["target_name"] == CONTROL_TARGET => {
                self.controls.insert(comm_id);
                Effect::default()
            }
            "comm_open" => Effect { publish: vec![closed], ..Effect::default() },
            "comm_close" => {
                self.controls.remove(&comm_id);
                self.open.remove(&comm_id);
                Effect::default()
            }
            _ if self.controls.contains(&comm_id) => {
                let (paths, buffers) = self.all_buffers();
                let data = json!({"method": "update_states", "states": self.states(), "buffer_paths": paths});
                let publish = vec![("comm_msg", json!({"comm_id": comm_id, "data": data}), buffers)];
                Effect { publish, page_opened: true, ..Effect::default() }
            }
            _ => match self.open.get_mut(&comm_id) {
                Some(comm) => comm.receive(&comm_id, &content["data"], buffers),
                None => Effect { publish: vec![closed], ..Effect::default() },
            },
        }
    }

    /// Returns the buffers of all states, each with its path in the reply to `request_states`.
    fn all_buffers(&self) -> (Vec<Value>, Vec<Bytes>) {
        let path = |id: &str, path: &Value| {
            let within = path.as_array().into_iter().flatten().cloned();
            [json!(id), json!("state")].into_iter().chain(within).collect()
        };
        let all = self.open.iter().flat_map(|(id, comm)| comm.buffers.iter().map(move |buffer| (id, buffer)));
        all.map(|(id, (within, bytes))| (path(id, within), bytes.clone())).unzip()
    }

    fn states(&self) -> Map<String, Value> {
        let one = |comm: &Comm| {
            json!({
                "model_name": comm.state.get("_model_name"), "model_module": comm.state.get("_model_module"),
                "model_module_version": comm.state.get("_model_module_version"), "state": comm.state,
            })
        };
        self.open.iter().map(|(id, comm)| (id.clone(), one(comm))).collect()
    }
}

impl Comm {
    fn merge(&mut self, data: &Value, buffers: &[Bytes]) {
        if data["method"] == "update" {
            self.set(data, buffers);
        }
    }

    /// Sets the values that `data` holds, with their binary parts.
    fn set(&mut self, data: &Value, buffers: &[Bytes]) {
        let state = data["state"].as_object();
        let is_set = |path: &Value| state.is_some_and(|state| path[0].as_str().is_some_and(|n| state.contains_key(n)));
        self.buffers.retain(|(path, _)| !is_set(path));
        let paths = data["buffer_paths"].as_array().into_iter().flatten().cloned();
        self.buffers.extend(paths.zip(buffers.iter().cloned()));
        self.state.extend(state.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
    }

    fn receive(&mut self, comm_id: &str, data: &Value, buffers: &[Bytes]) -> Effect {
        let message = |data: Value, buffers| vec![("comm_msg", json!({"comm_id": comm_id, "data": data}), buffers)];
        let publish = match data["method"].as_str() {
            Some("request_state") => {
                let (paths, buffers): (Vec<_>, Vec<_>) = self.buffers.iter().cloned().unzip();
                let state = json!({"method": "update", "state": self.state, "buffer_paths": paths});
                return Effect { publish: message(state, buffers), ..Effect::default() };
            }
            // The echo updates other frontends of the notebook, and confirms the update to the sender.
            Some("update") => {
                self.merge(data, buffers);
                let echo =
                    json!({"method": "echo_update", "state": data["state"], "buffer_paths": data["buffer_paths"]});
                message(echo, buffers.to_vec())
            }
            _ => vec![],
        };
        let push = Some((self.owner, json!({"comm_msg": {"comm_id": comm_id, "data": data}}), buffers.to_vec()));
        Effect { publish, push, ..Effect::default() }
    }
}

fn id(content: &Value) -> String {
    content["comm_id"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slider(comms: &mut Comms) {
        let state = json!({"_model_name": "FloatSliderModel", "value": 4.0, "min": 0.5});
        comms.open(
            &json!({"comm_id": "a", "target_name": "jupyter.widget", "data": {"state": state, "buffer_paths": []}}),
            &[],
            7,
        );
    }

    #[test]
    fn the_state_is_what_both_sides_made_of_it() {
        let mut comms = Comms::default();
        slider(&mut comms);
        let update = json!({"method": "update", "state": {"value": 2.0}, "buffer_paths": []});
        let effect = comms.receive("comm_msg", &json!({"comm_id": "a", "data": update}), &[]);
        assert_eq!(effect.push, Some((7, json!({"comm_msg": {"comm_id": "a", "data": update}}), vec![])));
        assert_eq!(effect.publish[0].1["data"]["method"], "echo_update");
        assert!(comms.message(&json!({"comm_id": "a", "data": {"method": "update", "state": {"min": 1.0}}}), &[]));
        comms.receive("comm_open", &json!({"comm_id": "c", "target_name": CONTROL_TARGET}), &[]);
        let asked = json!({"comm_id": "c", "data": {"method": "request_states"}});
        let reply = &comms.receive("comm_msg", &asked, &[]).publish[0].1["data"];
        assert_eq!(reply["method"], "update_states");
        assert!(comms.receive("comm_msg", &asked, &[]).page_opened);
        assert_eq!(reply["states"]["a"]["model_name"], "FloatSliderModel");
        assert_eq!(reply["states"]["a"]["state"]["value"], 2.0);
        assert_eq!(reply["states"]["a"]["state"]["min"], 1.0);
        let asked = json!({"comm_id": "a", "data": {"method": "request_state"}});
        assert_eq!(comms.receive("comm_msg", &asked, &[]).publish[0].1["data"]["state"]["value"], 2.0);
        assert_eq!(comms.info(&json!("jupyter.widget")), json!({"a": {"target_name": "jupyter.widget"}}));
        assert_eq!(comms.info(&json!("other")), json!({}));
    }

    #[test]
    fn binary_parts_of_a_state_stay_with_it() {
        let mut comms = Comms::default();
        slider(&mut comms);
        let (path, bytes) = (json!(["value", 0, "content"]), Bytes::from_static(&[0, 255]));
        let data = json!({"method": "update", "state": {"value": [{"name": "a"}]}, "buffer_paths": [path]});
        let effect = comms.receive("comm_msg", &json!({"comm_id": "a", "data": data}), std::slice::from_ref(&bytes));
        assert_eq!(effect.push.map(|(_, _, buffers)| buffers), Some(vec![bytes.clone()]));
        assert_eq!(effect.publish[0].2, std::slice::from_ref(&bytes));
        let asked = json!({"comm_id": "a", "data": {"method": "request_state"}});
        let (_, state, buffers) = comms.receive("comm_msg", &asked, &[]).publish.remove(0);
        assert_eq!((&state["data"]["buffer_paths"], buffers), (&json!([path]), vec![bytes.clone()]));
        comms.receive("comm_open", &json!({"comm_id": "c", "target_name": CONTROL_TARGET}), &[]);
        let all = json!({"comm_id": "c", "data": {"method": "request_states"}});
        let (_, states, buffers) = comms.receive("comm_msg", &all, &[]).publish.remove(0);
        assert_eq!(states["data"]["buffer_paths"], json!([["a", "state", "value", 0, "content"]]));
        assert_eq!(buffers, [bytes]);
        // A later value without binary parts.
        let data = json!({"method": "update", "state": {"value": []}, "buffer_paths": []});
        assert!(comms.message(&json!({"comm_id": "a", "data": data}), &[]));
        assert!(comms.receive("comm_msg", &asked, &[]).publish[0].2.is_empty());
    }

    #[test]
    fn widgets_that_are_kept_outlive_their_connection() {
        let mut comms = Comms::default();
        slider(&mut comms);
        comms.keep_all_of(8);
        comms.keep_all_of(7);
        assert!(comms.close_all_of(7).is_empty());
        let asked = json!({"comm_id": "a", "data": {"method": "request_state"}});
        assert_eq!(comms.receive("comm_msg", &asked, &[]).publish[0].1["data"]["state"]["value"], 4.0);
    }

    #[test]
    fn widgets_end_with_their_connection() {
        let mut comms = Comms::default();
        slider(&mut comms);
        assert!(comms.close_all_of(8).is_empty());
        assert_eq!(comms.close_all_of(7), [json!({"comm_id": "a", "data": {}})]);
        assert!(!comms.message(&json!({"comm_id": "a", "data": {}}), &[]));
        let late = comms.receive("comm_msg", &json!({"comm_id": "a", "data": {"method": "update"}}), &[]);
        assert_eq!(late.publish[0].0, "comm_close");
        assert_eq!(late.push, None);
    }
}
