//! The kernel's side of Jupyter's protocol. One task owns its state, handles one event at a time, and never
//! waits for a cell. So the kernel replies to comms, completion and Interrupt while a cell runs.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use jupyter_protocol::ConnectionInfo;
use jupyter_zmq_client::connection;
use rustix::process::{Pid, Signal};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::cells::child::readable;
use crate::cells::compile::kept::has_changed;
use crate::cells::interrupt::Interrupt;
use crate::cells::syntax;
use crate::config::Config;
use crate::launch::reserve::{self, Offer};
use crate::launch::{environment, interpreter};
use crate::private;

pub mod cell;
pub mod cell_requests;
pub mod channels;
pub mod comms;
pub mod completion;
pub mod evcxr;
pub mod expressions;
pub mod history;
pub mod link;
pub mod pages;
pub mod process;
pub mod queue;
pub mod readers;
pub mod replies;
pub mod requests;
pub mod state;
pub mod usage;
pub mod wire;

use channels::{follow, follow_signals, publish, send, token};
use state::{Channels, Event, Outboxes, Server};

/// Interval for what has no event of its own, such as a wait for input.
const TICK: Duration = Duration::from_millis(100);
/// Interval for checking whether a cell has ended.
const CHECK: Duration = Duration::from_millis(1);
/// A kernel that has had nothing to do for this time starts one in reserve.
const IDLE: Duration = Duration::from_secs(3);

/// Serves frontends until one asks for shutdown, or the Jupyter server ends.
pub fn run(connection_file: &Path) -> Result<()> {
    let waits = reserve::waits();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let Some(other) = (!waits).then(|| reserve::take(connection_file)).flatten() {
        interpreter::release_lock();
        return runtime.block_on(stand_by(other));
    }
    let folder = private::make()?;
    let served = runtime.block_on(serve((!waits).then_some(connection_file), folder.path()));
    runtime.shutdown_background();
    served
}

/// Lives as long as the kernel that serves in place of this one: each ends when it finds the connection closed.
async fn stand_by(other: std::os::unix::net::UnixStream) -> Result<()> {
    let (events, mut terminated) = unbounded_channel();
    follow_signals(|| (), events)?;
    other.set_nonblocking(true)?;
    let mut other = tokio::net::UnixStream::from_std(other)?;
    tokio::select! {
        _ = other.read_u8() => {}
        _ = terminated.recv() => {}
    }
    Ok(())
}

/// Connects the sockets that the connection file names with the outboxes, and with `events`.
async fn connect(
    connection_file: &Path,
    folder: &Path,
    outboxes: Outboxes,
    events: UnboundedSender<Event>,
) -> Result<()> {
    let text = std::fs::read(connection_file).with_context(|| format!("cannot read {}", connection_file.display()))?;
    let info: &ConnectionInfo = &serde_json::from_slice(&text)
        .with_context(|| format!("{} is no connection file", connection_file.display()))?;
    let session = token()?;
    let session = session.get(..16).unwrap_or_default();
    let shell = connection::create_kernel_shell_connection(info, session).await?.split();
    let control = connection::create_kernel_control_connection(info, session).await?.split();
    let stdin = connection::create_kernel_stdin_connection(info, session).await?.split();
    let iopub = readers::relay(info, folder).await?;
    let iopub = connection::create_kernel_iopub_xpub_connection(&iopub, session).await?;
    let mut heartbeat = connection::create_kernel_heartbeat_connection(info).await?;
    tokio::spawn(async move {
        loop {
            // A malformed frame is ignored. The pause keeps a closed socket from using a whole core.
            if heartbeat.single_heartbeat().await.is_err() {
                tokio::time::sleep(TICK).await;
            }
        }
    });
    send(outboxes.shell, shell.0);
    send(outboxes.control, control.0);
    send(outboxes.stdin, stdin.0);
    publish(outboxes.iopub, iopub);
    follow(shell.1, Event::Shell, events.clone());
    follow(control.1, Event::Control, events.clone());
    follow(stdin.1, Event::Stdin, events);
    Ok(())
}

/// Waits in reserve until a new kernel comes, serves in its place, and ends with it.
async fn wait(
    offer: Offer,
    folder: PathBuf,
    build_directory: PathBuf,
    outboxes: Outboxes,
    events: UnboundedSender<Event>,
) {
    let since = SystemTime::now();
    let serve = async {
        let taken = offer.taken().await?;
        if !has_changed(&build_directory, since) {
            connect(&taken.connection_file, &folder, outboxes, events.clone()).await?;
            // From now on, another kernel may wait.
            drop(offer);
            let _ = events.send(Event::Taken);
            taken.serve().await;
        }
        anyhow::Ok(())
    };
    if let Err(error) = serve.await {
        eprintln!("kernel: {error:#}");
    }
    let _ = events.send(Event::Terminate);
}

