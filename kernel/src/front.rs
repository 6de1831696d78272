//! The Jupyter server that the front end talks to. Everything it knows belongs to one task, which handles one event at
//! a time and never waits for a cell: that is why comms, completion and Interrupt are answered while one runs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use jupyter_protocol::{ConnectionInfo, JupyterMessage};
use jupyter_zmq_client::connection;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::channels::{Outbox, follow, follow_inner, follow_signals, outbox, publisher, token};
use crate::comms::Comms;
use crate::failure::Failure;
use crate::flood::Flood;
use crate::history::History;
use crate::inner;
use crate::link;
use crate::names::Names;
use crate::readers;
use crate::streams::{Child, readable};
use crate::syntax;
use crate::wire::{content, kernel_info, message, parent_id};

mod ask;
mod cells;
mod child;
mod pages;

use ask::{Asked, Completion};
use cells::Cell;
use pages::Unseen;

const TICK: Duration = Duration::from_millis(100);
/// When to look again whether a cell has come to rest.
const SOON: Duration = Duration::from_millis(1);

/// How long the path of the sockets' folder may be: that of a socket has at most 103 bytes on macOS, 107 on Linux.
const LONGEST: usize = 85;

/// In the user's folder for temporary files, or in `/tmp` where that one's path is too long for a socket.
fn sockets_folder() -> Result<tempfile::TempDir> {
    let temporary = std::env::temp_dir();
    let fits = temporary.as_os_str().len() + "/kdlab-123456".len() <= LONGEST;
    let place = if fits { temporary } else { PathBuf::from("/tmp") };
    let made = tempfile::Builder::new().prefix("kdlab-").tempdir_in(&place);
    made.with_context(|| {
        format!("cannot make a folder for sockets in {}; set TMPDIR to a folder of yours", place.display())
    })
}

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
    /// How much may still be printed on stdout and stderr until the next cell.
    floods: [Flood; 2],
    /// The end of what the cells' process wrote on stderr.
    last_words: String,
    count: u64,
    history: History,
    /// A cell that ended before a page that does not show it.
    unseen: Option<Unseen>,
    variables: Vec<String>,
    /// Variables that evcxr dropped since they were last made.
    gone: Vec<String>,
    /// Requests that evcxr has to answer.
    asked: HashMap<String, Asked>,
    /// evcxr knows that cells may end by `?`. Before, it takes a last line with `?` for one that can't be shown.
    asks: bool,
    /// For what the front and the inner process tell each other.
    folder: PathBuf,
    completions: HashMap<u64, Completion>,
    /// Completions that evcxr was asked about once more.
    completed: u64,
    /// Of the `Cargo.toml` that stands before them.
    known: Option<(String, Arc<Names>)>,
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
    let folder = sockets_folder()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(serve(&info, folder.path()));
    runtime.shutdown_background();
    served
}

async fn serve(info: &ConnectionInfo, folder: &Path) -> Result<()> {
    let (events, mut inbox) = unbounded_channel();
    let (link_events, mut link_inbox) = unbounded_channel();
    let token = token()?;
    // Every message shows the session: no part of the token may stand in it.
    let session = self::token()?;
    let session = session.get(..16).unwrap_or_default();
    let shell = connection::create_kernel_shell_connection(info, session).await?.split();
    let control = connection::create_kernel_control_connection(info, session).await?.split();
    let stdin = connection::create_kernel_stdin_connection(info, session).await?.split();
    let iopub = readers::relay(info, folder).await?;
    let iopub = connection::create_kernel_iopub_xpub_connection(&iopub, session).await?;
    let mut heartbeat = connection::create_kernel_heartbeat_connection(info).await?;
    tokio::spawn(async move {
        loop {
            // A malformed frame is passed over; without the pause, a closed socket would keep a core busy.
            if heartbeat.single_heartbeat().await.is_err() {
                tokio::time::sleep(TICK).await;
            }
        }
    });
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
        floods: Default::default(),
        last_words: String::new(),
        count: 0,
        history: History::default(),
        unseen: None,
        variables: vec![],
        gone: vec![],
        asked: HashMap::new(),
        asks: false,
        folder: folder.to_owned(),
        completions: HashMap::new(),
        completed: 0,
        known: None,
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
            () = readable(&front.child) => front.drain(),
            () = tokio::time::sleep(SOON), if front.child.as_ref().is_some_and(|child| !child.waiting.is_empty()) => {
                front.look_again();
            }
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
        if let Some(cell) = self.cell.as_ref().filter(|cell| state == "idle" && !cell.own) {
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
            "kernel_info_request" => {
                self.somebody_came(&request);
                self.reply(&self.shell, kernel_info(), &request);
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
                let effect = self.comms.receive(&kind, &asked);
                for (kind, content) in effect.publish {
                    self.publish(kind, content, Some(&request));
                }
                if effect.opened {
                    self.page_opened(&request);
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
            "kernel_info_request" => {
                self.somebody_came(request);
                self.reply(&control, kernel_info(), request);
            }
            "shutdown_request" => self.shut_down(&control, request, &content(request)),
            _ => {}
        }
    }

    fn shut_down(&mut self, outbox: &Outbox, request: &JupyterMessage, asked: &Value) {
        self.reply(outbox, json!({"status": "ok", "restart": asked["restart"]}), request);
        self.ended = true;
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
        } else if let Some(asked) = self.asked.remove(&id) {
            self.evcxr_answered(asked, content(reply));
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
        let own = cell.own;
        match output.header.msg_type.as_str() {
            "status" if content["execution_state"] == "idle" => {
                cell.idle = true;
                self.finish();
            }
            "execute_input" => cell.inner_count = content["execution_count"].as_u64().unwrap_or_default(),
            "error" => cell.errors.push(content),
            kind @ ("execute_result" | "stream" | "display_data") if !own => {
                if kind == "execute_result" {
                    content["execution_count"] = json!(cell.count);
                }
                self.publish(kind, content, self.parent().as_ref());
            }
            _ => {}
        }
    }

    fn inner_ended(&mut self, why: &str) {
        // What went wrong stands before where in evcxr it did.
        let why = why.split("Stack backtrace:").next().unwrap_or(why).trim();
        if self.ready {
            // What it says of its work is no reason.
            let noise = ["Compiling ", "Finished ", "Blocking ", "Updating ", "Locking ", "Adding "];
            let of_work = |line: &&str| !noise.iter().any(|word| line.trim_start().starts_with(word));
            let why: Vec<&str> = why.lines().filter(of_work).collect();
            let why = format!("the process that compiles cells ended: {}; {}", why.join("; "), self.lost());
            self.end(Some(Failure::new("died", &why, &[cells::KEPT.to_owned()])));
            // Jupyter starts a kernel that died once more.
            self.ended = true;
        } else {
            self.start_error = Some(why.to_owned());
            self.start_next();
        }
    }
}
