//! The socket between cells and the front: JSON, one object a line.
//!
//! A client connects from any thread of the cells' process, finds address and token in its environment, and sends
//! `{"token": ...}` first. Then requests, each answered by `{"ok": true}` or `{"error": text}` in their order:
//! - `{"display": {"id", "update", "data", "metadata"}}`: a display, or a new state of one. It is published before the
//!   answer.
//! - `{"comm_open": {"comm_id", "target_name", "data", "metadata"}}`, `{"comm_msg": {"comm_id", "data"}}`,
//!   `{"comm_close": {"comm_id"}}`: widgets. They end with the connection, but for those open at `{"comms_keep": {}}`.
//! - `{"watch": label}`: until the connection ends, Interrupt is sent here instead of ending the process.
//! - `{"afterwards": code}`: code that shows what the running cell made, for a page that did not see it.
//!
//! The front sends `{"stop": "interrupted"}` to those who watch, and `{"comm_msg": {"comm_id", "data"}}` for what the
//! front end did with a widget, and `{"opened": true}` when a page was opened that shows the connection's widgets and
//! cannot show its displays.

use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::cells::handover::{self, Streams};
use crate::private::child_socket;

/// What happens on the sockets in the private folder.
pub enum LinkEvent {
    /// A process is ready to run cells; its stream ends when it does.
    Child(Streams, i32, StdStream),
    /// What it reads its commands from by now, in place of what it had.
    Stdin(i32, OwnedFd),
    ChildEnded(i32),
    Opened(u64, UnboundedSender<Value>),
    Request(u64, Value),
    Closed(u64),
}

/// Makes the folder with its sockets and listens for as long as the front runs. Nobody but the user can open it.
pub fn listen(folder: &Path, token: &str, events: UnboundedSender<LinkEvent>) -> Result<()> {
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))
        .context("cannot close the sockets' folder to others")?;
    let cells = UnixListener::bind(folder.join("cells")).context("cannot listen for cells")?;
    let children = StdListener::bind(child_socket(folder)).context("cannot listen for a child")?;
    let (for_children, own) = (events.clone(), token.to_owned());
    std::thread::spawn(move || {
        for stream in children.incoming().flatten() {
            let (events, token) = (for_children.clone(), own.clone());
            std::thread::spawn(move || follow_child(stream, &token, &events));
        }
    });
    let token = token.to_owned();
    tokio::spawn(async move {
        for id in 0.. {
            // One that fails, for want of file descriptors say, is no reason to leave later cells without displays.
            let Ok((stream, _)) = cells.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            tokio::spawn(follow_cell(id, stream, token.clone(), events.clone()));
        }
    });
    Ok(())
}

fn follow_child(stream: StdStream, token: &str, events: &UnboundedSender<LinkEvent>) {
    match handover::receive(&stream, token) {
        Ok((streams, pid)) => {
            match stream.try_clone() {
                Ok(own) => drop(events.send(LinkEvent::Child(streams, pid, own))),
                Err(error) => return eprintln!("kernel: cannot keep the line to the cells' process: {error}"),
            }
            while let Some(stdin) = handover::next_stdin(&stream) {
                let _ = events.send(LinkEvent::Stdin(pid, stdin));
            }
            let _ = events.send(LinkEvent::ChildEnded(pid));
        }
        Err(error) => eprintln!("kernel: {error:#}"),
    }
}

async fn follow_cell(id: u64, stream: UnixStream, token: String, events: UnboundedSender<LinkEvent>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let first = lines.next_line().await.ok().flatten().and_then(|line| serde_json::from_str::<Value>(&line).ok());
    if first.is_none_or(|hello| hello["token"] != json!(token)) {
        return;
    }
    let (sender, mut receiver): (_, UnboundedReceiver<Value>) = unbounded_channel();
    let _ = events.send(LinkEvent::Opened(id, sender));
    tokio::spawn(async move {
        while let Some(value) = receiver.recv().await {
            if write.write_all(format!("{value}\n").as_bytes()).await.is_err() {
                return;
            }
        }
    });
    while let Ok(Some(line)) = lines.next_line().await {
        let request = serde_json::from_str(&line).unwrap_or_else(|error| json!({"malformed": error.to_string()}));
        let _ = events.send(LinkEvent::Request(id, request));
    }
    let _ = events.send(LinkEvent::Closed(id));
}
