//! One connection to the kernel: JSON, one object a line, over a Unix socket.

use crate::{Error, Result, lock};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Time limit for connecting, for a write that the kernel does not take, and for a reply.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What the kernel sends without being asked.
///
/// ```
/// use kdlab_client::Push;
/// let describe = |push: Push| match push {
///     Push::Stop(reason) => format!("stop: {reason}"),
///     Push::Comm { comm_id, data, .. } => format!("widget {comm_id}: {data}"),
///     Push::PageOpened => "another page".to_owned(),
/// };
/// assert_eq!(describe(Push::Stop("interrupted".into())), "stop: interrupted");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Push {
    /// The user pressed Interrupt while this connection watched for it; the reason in words.
    Stop(String),
    /// The frontend sent a message to a comm that was opened on this connection.
    Comm {
        /// The comm's id.
        comm_id: String,
        /// The message's data, such as `{"method": "update", "state": {"value": 7}}`.
        data: Value,
        /// The binary parts of the data, in the order of its `buffer_paths`.
        buffers: Vec<Vec<u8>>,
    },
    /// A page of the notebook was opened after the widgets. It shows the widgets, but not the displays.
    PageOpened,
}

/// A connection to the live kernel. It owns the displays and widgets that are opened through it.
///
/// Clones share the connection. It ends with the last clone, and its widgets end with it.
///
/// ```
/// // `None` unless the program runs in a cell of the live kernel.
/// if let Some(link) = kdlab_client::Link::connect(|push| eprintln!("{push:?}")) {
///     link.request(&serde_json::json!({"watch": "my loop"}))?;
/// }
/// # Ok::<(), kdlab_client::Error>(())
/// ```
#[derive(Clone)]
pub struct Link(Arc<Connection>);

type Reply = std::result::Result<(), String>;

struct Connection {
    stream: UnixStream,
    write: Mutex<UnixStream>,
    pending: Arc<Mutex<Pending>>,
}

/// The requests without a reply yet, in their order; `None` for one whose reply nobody waits for.
#[derive(Default)]
struct Pending {
    requests: VecDeque<Option<Sender<Reply>>>,
    closed: bool,
}

impl Link {
    /// Connects to the kernel that `LIVE_KERNEL_SOCKET` and `LIVE_KERNEL_TOKEN` name; returns `None` where they name
    /// none, or nobody listens.
    ///
    /// `on_push` runs on the connection's own thread. Do not call [`Link::request`] there, which would block for ten
    /// seconds and fail; use [`Link::post`].
    pub fn connect(on_push: impl Fn(Push) + Send + 'static) -> Option<Self> {
        let path = std::env::var_os("LIVE_KERNEL_SOCKET").filter(|path| !path.is_empty())?;
        let token = std::env::var("LIVE_KERNEL_TOKEN").unwrap_or_default();
        Self::connect_to(Path::new(&path), &token, on_push)
    }

    /// Connects as [`Link::connect`] does, to the socket at `path`.
    pub fn connect_to(path: &Path, token: &str, on_push: impl Fn(Push) + Send + 'static) -> Option<Self> {
        let mut stream = open(path)?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(format!("{}\n", json!({ "token": token })).as_bytes()).ok()?;
        let (read, pending) = (stream.try_clone().ok()?, Arc::new(Mutex::default()));
        let write = Mutex::new(stream.try_clone().ok()?);
        let end = End(stream.try_clone().ok()?, Arc::clone(&pending));
        let reader = std::thread::Builder::new().name("kdlab-link".into());
        reader.spawn(move || listen(read, &end, &on_push)).ok()?;
        Some(Self(Arc::new(Connection { stream, write, pending })))
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// When the kernel refuses, has ended, or does not reply within ten seconds.
    pub fn request(&self, message: &Value) -> Result<()> {
        let (sender, reply) = mpsc::channel();
        self.send(message, Some(sender))?;
        let reply = reply.recv_timeout(PATIENCE).map_err(|e| match e {
            RecvTimeoutError::Timeout => Error(format!("the live kernel gave no answer within {PATIENCE:?}")),
            RecvTimeoutError::Disconnected => closed(),
        })?;
        reply.map_err(|why| Error(format!("the live kernel refused: {why}")))
    }

    /// Sends a request without waiting for its reply.
    ///
    /// # Errors
    /// When the kernel has ended.
    pub fn post(&self, message: &Value) -> Result<()> {
        self.send(message, None)
    }

    /// Ends the connection, for all clones.
    pub(crate) fn close(&self) {
        end(&self.0.stream, &self.0.pending);
    }

    fn send(&self, message: &Value, sender: Option<Sender<Reply>>) -> Result<()> {
        let line = format!("{message}\n");
        // Held until the line is out, so that replies come in the order of the lines.
        let mut write = lock(&self.0.write);
        {
            let mut pending = lock(&self.0.pending);
            if pending.closed {
                return Err(closed());
            }
            pending.requests.push_back(sender);
        }
        write.write_all(line.as_bytes()).map_err(|_| {
            // Half a line may be out: the kernel would understand nothing after it.
            end(&self.0.stream, &self.0.pending);
            closed()
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        end(&self.stream, &self.pending);
    }
}

/// Closes the connection when the reading thread ends, even by a panic, so that no request waits for a reply that
/// cannot come.
struct End(UnixStream, Arc<Mutex<Pending>>);

impl Drop for End {
    fn drop(&mut self) {
        end(&self.0, &self.1);
    }
}

fn end(stream: &UnixStream, pending: &Mutex<Pending>) {
    let mut pending = lock(pending);
    pending.closed = true;
    pending.requests.clear();
    let _ = stream.shutdown(Shutdown::Both);
}

fn closed() -> Error {
    Error("the live kernel closed the connection".into())
}

/// Opens the socket. `connect` has no time limit of its own and waits as long as a kernel that hangs has no room.
fn open(path: &Path) -> Option<UnixStream> {
    let (sender, stream) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || drop(sender.send(UnixStream::connect(path))));
    stream.recv_timeout(PATIENCE).ok()?.ok()
}

/// Reads what the kernel sends until the connection ends.
fn listen(stream: UnixStream, End(_, pending): &End, on_push: &dyn Fn(Push)) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        let message = serde_json::from_slice::<Value>(&line).unwrap_or_default();
        line.clear();
        let Some(buffers) = read_buffers(&mut reader, &message["buffers"]) else { return };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if message.get("ok").is_some() || message.get("error").is_some() {
            let reply = message.get("error").map_or(Ok(()), |why| Err(text(why)));
            if let Some(Some(sender)) = lock(pending).requests.pop_front() {
                let _ = sender.send(reply);
            }
        } else if let Some(reason) = message.get("stop") {
            on_push(Push::Stop(text(reason)));
        } else if message["opened"] == true {
            on_push(Push::PageOpened);
        } else if let Some(comm) = message.get("comm_msg") {
            on_push(Push::Comm { comm_id: text(&comm["comm_id"]), data: comm["data"].clone(), buffers });
        }
    }
}

/// Reads the buffers of these lengths that follow a line; `None` where the connection ends before.
fn read_buffers(reader: &mut impl Read, lengths: &Value) -> Option<Vec<Vec<u8>>> {
    let lengths = lengths.as_array().into_iter().flatten().filter_map(Value::as_u64);
    let read = |length: u64| {
        let mut buffer = Vec::new();
        let read = reader.by_ref().take(length).read_to_end(&mut buffer).ok()?;
        (read as u64 == length).then_some(buffer)
    };
    lengths.map(read).collect()
}
