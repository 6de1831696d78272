//! Two sockets in the private folder. On one of them, the code of cells sends JSON, one object a line. On the other
//! one, a new child hands over its streams ([`crate::cells::handover`]).
//!
//! A link is a connection to the first socket, from any thread of the child. Its code finds path and token in the
//! environment ([`crate::private`]) and sends `{"token": ...}` first. Then it sends requests. The server replies to
//! each by `{"ok": true}` or `{"error": text}`, in the order of the requests:
//! - `{"display": {"id", "update", "data", "metadata"}}` shows a display, or replaces what it shows. The server
//!   publishes it before it replies.
//! - `{"comm_open": {"comm_id", "target_name", "data", "metadata"}}`, `{"comm_msg": {"comm_id", "data"}}` and
//!   `{"comm_close": {"comm_id"}}` open, change and close widgets. Those that are still open close with the link,
//!   unless it has sent `{"comms_keep": {}}`.
//! - `{"watch": label}`: until `{"unwatch": {}}` or the end of the link, Interrupt sends it `stop`, and stops no loops
//!   before. Nobody reads the label.
//! - `{"clear_output": {"wait"}}` removes what the running cell has shown so far, with `wait: true` once it shows
//!   something new. `{"set_next_input": {"text", "replace"}}` puts a text into a new cell below the running one, with
//!   `replace: true` into the running one.
//! - `{"afterwards": code}` names code that shows the results of the running cell, for a page that did not see them.
//!
//! Widgets may have binary parts. Then a `comm_open` or `comm_msg`, in both directions, has a second key, as in
//! `{"comm_msg": {..}, "buffers": [3, 70]}`: the lengths in bytes of the buffers that follow the line. Their places are
//! the `buffer_paths` in `data`.
//!
//! The server sends without being asked:
//! - `{"stop": "interrupted"}` to links that watch, when the user presses Interrupt;
//! - `{"comm_msg": {"comm_id", "data"}}` when the frontend has changed a widget;
//! - `{"opened": true}` when a page of the notebook was opened after the widgets. It shows the widgets, but not the
//!   displays.

use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use jupyter_protocol::JupyterMessage;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::cells::handover::{self, Streams};
use crate::private::{child_socket, link_socket};

/// An event on the sockets in the private folder.
pub enum LinkEvent {
    /// A child is ready to run cells. Its socket closes when it ends.
    Child(Streams, i32, StdStream),
    /// The write end of the child's new stdin, from which it now reads its commands.
    Stdin(i32, OwnedFd),
    ChildEnded(i32),
    /// Code in a cell has connected: the number of the new link, and what the server sends on it.
    Connected(u64, UnboundedSender<(Value, Vec<Bytes>)>),
    Request(u64, Value, Vec<Bytes>),
    Disconnected(u64),
}

/// A connection from code in a cell.
pub struct Link {
    pub sender: UnboundedSender<(Value, Vec<Bytes>)>,
    /// The request of the cell that connected, to which the link's output belongs.
    pub parent: Option<JupyterMessage>,
    /// Interrupt sends it `stop`.
    pub watches: bool,
}

impl Link {
    pub fn send(&self, value: Value) {
        self.send_with(value, vec![]);
    }

    /// Sends a value with binary buffers. A link that has ended needs none.
    pub fn send_with(&self, value: Value, buffers: Vec<Bytes>) {
        let _ = self.sender.send((value, buffers));
    }
}

/// Makes the sockets and listens as long as the server runs. Only the user can open their folder.
pub fn listen(folder: &Path, token: &str, events: UnboundedSender<LinkEvent>) -> Result<()> {
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))
        .context("cannot close the sockets' folder to others")?;
    let links = UnixListener::bind(link_socket(folder)).context("cannot listen for cells")?;
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
            let Ok((stream, _)) = links.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            tokio::spawn(follow_link(id, stream, token.clone(), events.clone()));
        }
    });
    Ok(())
}

fn follow_child(stream: StdStream, token: &str, events: &UnboundedSender<LinkEvent>) {
    match handover::receive(&stream, token) {
        Ok((streams, pid)) => {
            match stream.try_clone() {
                Ok(own) => drop(events.send(LinkEvent::Child(streams, pid, own))),
                Err(error) => return eprintln!("kernel: cannot keep the socket of the cells' process: {error}"),
            }
            while let Some(stdin) = handover::next_stdin(&stream) {
                let _ = events.send(LinkEvent::Stdin(pid, stdin));
            }
            let _ = events.send(LinkEvent::ChildEnded(pid));
        }
        Err(error) => eprintln!("kernel: {error:#}"),
    }
}

/// Reads the next line. Returns `None` at the end of the connection.
async fn next_line(read: &mut (impl AsyncBufRead + Unpin)) -> Option<Vec<u8>> {
    let mut line = vec![];
    (read.read_until(b'\n', &mut line).await.ok()? > 0).then_some(line)
}

/// Maximal length of all buffers of a message, in bytes.
const MOST: u64 = 1 << 30;

/// Reads the buffers of these lengths that follow a line. Returns `None` where they are too long, or the connection
/// ends before.
async fn read_buffers(read: &mut (impl AsyncBufRead + Unpin), lengths: &Value) -> Option<Vec<Bytes>> {
    let lengths: Vec<u64> = lengths.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    if lengths.iter().fold(0, |sum: u64, length| sum.saturating_add(*length)) > MOST {
        return None;
    }
    let mut buffers = vec![];
    for length in lengths {
        let mut buffer = vec![0; length as usize];
        read.read_exact(&mut buffer).await.ok()?;
        buffers.push(buffer.into());
    }
    Some(buffers)
}

async fn follow_link(id: u64, stream: UnixStream, token: String, events: UnboundedSender<LinkEvent>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let first = next_line(&mut read).await.and_then(|line| serde_json::from_slice::<Value>(&line).ok());
    if first.is_none_or(|hello| hello["token"] != json!(token)) {
        return;
    }
    let (sender, mut receiver): (_, UnboundedReceiver<(Value, Vec<Bytes>)>) = unbounded_channel();
    let _ = events.send(LinkEvent::Connected(id, sender));
    tokio::spawn(async move {
        while let Some((mut value, buffers)) = receiver.recv().await {
            if !buffers.is_empty() {
                value["buffers"] = buffers.iter().map(Bytes::len).collect();
            }
            let line = Bytes::from(format!("{value}\n"));
            for piece in [line].into_iter().chain(buffers) {
                if write.write_all(&piece).await.is_err() {
                    return;
                }
            }
        }
    });
    while let Some(line) = next_line(&mut read).await {
        let mut request = serde_json::from_slice(&line).unwrap_or_else(|error| json!({"malformed": error.to_string()}));
        let lengths = request.as_object_mut().and_then(|request| request.remove("buffers")).unwrap_or_default();
        let Some(buffers) = read_buffers(&mut read, &lengths).await else { break };
        let _ = events.send(LinkEvent::Request(id, request, buffers));
    }
    let _ = events.send(LinkEvent::Disconnected(id));
}
