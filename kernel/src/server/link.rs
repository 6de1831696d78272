//! Two sockets in the private folder. On `cells`, the code of cells sends JSON, one object a line. On the other one, a
//! new child process hands over its streams ([`crate::cells::handover`]).
//!
//! A client connects from any thread of the cells' process. It finds address and token in its environment
//! ([`crate::private`]) and sends `{"token": ...}` first. Then it sends requests. The front answers each by
//! `{"ok": true}` or `{"error": text}`, in the order of the requests:
//! - `{"display": {"id", "update", "data", "metadata"}}` shows a display, or replaces what it shows. The front
//!   publishes it before it answers.
//! - `{"comm_open": {"comm_id", "target_name", "data", "metadata"}}`, `{"comm_msg": {"comm_id", "data"}}` and
//!   `{"comm_close": {"comm_id"}}` open, change and close widgets. Those that are still open close with the connection,
//!   unless it has sent `{"comms_keep": {}}`.
//! - `{"watch": label}`: until `{"unwatch": {}}` or the end of the connection, Interrupt sends it `stop`, and stops no
//!   loops before. Nobody reads the label.
//! - `{"afterwards": code}` names code that shows the results of the running cell, for a page that did not see them.
//!
//! The front sends without being asked:
//! - `{"stop": "interrupted"}` to clients that watch, when the user presses Interrupt;
//! - `{"comm_msg": {"comm_id", "data"}}` when the front end has changed a widget;
//! - `{"opened": true}` when a page of the notebook was opened after the widgets. It shows the widgets, but not the
//!   displays.

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

/// An event on the sockets in the private folder.
pub enum LinkEvent {
    /// A process is ready to run cells. Its socket closes when the process ends.
    Child(Streams, i32, StdStream),
    /// The write end of the child's new stdin, from which it now reads its commands.
    Stdin(i32, OwnedFd),
    ChildEnded(i32),
    Opened(u64, UnboundedSender<Value>),
    Request(u64, Value),
    Closed(u64),
}

/// Makes the sockets and listens as long as the front runs. Only the user can open their folder.
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
            // One connection may fail, for example for lack of file descriptors. Later ones may succeed.
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
