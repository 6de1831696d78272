//! A fake kernel that speaks the live kernel's protocol.

use super::LIMIT;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone)]
pub struct Kernel(Arc<(Mutex<Heard>, Condvar)>);

#[derive(Default)]
struct Heard {
    /// Every message with the number of its connection, in order.
    messages: Vec<(usize, Value)>,
    connections: Vec<UnixStream>,
    closed: HashSet<usize>,
}

impl Kernel {
    pub fn listen(path: &Path, token: &str) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let kernel = Self(Arc::new((Mutex::default(), Condvar::new())));
        let (this, token) = (kernel.clone(), json!({ "token": token }));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (this, token) = (this.clone(), token.clone());
                std::thread::spawn(move || this.serve(stream, &token));
            }
        });
        kernel
    }

    fn serve(&self, stream: UnixStream, token: &Value) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let first = lines.next().and_then(|line| line.ok()).unwrap_or_default();
        if serde_json::from_str::<Value>(&first).ok().as_ref() != Some(token) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        let number = {
            let mut heard = self.0.0.lock().unwrap();
            heard.connections.push(stream.try_clone().unwrap());
            heard.connections.len() - 1
        };
        for line in lines.map_while(|line| line.ok()) {
            let message = serde_json::from_str(&line).unwrap();
            let mut heard = self.0.0.lock().unwrap();
            heard.messages.push((number, message));
            let answered = (&heard.connections[number]).write_all(b"{\"ok\": true}\n");
            self.0.1.notify_all();
            if answered.is_err() {
                break;
            }
        }
        self.0.0.lock().unwrap().closed.insert(number);
        self.0.1.notify_all();
    }

    pub fn is_closed(&self, number: usize) -> bool {
        self.0.0.lock().unwrap().closed.contains(&number)
    }

    pub fn messages(&self) -> Vec<(usize, Value)> {
        self.0.0.lock().unwrap().messages.clone()
    }

    /// Waits until `found` finds something in all that was heard so far.
    pub fn wait<T>(&self, what: &str, found: impl Fn(&[(usize, Value)]) -> Option<T>) -> T {
        let begun = Instant::now();
        let mut heard = self.0.0.lock().unwrap();
        loop {
            if let Some(found) = found(&heard.messages) {
                return found;
            }
            assert!(begun.elapsed() < LIMIT, "{what} never came");
            heard = self.0.1.wait_timeout(heard, Duration::from_millis(200)).unwrap().0;
        }
    }

    pub fn push(&self, number: usize, message: &Value) {
        let heard = self.0.0.lock().unwrap();
        (&heard.connections[number]).write_all(format!("{message}\n").as_bytes()).unwrap();
    }

    /// The frontend moved a widget, or clicked it.
    pub fn frontend_sends(&self, comm_id: &str, data: &Value) {
        let number = (self.messages().iter()).find(|(_, m)| m["comm_open"]["comm_id"] == comm_id).unwrap().0;
        self.push(number, &json!({"comm_msg": {"comm_id": comm_id, "data": data}}));
    }

    pub fn slide(&self, comm_id: &str, value: Value) {
        self.frontend_sends(comm_id, &json!({"method": "update", "state": {"value": value}, "buffer_paths": []}));
    }

    pub fn interrupt(&self) {
        let watching: HashSet<usize> =
            self.messages().iter().filter(|(_, m)| m.get("watch").is_some()).map(|(number, _)| *number).collect();
        assert!(!watching.is_empty(), "nobody watches");
        for number in watching {
            // A watch that is done has closed its connection.
            if !self.is_closed(number) {
                self.push(number, &json!({"stop": "interrupted"}));
            }
        }
    }

    /// The id of the last widget with this key and value in its first state.
    pub fn widget(&self, key: &str, value: &str) -> String {
        self.wait(value, |messages| {
            let open = |m: &Value| m["comm_open"]["data"]["state"][key] == value;
            let (_, message) = messages.iter().rev().find(|(_, m)| open(m))?;
            Some(message["comm_open"]["comm_id"].as_str()?.to_owned())
        })
    }

    /// What was sent to a widget: the states of its updates.
    pub fn updates(&self, comm_id: &str) -> Vec<Value> {
        let of = |(_, m): &(usize, Value)| {
            (m["comm_msg"]["comm_id"] == comm_id).then(|| m["comm_msg"]["data"]["state"].clone())
        };
        self.messages().iter().filter_map(of).collect()
    }

    /// The states of each display, in the order in which the displays were opened. It fails for a display that opens
    /// twice, or changes before it is open.
    pub fn displays(&self) -> Vec<Vec<Value>> {
        let (mut order, mut states) = (Vec::new(), HashMap::<String, Vec<Value>>::new());
        for (_, message) in self.messages() {
            let Some(display) = message.get("display") else { continue };
            let id = display["id"].as_str().unwrap().to_owned();
            assert_eq!(display["update"] == true, states.contains_key(&id), "{message}");
            if display["update"] == false {
                order.push(id.clone());
            }
            states.entry(id).or_default().push(display.clone());
        }
        order.iter().map(|id| states[id].clone()).collect()
    }

    /// All widgets refer to open ones, and none is left open.
    pub fn check_widgets(&self) {
        let mut open = HashSet::new();
        for (_, message) in self.messages() {
            if let Some(comm) = message.get("comm_open") {
                let state = &comm["data"]["state"];
                for key in ["_model_module", "_model_name", "_view_module", "_view_name"] {
                    assert!(state[key].is_string(), "{key} is missing in {state}");
                }
                assert_eq!(
                    (&comm["target_name"], &state["_model_module_version"]),
                    (&json!("jupyter.widget"), &json!("2.0.0"))
                );
                for part in state.to_string().split("IPY_MODEL_").skip(1) {
                    assert!(open.contains(&part[..32]), "{state} refers to a widget that is not open");
                }
                assert!(open.insert(comm["comm_id"].as_str().unwrap().to_owned()), "opened twice: {message}");
            }
            for key in ["comm_msg", "comm_close"] {
                if let Some(comm) = message.get(key) {
                    assert!(open.contains(comm["comm_id"].as_str().unwrap()), "{message}");
                }
            }
            if let Some(comm) = message.get("comm_close") {
                open.remove(comm["comm_id"].as_str().unwrap());
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
    }
}

/// Runs the test of `shown` called `name` in a process of its own with a kernel: its address is in the environment,
/// which is a process's own.
pub fn with_kernel(name: &str, test: impl FnOnce(Kernel)) {
    if std::env::var("KDLAB_TEST_CHILD").as_deref() == Ok(name) {
        let path = std::env::var("LIVE_KERNEL_SOCKET").unwrap();
        return test(Kernel::listen(Path::new(&path), "secret"));
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("shown::{name}"), "--nocapture"])
        .env("KDLAB_TEST_CHILD", name)
        .env("LIVE_KERNEL_SOCKET", folder.path().join("socket"))
        .env("LIVE_KERNEL_TOKEN", "secret")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains(" 1 passed"), "{said}{}", text(&output.stderr));
}
