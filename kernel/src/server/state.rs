//! The state of the server, and its output: on the channels of the protocol, and below the running cell.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use jupyter_protocol::JupyterMessage;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::cells::child::Child;
use crate::cells::flood::Flood;
use crate::cells::interrupt::Interrupt;
use crate::config::Config;
use crate::processes::below;
use crate::server::cell::Cell;
use crate::server::channels::{Outbox, Waiting};
use crate::server::comms::Comms;
use crate::server::completion::Forwarded;
use crate::server::evcxr::Connections;
use crate::server::expressions::Expressions;
use crate::server::history::History;
use crate::server::link::Link;
use crate::server::pages::Unseen;
use crate::server::usage::Usage;
use crate::server::wire::message;

/// Length of the end of stderr, in bytes, that is searched for the reason why a process ended.
const LAST_WORDS: usize = 1 << 10;

pub const RAN_NOTHING: &str = "interrupted while it was compiled: nothing ran, all variables are kept";

pub const STDOUT: &str = "stdout";
pub const STDERR: &str = "stderr";

/// An event that the server's task handles.
pub enum Event {
    Shell(JupyterMessage),
    Control(JupyterMessage),
    Stdin(JupyterMessage),
    InterpreterConnected(Box<Connections>),
    InterpreterShell(JupyterMessage),
    InterpreterStdin(JupyterMessage),
    InterpreterIopub(JupyterMessage),
    /// The interpreter ended; holds the end of its output.
    InterpreterEnded(String),
    /// A new kernel has taken this one, which waited in reserve.
    Taken,
    Terminate,
}

/// The outboxes of the four channels to frontends.
pub struct Channels {
    pub iopub: Outbox,
    pub shell: Outbox,
    pub control: Outbox,
    pub stdin: Outbox,
}

/// What waits in these outboxes until the sockets are connected.
pub struct Outboxes {
    pub iopub: Waiting,
    pub shell: Waiting,
    pub control: Waiting,
    pub stdin: Waiting,
}

impl Channels {
    pub fn new() -> (Self, Outboxes) {
        let [(iopub, a), (shell, b), (control, c), (stdin, d)] = std::array::from_fn(|_| unbounded_channel());
        (Self { iopub, shell, control, stdin }, Outboxes { iopub: a, shell: b, control: c, stdin: d })
    }
}

/// The outboxes of the two channels to evcxr_jupyter.
#[derive(Clone)]
pub struct Interpreter {
    pub shell: Outbox,
    pub stdin: Outbox,
}

/// The state of the server, which belongs to one task.
pub struct Server {
    pub config: Config,
    /// The version of rustc.
    pub rust: String,
    pub usage: Usage,
    pub iopub: Outbox,
    pub shell: Outbox,
    pub control: Outbox,
    pub stdin: Outbox,
    pub events: UnboundedSender<Event>,
    pub interpreter: Option<Interpreter>,
    pub interpreter_pid: i32,
    /// evcxr has read its start-up configuration.
    pub ready: bool,
    pub start_error: Option<String>,
    /// The source that evcxr writes for each cell.
    pub generated: PathBuf,
    /// The execute requests that wait.
    pub queue: VecDeque<JupyterMessage>,
    pub cell: Option<Cell>,
    /// The user's expressions that are evaluated after a cell, before its reply.
    pub expressions: Option<Expressions>,
    /// The last cell's request: the parent of output between cells.
    pub last_request: Option<JupyterMessage>,
    /// Limits of stdout and stderr until the next cell.
    pub floods: [Flood; 2],
    /// The last bytes that the child wrote to stderr.
    pub last_words: String,
    pub count: u64,
    pub history: History,
    /// A cell that ended before a page was opened that does not show it.
    pub unseen: Option<Unseen>,
    pub variables: Vec<String>,
    /// Variables that evcxr dropped and no cell has made again.
    pub dropped: Vec<String>,
    pub forwarded: Forwarded,
    /// evcxr has run a cell that ends by `?`. Before that, it cannot show a last line that ends by `?`.
    pub knows_question_mark: bool,
    /// The private folder, through which the server and the interpreter exchange files.
    pub folder: PathBuf,
    pub stop: Interrupt,
    pub child: Option<Child>,
    /// The links by their numbers.
    pub links: BTreeMap<u64, Link>,
    pub comms: Comms,
    /// The kernel waits in reserve.
    pub in_reserve: bool,
    /// Code that a kernel in reserve runs before it is taken.
    pub warm_up: VecDeque<String>,
    /// A kernel in reserve is to be started when there is nothing to do.
    pub wants_reserve: bool,
    pub idle_since: Option<Instant>,
    pub ended: bool,
}

