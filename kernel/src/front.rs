//! The Jupyter server that the front end talks to. Everything it knows belongs to one task, which handles one event at a
//! time and never waits for a cell: that is why comms, completion and Interrupt are answered while one runs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jupyter_protocol::{ConnectionInfo, JupyterMessage};
use jupyter_zmq_client::connection;
use rustix::process::{Pid, Signal};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::channels::{Outbox, follow, follow_inner, follow_signals, outbox, publisher, token};
use crate::comms::Comms;
use crate::failure::Failure;
use crate::history::History;
use crate::inner;
use crate::link::{self, LinkEvent};
use crate::output::Piece;
use crate::streams::{Child, read, readable};
use crate::syntax;
use crate::wire::{content, kernel_info, message, parent_id};

/// A second Interrupt within this time ends the process.
const AGAIN: Duration = Duration::from_secs(3);
/// What may be why a cell fails, or its value, is held back no longer than this.
const HOLD: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(100);
/// How much of a flood is read before something else gets its turn.
const READS: usize = 32;
const RAN_NOTHING: &str = "interrupted while it was compiled: nothing ran, all variables are kept";

/// What the front's task learns.
pub enum Event {
    Shell(JupyterMessage),
    Control(JupyterMessage),
    Stdin(JupyterMessage),
    Connected(Box<inner::Connections>),
    InnerShell(JupyterMessage),
    InnerStdin(JupyterMessage),
    InnerIopub(JupyterMessage),
    /// The inner process ended, with the last it said.
    InnerEnded(String),
    Terminate,
}

/// A cell from the moment it is handed to evcxr.
struct Cell {
    request: JupyterMessage,
    code: String,
    count: u64,
    /// evcxr's own count, which its messages name.
    inner_count: u64,
    failure: Option<Failure>,
    /// `error` messages of evcxr.
    errors: Vec<Value>,
    reply: Option<Value>,
    /// evcxr has nothing more to say about it.
    idle: bool,
    /// When those who watch were last told to stop.
    told: Option<Instant>,
    /// Interrupt came before it ran.
    skip: bool,
    killed: bool,
    awaits_input: bool,
}

/// A connection of the helper crate.
struct Client {
    sender: UnboundedSender<Value>,
    parent: Option<JupyterMessage>,
    watches: bool,
}

struct Front {
    iopub: Outbox,
    shell: Outbox,
    control: Outbox,
    stdin: Outbox,
    events: UnboundedSender<Event>,
    inner: Option<(Outbox, Outbox)>,
    inner_pid: i32,
    /// evcxr has read its start-up configuration.
    ready: bool,
    start_error: Option<String>,
    /// The source that evcxr writes for each cell.
    generated: Option<PathBuf>,
    queue: VecDeque<JupyterMessage>,
    cell: Option<Cell>,
    /// What ran last: the parent of what is printed between cells.
    last: Option<JupyterMessage>,
    count: u64,
    history: History,
    variables: Vec<String>,
    /// Requests that evcxr has to answer.
    asked: HashMap<String, JupyterMessage>,
    child: Option<Child>,
    clients: BTreeMap<u64, Client>,
    comms: Comms,
    ended: bool,
}

/// Serves the front end until it says shutdown, or its process is gone.
pub fn run(connection_file: &Path) -> Result<()> {
    let text = std::fs::read(connection_file).with_context(|| format!("cannot read {}", connection_file.display()))?;
    let info: ConnectionInfo = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no connection file", connection_file.display()))?;
    let folder = tempfile::Builder::new().prefix("kdlab-").tempdir().context("cannot make a folder for sockets")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(serve(&info, folder.path()));
    runtime.shutdown_background();
    served
}

