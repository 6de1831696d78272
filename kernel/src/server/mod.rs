//! The kernel's side of Jupyter's protocol. One task owns its state, handles one event at a time, and never
//! waits for a cell. So the kernel replies to comms, completion and Interrupt while a cell runs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use jupyter_protocol::ConnectionInfo;
use jupyter_zmq_client::connection;
use rustix::process::{Pid, Signal};
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;

use crate::cells::child::readable;
use crate::cells::interrupt::Interrupt;
use crate::config::Config;
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

use channels::{follow, follow_signals, outbox, publisher, token};
use state::{Channels, Event, Server};

/// Interval for what has no event of its own, such as a wait for input.
const TICK: Duration = Duration::from_millis(100);
/// Interval for checking whether a cell has ended.
const CHECK: Duration = Duration::from_millis(1);

/// Serves frontends until one asks for shutdown, or the Jupyter server ends.
pub fn run(connection_file: &Path) -> Result<()> {
    let text = std::fs::read(connection_file).with_context(|| format!("cannot read {}", connection_file.display()))?;
    let info: ConnectionInfo = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no connection file", connection_file.display()))?;
    let folder = private::make()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(serve(&info, folder.path()));
    runtime.shutdown_background();
    served
}

async fn serve(info: &ConnectionInfo, folder: &Path) -> Result<()> {
    let (events, mut inbox) = unbounded_channel();
    let (link_events, mut link_inbox) = unbounded_channel();
    let rust = tokio::task::spawn_blocking(rust_version);
    let token = token()?;
    // Every message contains the session, so the session must not contain a part of the token.
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
            // A malformed frame is ignored. The pause keeps a closed socket from using a whole core.
            if heartbeat.single_heartbeat().await.is_err() {
                tokio::time::sleep(TICK).await;
            }
        }
    });
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
    let (shell_out, control_out, stdin_out) = (outbox(shell.0), outbox(control.0), outbox(stdin.0));
    follow(shell.1, Event::Shell, events.clone());
    follow(control.1, Event::Control, events.clone());
    follow(stdin.1, Event::Stdin, events.clone());
    let channels = Channels { iopub: publisher(iopub), shell: shell_out, control: control_out, stdin: stdin_out };
    let config = Config::load();
    let wrong = config.as_ref().err().map(|error| format!("{error:#}"));
    let mut server =
        Server::new(config.unwrap_or_default(), channels, events, interpreter_pid, folder, &build_directory, stop);
    server.start_error = wrong;
    server.rust = rust.await.ok().flatten().unwrap_or_default();
    server.publish("status", json!({"execution_state": "starting"}), None);
    let parent_process = rustix::process::getppid();
    let of_jupyter = std::env::var("JPY_PARENT_PID").ok().and_then(|pid| pid.parse().ok())
        == parent_process.map(|pid| pid.as_raw_nonzero().get());
    let mut tick = tokio::time::interval(TICK);
    while !server.ended {
        tokio::select! {
            Some(event) = inbox.recv() => server.handle(event),
            Some(event) = link_inbox.recv() => server.handle_link(event),
            () = readable(&server.child) => server.drain(),
            () = tokio::time::sleep(CHECK), if server.child.as_ref().is_some_and(|child| !child.waiting.is_empty()) => {
                server.look_again();
            }
            _ = tick.tick() => {
                server.tick();
                // The Jupyter server ended without a shutdown request.
                server.ended |= of_jupyter && rustix::process::getppid() != parent_process;
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
    fn handle(&mut self, event: Event) {
        match event {
            Event::Shell(request) => self.handle_shell(request),
            Event::Control(request) => self.handle_control(&request),
            Event::Stdin(reply) => self.send_input(reply),
            Event::InterpreterConnected(connections) => self.connect_interpreter(*connections),
            Event::InterpreterShell(reply) => self.handle_interpreter_reply(&reply),
            Event::InterpreterStdin(request) => self.ask_for_input(&request),
            Event::InterpreterIopub(output) => self.handle_interpreter_output(&output),
            Event::InterpreterEnded(why) => self.interpreter_ended(&why),
            Event::Terminate => self.ended = true,
        }
    }
}