async fn serve(connection_file: Option<&Path>, folder: &Path) -> Result<()> {
    let (events, mut inbox) = unbounded_channel();
    let (link_events, mut link_inbox) = unbounded_channel();
    let rust = tokio::task::spawn_blocking(rust_version);
    let token = token()?;
    let (channels, outboxes) = Channels::new();
    let in_reserve = match connection_file {
        Some(file) => {
            connect(file, folder, outboxes, events.clone()).await?;
            None
        }
        None => match reserve::is_wanted().then(|| Offer::make(folder)).transpose()?.flatten() {
            Some(offer) => Some((offer, outboxes)),
            None => return Ok(()),
        },
    };
    let stop = Interrupt::new(folder)?;
    link::listen(folder, &token, link_events)?;
    let (variables, build_directory) = environment::prepare(folder)?;
    let mut process = interpreter::start(folder, &token, variables)?;
    let interpreter_pid = process.id().map_or(0, |id| id as i32);
    // The interpreter notices by the end of this pipe that this process has ended.
    let _alive = process.stdin.take();
    let ends = events.clone();
    tokio::spawn(async move { ends.send(Event::InterpreterEnded(evcxr::ended(process).await)) });
    let (private, secret, connected) = (folder.to_owned(), token.clone(), events.clone());
    tokio::spawn(async move {
        let event = match evcxr::connect(&private, &secret).await {
            Ok(connections) => Event::InterpreterConnected(Box::new(connections)),
            Err(error) => Event::InterpreterEnded(format!("{error:#}")),
        };
        connected.send(event)
    });
    follow_signals(|| Event::Terminate, events.clone())?;
    let parent_process = rustix::process::getppid();
    let of_jupyter = reserve::jupyter().is_some() && reserve::jupyter() == parent_process;
    let config = Config::load();
    let wrong = config.as_ref().err().map(|error| format!("{error:#}"));
    let config = config.unwrap_or_default();
    let mut warm_up = VecDeque::new();
    if let Some((offer, outboxes)) = in_reserve {
        let drops = syntax::variables(&config.warm_up).iter().map(|name| format!("drop({name});")).collect();
        warm_up.extend([config.warm_up.clone(), drops]);
        let ended = events.clone();
        if let Some(jupyter) = reserve::jupyter() {
            reserve::when_ended(jupyter, move || drop(ended.send(Event::Terminate)));
        }
        tokio::spawn(wait(offer, folder.to_owned(), build_directory.clone(), outboxes, events.clone()));
    }
    let mut server = Server::new(config, channels, events, interpreter_pid, folder, &build_directory, stop);
    server.in_reserve = connection_file.is_none();
    server.warm_up = warm_up;
    server.start_error = wrong;
    server.rust = rust.await.ok().flatten().unwrap_or_default();
    server.wants_reserve = connection_file.is_some() && reserve::is_wanted();
    server.publish("status", json!({"execution_state": "starting"}), None);
    let mut tick = tokio::time::interval(TICK);
    while !server.ended {
        tokio::select! {
            Some(event) = inbox.recv() => server.handle(event),
            Some(event) = link_inbox.recv() => server.handle_link(event),
            () = readable(&server.child) => {
                server.drain();
            }
            () = tokio::time::sleep(CHECK), if server.child.as_ref().is_some_and(|child| !child.waiting.is_empty()) => {
                server.look_again();
            }
            _ = tick.tick() => {
                server.tick();
                if server.wants_reserve {
                    server.keep_reserve();
                }
                // The Jupyter server ended without a shutdown request.
                server.ended |= of_jupyter && connection_file.is_some() && rustix::process::getppid() != parent_process;
            }
        }
    }
    if let Some(pid) = Pid::from_raw(interpreter_pid) {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    // The sockets need a moment to send the last messages.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(())
}

/// Returns the version of the rustc that compiles cells, such as `1.95.0`.
fn rust_version() -> Option<String> {
    let output = std::process::Command::new("rustc").arg("--version").output().ok()?;
    String::from_utf8(output.stdout).ok()?.split_whitespace().nth(1).map(str::to_owned)
}

impl Server {
    /// Starts a kernel in reserve once nothing has run for a while.
    fn keep_reserve(&mut self) {
        let idle = self.ready && self.cell.is_none() && self.queue.is_empty();
        let since = idle.then(|| self.idle_since.unwrap_or_else(Instant::now));
        self.idle_since = since;
        if since.is_some_and(|since| since.elapsed() > IDLE) {
            self.wants_reserve = false;
            if let Err(error) = reserve::start() {
                eprintln!("kernel: {error:#}");
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Shell(request) => self.handle_shell(request),
            Event::Control(request) => self.handle_control(&request),
            Event::Stdin(reply) => self.send_input(reply),
            Event::InterpreterConnected(connections) => self.connect_interpreter(*connections),
            Event::InterpreterShell(reply) => self.handle_interpreter_reply(&reply),
            Event::InterpreterStdin(request) => self.ask_for_input(&request),
            Event::InterpreterIopub(output) => self.handle_interpreter_output(&output),
            // A notebook is better off with a kernel of its own, which tells why.
            Event::InterpreterEnded(_) if self.in_reserve => self.ended = true,
            Event::InterpreterEnded(why) => self.interpreter_ended(&why),
            Event::Taken => {
                self.in_reserve = false;
                self.wants_reserve = reserve::is_wanted();
            }
            Event::Terminate => self.ended = true,
        }
    }
}