impl Server {
    /// Makes the state before the first event.
    pub fn new(
        config: Config,
        channels: Channels,
        events: UnboundedSender<Event>,
        interpreter_pid: i32,
        folder: &Path,
        build_directory: &Path,
        stop: Interrupt,
    ) -> Self {
        let Channels { iopub, shell, control, stdin } = channels;
        Self {
            config,
            rust: String::new(),
            usage: Usage::default(),
            iopub,
            shell,
            control,
            stdin,
            events,
            interpreter: None,
            interpreter_pid,
            ready: false,
            start_error: None,
            generated: build_directory.join("src/lib.rs"),
            queue: VecDeque::new(),
            cell: None,
            expressions: None,
            last_request: None,
            floods: Default::default(),
            last_words: String::new(),
            count: 0,
            history: History::default(),
            unseen: None,
            variables: vec![],
            dropped: vec![],
            forwarded: Forwarded::new(build_directory.join("Cargo.toml")),
            knows_question_mark: false,
            folder: folder.to_owned(),
            stop,
            child: None,
            links: BTreeMap::new(),
            comms: Comms::default(),
            in_reserve: false,
            warm_up: VecDeque::new(),
            wants_reserve: false,
            idle_since: None,
            ended: false,
        }
    }

    pub fn publish(&self, kind: &str, content: Value, parent: Option<&JupyterMessage>) {
        self.publish_with(kind, content, vec![], parent);
    }

    /// Publishes a message with binary buffers.
    pub fn publish_with(&self, kind: &str, content: Value, buffers: Vec<Bytes>, parent: Option<&JupyterMessage>) {
        let mut message = message(kind, content, parent);
        message.buffers = buffers;
        // On iopub, identities would be topics.
        message.zmq_identities.clear();
        let _ = self.iopub.send(message);
    }

    pub fn status(&self, state: &str, parent: &JupyterMessage) {
        self.publish("status", json!({"execution_state": state}), Some(parent));
        // Frontends show the last state they received, whatever it refers to.
        let of_expressions = self.expressions.as_ref().map(|expressions| &expressions.cell);
        let running = self.cell.as_ref().filter(|cell| !cell.internal).or(of_expressions);
        if let Some(cell) = running.filter(|_| state == "idle") {
            self.publish("status", json!({"execution_state": "busy"}), Some(&cell.request));
        }
    }

    pub fn reply(&self, outbox: &Outbox, content: Value, request: &JupyterMessage) {
        let kind = request.header.msg_type.replace("_request", "_reply");
        let _ = outbox.send(message(&kind, content, Some(request)));
    }

    /// Ends a request on the shell channel: sends its reply, then the status idle.
    pub fn complete(&self, request: &JupyterMessage, reply: Value) {
        self.reply(&self.shell, reply, request);
        self.status("idle", request);
    }

    /// Returns the parent of output that arrives now: the request of the running cell, or of the last one.
    pub fn parent(&self) -> Option<JupyterMessage> {
        let waiting = || self.queue.front().filter(|_| !self.ready).cloned();
        self.cell
            .as_ref()
            .filter(|cell| !cell.internal)
            .map(|cell| cell.request.clone())
            .or_else(|| self.last_request.clone())
            .or_else(waiting)
    }

    pub fn stream(&self, name: &str, text: &str) {
        if !text.is_empty() {
            self.publish("stream", json!({"name": name, "text": text}), self.parent().as_ref());
        }
    }

    /// Shows text that the cell printed, up to the limit of its stream.
    pub fn print(&mut self, name: &str, text: String) {
        if name == STDERR {
            self.last_words.push_str(&text);
            let start = self.last_words.len().saturating_sub(LAST_WORDS);
            self.last_words.drain(..self.last_words.ceil_char_boundary(start));
        }
        let flood = &mut self.floods[usize::from(name == STDERR)];
        let shown = flood.pass(text, Instant::now());
        self.stream(name, &shown);
    }

    /// Shows the end of the text that exceeded a limit, and resets the limits.
    pub fn end_floods(&mut self) {
        for (index, name) in [STDOUT, STDERR].into_iter().enumerate() {
            let end = self.floods[index].finish();
            self.stream(name, &end);
            self.floods[index] = Flood::default();
        }
    }

    /// Forgets all variables, which ended with the child, and says which are lost.
    pub fn lose_variables(&mut self) -> String {
        match std::mem::take(&mut self.variables) {
            names if names.is_empty() => "there were no variables to lose".to_owned(),
            names => format!("lost: {}", names.join(", ")),
        }
    }

    /// Ends what compiles for evcxr, and the commands that it has started.
    pub fn stop_compilers(&self, signal: Signal) {
        for pid in below(self.interpreter_pid, self.child.as_ref().map(|child| child.pid)) {
            let _ = Pid::from_raw(pid).map(|pid| rustix::process::kill_process(pid, signal));
        }
    }
}