async fn serve(info: &ConnectionInfo, folder: &Path) -> Result<()> {
    let (events, mut inbox) = unbounded_channel();
    let (link_events, mut link_inbox) = unbounded_channel();
    let token = token()?;
    let session = token.get(..16).unwrap_or_default();
    let shell = connection::create_kernel_shell_connection(info, session).await?.split();
    let control = connection::create_kernel_control_connection(info, session).await?.split();
    let stdin = connection::create_kernel_stdin_connection(info, session).await?.split();
    let iopub = connection::create_kernel_iopub_xpub_connection(info, session).await?;
    let mut heartbeat = connection::create_kernel_heartbeat_connection(info).await?;
    tokio::spawn(async move { while heartbeat.single_heartbeat().await.is_ok() {} });
    link::listen(folder, &token, link_events)?;
    let mut process = inner::start(folder, &token)?;
    let inner_pid = process.id().map_or(0, |id| id as i32);
    // Its end tells the inner process that this one is gone.
    let _alive = process.stdin.take();
    let (out, err) = (process.stdout.take(), process.stderr.take());
    tokio::spawn(follow_inner(process, out, err, events.clone()));
    {
        let (folder, token, events) = (folder.to_owned(), token.clone(), events.clone());
        tokio::spawn(async move {
            match inner::connect(&folder, &token).await {
                Ok(connections) => drop(events.send(Event::Connected(Box::new(connections)))),
                Err(error) => drop(events.send(Event::InnerEnded(format!("{error:#}")))),
            }
        });
    }
    follow_signals(events.clone())?;
    let (shell_out, control_out, stdin_out) = (outbox(shell.0), outbox(control.0), outbox(stdin.0));
    follow(shell.1, Event::Shell, events.clone());
    follow(control.1, Event::Control, events.clone());
    follow(stdin.1, Event::Stdin, events.clone());
    let generated = std::env::var_os("EVCXR_TMPDIR").map(|dir| PathBuf::from(dir).join("src/lib.rs"));
    let mut front = Front {
        iopub: publisher(iopub),
        shell: shell_out,
        control: control_out,
        stdin: stdin_out,
        events,
        inner: None,
        inner_pid,
        ready: false,
        start_error: None,
        generated,
        queue: VecDeque::new(),
        cell: None,
        last: None,
        count: 0,
        history: History::default(),
        variables: vec![],
        asked: HashMap::new(),
        child: None,
        clients: BTreeMap::new(),
        comms: Comms::default(),
        ended: false,
    };
    front.publish("status", json!({"execution_state": "starting"}), None);
    let parent = rustix::process::getppid();
    let watches_parent = std::env::var("JPY_PARENT_PID").ok().and_then(|pid| pid.parse().ok())
        == parent.map(|pid| pid.as_raw_nonzero().get());
    let mut tick = tokio::time::interval(TICK);
    while !front.ended {
        tokio::select! {
            Some(event) = inbox.recv() => front.handle(event),
            Some(event) = link_inbox.recv() => front.handle_link(event),
            () = readable(&front.child) => front.pump(),
            _ = tick.tick() => {
                front.tick();
                // Jupyter's server died without a word.
                front.ended |= watches_parent && rustix::process::getppid() != parent;
            }
        }
    }
    if let Some(pid) = Pid::from_raw(inner_pid) {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    // Lets the last messages go out.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(())
}

impl Front {
    fn handle(&mut self, event: Event) {
        match event {
            Event::Shell(request) => self.handle_shell(request),
            Event::Control(request) => self.handle_control(&request),
            Event::Stdin(reply) => self.send_input(reply),
            Event::Connected(connections) => self.connect(*connections),
            Event::InnerShell(reply) => self.handle_reply(&reply),
            Event::InnerStdin(request) => self.ask_for_input(&request),
            Event::InnerIopub(output) => self.handle_output(&output),
            Event::InnerEnded(why) => self.inner_ended(&why),
            Event::Terminate => self.ended = true,
        }
    }

    // ---- The front end ----

    fn publish(&self, kind: &str, content: Value, parent: Option<&JupyterMessage>) {
        let mut message = message(kind, content, parent);
        // On this channel identities would be topics.
        message.zmq_identities.clear();
        let _ = self.iopub.send(message);
    }

    fn status(&self, state: &str, parent: &JupyterMessage) {
        self.publish("status", json!({"execution_state": state}), Some(parent));
        // Front ends show the last state they heard of, whatever it was about.
        if let Some(cell) = self.cell.as_ref().filter(|_| state == "idle") {
            self.publish("status", json!({"execution_state": "busy"}), Some(&cell.request));
        }
    }

    fn reply(&self, outbox: &Outbox, content: Value, request: &JupyterMessage) {
        let kind = request.header.msg_type.replace("_request", "_reply");
        let _ = outbox.send(message(&kind, content, Some(request)));
    }

    fn handle_shell(&mut self, request: JupyterMessage) {
        let kind = request.header.msg_type.clone();
        if kind == "execute_request" {
            self.queue.push_back(request);
            return self.start_next();
        }
        let asked = content(&request);
        let code = asked["code"].as_str().unwrap_or_default();
        if kind == "complete_request" || kind == "inspect_request" {
            return self.ask_evcxr(request, &kind, &asked);
        }
        self.status("busy", &request);
        match kind.as_str() {
            "kernel_info_request" => self.reply(&self.shell, kernel_info(), &request),
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
                let effect = self.comms.receive(&kind, &asked);
                for (kind, content) in effect.publish {
                    self.publish(kind, content, Some(&request));
                }
                if let Some((owner, push)) = effect.push
                    && let Some(client) = self.clients.get(&owner)
                {
                    let _ = client.sender.send(push);
                }
            }
            "shutdown_request" => self.shut_down(&self.shell.clone(), &request, &asked),
            _ => eprintln!("kernel: unknown message `{kind}`"),
        }
        self.status("idle", &request);
    }

    fn handle_control(&mut self, request: &JupyterMessage) {
        let control = self.control.clone();
        match request.header.msg_type.as_str() {
            "interrupt_request" => {
                self.interrupt();
                self.reply(&control, json!({"status": "ok"}), request);
            }
            "kernel_info_request" => self.reply(&control, kernel_info(), request),
            "shutdown_request" => self.shut_down(&control, request, &content(request)),
            _ => {}
        }
    }

    fn shut_down(&mut self, outbox: &Outbox, request: &JupyterMessage, asked: &Value) {
        self.reply(outbox, json!({"status": "ok", "restart": asked["restart"]}), request);
        self.ended = true;
    }

    /// Completion and inspection are evcxr's, but it answers only between cells.
    fn ask_evcxr(&mut self, request: JupyterMessage, kind: &str, asked: &Value) {
        self.status("busy", &request);
        match &self.inner {
            Some((shell, _)) if self.ready && self.cell.is_none() && self.queue.is_empty() => {
                self.asked.insert(request.header.msg_id.clone(), request.clone());
                let mut request = request;
                request.zmq_identities.clear();
                let _ = shell.send(request);
            }
            _ => {
                let at = &asked["cursor_pos"];
                let nothing = match kind {
                    "complete_request" => {
                        json!({"status": "ok", "matches": [], "cursor_start": at, "cursor_end": at, "metadata": {}})
                    }
                    _ => json!({"status": "ok", "found": false, "data": {}, "metadata": {}}),
                };
                self.reply(&self.shell, nothing, &request);
                self.status("idle", &request);
            }
        }
    }

    fn ask_for_input(&mut self, request: &JupyterMessage) {
        if let Some(cell) = &mut self.cell {
            cell.awaits_input = true;
            let _ = self.stdin.send(message("input_request", content(request), Some(&cell.request)));
        }
    }

    fn send_input(&mut self, mut reply: JupyterMessage) {
        if let (Some(cell), Some((_, stdin))) = (&mut self.cell, &self.inner)
            && std::mem::take(&mut cell.awaits_input)
        {
            reply.zmq_identities.clear();
            let _ = stdin.send(reply);
        }
    }

    // ---- Cells ----

    fn start_next(&mut self) {
        if self.cell.is_some() {
            return;
        }
        if let Some(error) = self.start_error.clone() {
            for request in std::mem::take(&mut self.queue) {
                self.begin(request);
                self.end(Some(Failure::new("error", &format!("the kernel could not start: {error}"), &[])));
            }
            return;
        }
        if let (true, Some((shell, _))) = (self.ready, self.inner.clone())
            && let Some(request) = self.queue.pop_front()
        {
            self.begin(request.clone());
            let code = self.cell.as_ref().map_or("", |cell| cell.code.as_str());
            if let Some(error) = syntax::error(code) {
                // evcxr leaves out what it cannot parse, and reports ok.
                self.end(Some(Failure::new("error", &error, &[])));
                return self.start_next();
            }
            let mut request = request;
            request.zmq_identities.clear();
            let _ = shell.send(request);
        }
    }

    fn begin(&mut self, request: JupyterMessage) {
        let asked = content(&request);
        let code = asked["code"].as_str().unwrap_or_default().to_owned();
        self.status("busy", &request);
        if asked["silent"] != true {
            if asked["store_history"] != false {
                self.count += 1;
                self.history.push(self.count, &code);
            }
            self.publish("execute_input", json!({"code": code, "execution_count": self.count}), Some(&request));
        }
        self.last = Some(request.clone());
        self.cell = Some(Cell {
            request,
            code,
            count: self.count,
            inner_count: 0,
            failure: None,
            errors: vec![],
            reply: None,
            idle: false,
            told: None,
            skip: false,
            killed: false,
            awaits_input: false,
        });
    }

    /// Ends the cell once evcxr has answered and has nothing more to say.
    fn finish(&mut self) {
        if !self.cell.as_ref().is_some_and(|cell| cell.idle && cell.reply.is_some()) {
            return;
        }
        // A process that ended may have left something to read.
        self.pump();
        let failure = self.cell.take().and_then(|mut cell| {
            let failure = cell.failure.take().or_else(|| self.explain(&cell));
            self.cell = Some(cell);
            failure
        });
        self.end(failure);
        self.start_next();
    }

    fn end(&mut self, failure: Option<Failure>) {
        let Some(cell) = self.cell.take() else { return };
        let mut content = json!({"status": "ok", "execution_count": cell.count, "user_expressions": {}, "payload": []});
        match &failure {
            None => {
                let new = syntax::variables(&cell.code);
                self.variables.retain(|name| !new.contains(name));
                self.variables.extend(new);
            }
            Some(failure) => {
                let error = json!({"ename": failure.name, "evalue": failure.value, "traceback": failure.traceback});
                self.publish("error", error.clone(), Some(&cell.request));
                content = error;
                content["status"] = json!("error");
                content["execution_count"] = json!(cell.count);
            }
        }
        self.reply(&self.shell, content, &cell.request);
        self.status("idle", &cell.request);
        let asked = self::content(&cell.request);
        if failure.is_some() && asked["stop_on_error"] != false {
            self.abort_queue();
        }
    }

    fn abort_queue(&mut self) {
        for request in std::mem::take(&mut self.queue) {
            self.status("busy", &request);
            self.reply(&self.shell, json!({"status": "aborted", "execution_count": self.count}), &request);
            self.status("idle", &request);
        }
    }

    /// What evcxr's own errors mean.
    fn explain(&mut self, cell: &Cell) -> Option<Failure> {
        let failed = cell.reply.as_ref().is_some_and(|reply| reply["status"] == "error");
        if !failed && cell.errors.is_empty() && !cell.killed {
            return None;
        }
        let text = |error: &Value| error["evalue"].as_str().unwrap_or_default().to_owned();
        let first = cell.errors.first().map(text).unwrap_or_default();
        let died = first.split_once("Subprocess terminated with status: ").map(|(_, status)| status.to_owned());
        if cell.killed || died.is_some() {
            let lost = match std::mem::take(&mut self.variables) {
                names if names.is_empty() => "there were no variables to lose".to_owned(),
                names => format!("lost: {}", names.join(", ")),
            };
            let kept =
                "checkpoints and results of finished epochs are on disk; run the notebook again from its first cell";
            let (name, why) = match died {
                _ if cell.killed => ("interrupted", "the cell could only be stopped by ending its process".to_owned()),
                Some(status) if status.contains("SIGKILL") => {
                    ("died", format!("something ended the cell's process: {status}; out of memory?"))
                }
                Some(status) => ("died", format!("the cell ended its process: {status}")),
                None => ("died", "the cell ended its process".to_owned()),
            };
            return Some(Failure::new(name, &format!("{why}; {lost}"), &[kept.to_owned()]));
        }
        if cell.skip {
            return Some(Failure::new("interrupted", RAN_NOTHING, &[]));
        }
        let lines = |error: &Value| -> Vec<String> {
            let lines = error["traceback"].as_array().into_iter().flatten().filter_map(|line| line.as_str());
            let (theirs, ours) = (format!("command_{}", cell.inner_count), format!("cell {}", cell.count));
            lines.map(|line| line.replace(&theirs, &ours)).collect()
        };
        let traceback: Vec<String> = cell.errors.iter().flat_map(lines).collect();
        let value = match cell.errors.len() {
            0 => "evcxr gave no reason".to_owned(),
            1 => first,
            n => format!("{first} (the first of {n} errors)"),
        };
        Some(Failure { name: "error".into(), value, traceback })
    }

    fn interrupt(&mut self) {
        self.abort_queue();
        let Some(cell) = &mut self.cell else { return };
        if !self.child.as_ref().is_some_and(|child| child.running) {
            cell.skip = true;
            return self.stop_compilers();
        }
        let again = cell.told.is_some_and(|told| told.elapsed() < AGAIN);
        let mut watching = self.clients.values().filter(|client| client.watches).peekable();
        if watching.peek().is_some() && !again {
            cell.told = Some(Instant::now());
            for client in watching {
                let _ = client.sender.send(json!({"stop": "interrupted"}));
            }
            return;
        }
        cell.killed = true;
        // evcxr would wait for the input first.
        if std::mem::take(&mut cell.awaits_input)
            && let Some((_, stdin)) = &self.inner
        {
            let _ = stdin.send(message("input_reply", json!({"value": "", "status": "ok"}), None));
        }
        if let Some(pid) = self.child.as_ref().and_then(|child| Pid::from_raw(child.pid)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    fn stop_compilers(&self) {
        for pid in inner::compilers(self.inner_pid, self.child.as_ref().map(|child| child.pid)) {
            let _ = Pid::from_raw(pid).map(|pid| rustix::process::kill_process(pid, Signal::TERM));
        }
    }

    // ---- evcxr ----

    fn connect(&mut self, connections: inner::Connections) {
        let (shell, stdin) = (connections.shell.split(), connections.stdin.split());
        follow(shell.1, Event::InnerShell, self.events.clone());
        follow(stdin.1, Event::InnerStdin, self.events.clone());
        follow(connections.iopub, Event::InnerIopub, self.events.clone());
        let shell = outbox(shell.0);
        // Answered when evcxr has read its start-up configuration.
        let _ = shell.send(message("kernel_info_request", json!({}), None));
        self.inner = Some((shell, outbox(stdin.0)));
    }

    fn handle_reply(&mut self, reply: &JupyterMessage) {
        let id = parent_id(reply).to_owned();
        if reply.header.msg_type == "kernel_info_reply" {
            self.ready = true;
            self.start_next();
        } else if let Some(request) = self.asked.remove(&id) {
            self.reply(&self.shell, content(reply), &request);
            self.status("idle", &request);
        } else if let Some(cell) = self.cell.as_mut().filter(|cell| cell.request.header.msg_id == id) {
            cell.reply = Some(content(reply));
            self.finish();
        }
    }

    fn handle_output(&mut self, output: &JupyterMessage) {
        let Some(cell) = self.cell.as_mut().filter(|cell| cell.request.header.msg_id == parent_id(output)) else {
            return;
        };
        let mut content = content(output);
        match output.header.msg_type.as_str() {
            "status" if content["execution_state"] == "idle" => {
                cell.idle = true;
                self.finish();
            }
            "execute_input" => cell.inner_count = content["execution_count"].as_u64().unwrap_or_default(),
            "error" => cell.errors.push(content),
            kind @ ("execute_result" | "stream" | "display_data") => {
                if kind == "execute_result" {
                    content["execution_count"] = json!(cell.count);
                }
                self.publish(kind, content, self.parent().as_ref());
            }
            _ => {}
        }
    }

    fn inner_ended(&mut self, why: &str) {
        if self.ready {
            let why = format!("the process that compiles cells ended: {why}");
            self.end(Some(Failure::new("died", &why, &[])));
            // Jupyter starts a kernel that died anew.
            self.ended = true;
        } else {
            self.start_error = Some(why.trim().to_owned());
            self.start_next();
        }
    }

    // ---- The child ----

    fn handle_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Child(streams, pid) => match Child::new(streams, pid) {
                Ok(child) => self.child = Some(child),
                Err(error) => eprintln!("kernel: cannot read from the cells' process: {error}"),
            },
            LinkEvent::ChildEnded(pid) => {
                self.drain();
                // evcxr notices when its pipes are closed, which dropping them does.
                if let Some(mut child) = self.child.take_if(|child| child.pid == pid) {
                    self.stream("stderr", &child.err.release());
                    child.out.flush().into_iter().for_each(|piece| self.show(&mut child, piece));
                }
            }
            LinkEvent::Opened(id, sender) => {
                let parent = self.parent();
                self.clients.insert(id, Client { sender, parent, watches: false });
            }
            LinkEvent::Request(id, request) => self.handle_request(id, &request),
            LinkEvent::Closed(id) => {
                let parent = self.clients.remove(&id).and_then(|client| client.parent);
                for content in self.comms.close_all_of(id) {
                    self.publish("comm_close", content, parent.as_ref());
                }
            }
        }
    }

    fn handle_request(&mut self, id: u64, request: &Value) {
        let Some(parent) = self.clients.get(&id).map(|client| client.parent.clone()) else { return };
        let parent = parent.as_ref();
        let asked = request.as_object().and_then(|request| request.iter().next());
        let mut answer = json!({"ok": true});
        match asked.map(|(kind, content)| (kind.as_str(), content)) {
            Some(("display", content)) if content["data"].is_object() => {
                // What was printed before stands before it.
                self.drain();
                // Clients such as nbclient hear of nothing but the cell that runs; a display is known by its id anyway.
                let current = self.parent().filter(|_| content["update"] == true);
                self.publish_display(content, current.as_ref().or(parent));
            }
            Some(("display", _)) => {
                answer = json!({"error": "a display needs `data`: an object of contents by MIME type"})
            }
            Some(("comm_open", content)) => {
                self.drain();
                self.comms.open(content, id);
                let mut open = content.clone();
                let metadata = open.as_object_mut().and_then(|open| open.remove("metadata")).unwrap_or(json!({}));
                let mut message = message("comm_open", open, parent).with_metadata(metadata);
                message.zmq_identities.clear();
                let _ = self.iopub.send(message);
            }
            Some(("comm_msg", content)) => {
                if self.comms.message(content) {
                    self.publish("comm_msg", content.clone(), parent);
                }
            }
            Some(("comm_close", content)) => {
                self.comms.close(content);
                self.publish("comm_close", json!({"comm_id": content["comm_id"], "data": {}}), parent);
            }
            Some(("watch", _)) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.watches = true;
                }
            }
            other => answer = json!({"error": format!("unknown request {:?}", other.map(|(kind, _)| kind))}),
        }
        if let Some(client) = self.clients.get(&id) {
            let _ = client.sender.send(answer);
        }
    }

    fn publish_display(&self, content: &Value, parent: Option<&JupyterMessage>) {
        let kind = if content["update"] == true { "update_display_data" } else { "display_data" };
        let or_empty = |value: &Value| if value.is_object() { value.clone() } else { json!({}) };
        let transient = if content["id"].is_string() { json!({"display_id": content["id"]}) } else { json!({}) };
        let content = json!({
            "data": or_empty(&content["data"]), "metadata": or_empty(&content["metadata"]), "transient": transient,
        });
        self.publish(kind, content, parent);
    }

    fn parent(&self) -> Option<JupyterMessage> {
        self.cell.as_ref().map(|cell| cell.request.clone()).or_else(|| self.last.clone())
    }

    fn stream(&self, name: &str, text: &str) {
        if !text.is_empty() {
            self.publish("stream", json!({"name": name, "text": text}), self.parent().as_ref());
        }
    }

    /// Everything the child printed so far.
    fn drain(&mut self) {
        while self.pump_once() {}
    }

    /// A good part of it, so that a flood leaves time for other events.
    fn pump(&mut self) {
        for _ in 0..READS {
            if !self.pump_once() {
                return;
            }
        }
    }

    fn pump_once(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        let mut buffer = [0; 64 * 1024];
        let mut any = false;
        if let Some(length) = read(&mut child.commands, &mut buffer) {
            any = true;
            self.command(&mut child, &buffer[..length]);
        }
        if let Some(length) = read(&mut child.stdout, &mut buffer) {
            any = true;
            for piece in child.out.feed(&buffer[..length]) {
                self.show(&mut child, piece);
            }
        }
        any |= self.read_stderr(&mut child, &mut buffer);
        self.child = Some(child);
        any
    }

    fn read_stderr(&self, child: &mut Child, buffer: &mut [u8]) -> bool {
        match read(&mut child.stderr, buffer) {
            Some(length) => {
                let text = child.err.feed(&buffer[..length]);
                self.stream("stderr", &text);
                true
            }
            None => false,
        }
    }

    /// A line from evcxr to the child: run compiled code, or input that a cell waits for.
    fn command(&mut self, child: &mut Child, line: &[u8]) {
        if line.starts_with(b"LOAD_AND_RUN ") {
            child.running = true;
            if let Some(cell) = self.cell.as_mut().filter(|cell| cell.skip) {
                // As if the cell had returned an error at once: evcxr forgets the variables it would have made.
                cell.failure = Some(Failure::new("interrupted", RAN_NOTHING, &[]));
                child.answer("EVCXR_ERROR_OCCURRED");
                child.answer("EVCXR_EXECUTION_COMPLETE");
                child.running = false;
                return;
            }
        }
        let _ = child.stdin.write_all(line);
    }

    fn show(&mut self, child: &mut Child, piece: Piece) {
        match piece {
            Piece::Text(text) => self.stream("stdout", &text),
            Piece::Display(data) => self.show_display(data),
            Piece::Result(data) => match &self.cell {
                Some(cell) if self::content(&cell.request)["silent"] == true => {}
                Some(cell) => {
                    let content = json!({"data": data, "metadata": {}, "execution_count": cell.count});
                    self.publish("execute_result", content, Some(&cell.request));
                }
                // evcxr tries itself out while it starts.
                None if !self.ready => {}
                None => self.show_display(data),
            },
            Piece::Control(line) => child.answer(&line),
            Piece::Failed { panic, line } => {
                while self.read_stderr(child, &mut [0; 16 * 1024]) {}
                let code = self.cell.as_ref().map(|cell| cell.code.clone()).unwrap_or_default();
                let (before, failure) = child.err.failure(panic, &code, self.generated.as_deref());
                self.stream("stderr", &before);
                if let Some(cell) = &mut self.cell {
                    cell.failure.get_or_insert(failure);
                }
                child.answer(&line);
            }
            Piece::Complete { line } => {
                while self.read_stderr(child, &mut [0; 16 * 1024]) {}
                self.stream("stderr", &child.err.release());
                child.answer(&line);
                child.running = false;
            }
        }
    }

    fn show_display(&self, data: Map<String, Value>) {
        self.publish_display(&json!({"data": data}), self.parent().as_ref());
    }

    fn tick(&mut self) {
        if let Some(mut child) = self.child.take() {
            let overdue = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() > HOLD);
            if overdue(child.err.since()) {
                self.stream("stderr", &child.err.release());
            }
            if overdue(child.out.since()) {
                child.out.flush().into_iter().for_each(|piece| self.show(&mut child, piece));
            }
            self.child = Some(child);
        }
        if self.cell.as_ref().is_some_and(|cell| cell.skip) && self.child.as_ref().is_none_or(|child| !child.running) {
            self.stop_compilers();
        }
    }
}
