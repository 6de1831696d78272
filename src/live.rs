//! The socket to the live kernel: displays that change, widgets, and the user's Interrupt.
//!
//! It is there when `KDLAB_LIVE` names it. Elsewhere (the stock kernel, tests, plain programs) nothing is live, and
//! whoever asks for a link gets none. All state is owned by values: a static would exist once in each cell's library.

use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// For connecting, for a write that the kernel does not take, and for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the kernel sends unasked.
#[derive(Clone, Debug, PartialEq)]
pub enum Push {
    /// The user pressed Interrupt while this connection watched.
    Stop(String),
    /// What the front end sent to a comm that was opened here.
    Comm { comm_id: String, data: Value },
    /// A page that was opened later shows the widgets of this connection, and none of its displays.
    Opened,
}

/// One connection. It owns the displays and widgets that are opened through it, and its end is theirs.
pub struct Link(Arc<Shared>);

type Answer = std::result::Result<(), String>;

struct Shared {
    stream: UnixStream,
    write: Mutex<UnixStream>,
    /// Who waits for the answers that are due, in their order.
    due: Mutex<Due>,
}

#[derive(Default)]
struct Due {
    waiting: VecDeque<Option<Sender<Answer>>>,
    closed: bool,
}

impl Link {
    /// Connects to the kernel that `KDLAB_LIVE` and `KDLAB_LIVE_TOKEN` name; none where they don't, or where nobody
    /// listens.
    ///
    /// `on_push` runs on the connection's own thread: there, answers can't be waited for (use [`Link::post`]).
    pub fn connect(on_push: impl Fn(Push) + Send + 'static) -> Option<Self> {
        let path = std::env::var_os("KDLAB_LIVE").filter(|path| !path.is_empty())?;
        let token = std::env::var("KDLAB_LIVE_TOKEN").unwrap_or_default();
        Self::connect_to(Path::new(&path), &token, on_push)
    }

    /// [`Link::connect`] to a socket by its path.
    pub fn connect_to(path: &Path, token: &str, on_push: impl Fn(Push) + Send + 'static) -> Option<Self> {
        let stream = open(path)?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        let (write, read) = (stream.try_clone().ok()?, stream.try_clone().ok()?);
        let shared = Arc::new(Shared { stream, write: Mutex::new(write), due: Mutex::default() });
        let link = Self(Arc::clone(&shared));
        lock(&shared.write).write_all(format!("{}\n", json!({ "token": token })).as_bytes()).ok()?;
        let reader = std::thread::Builder::new().name("kdlab-live".into());
        reader
            .spawn(move || {
                // Also when `on_push` panics: whoever waits learns that no answer comes.
                let end = Closing(shared);
                listen(read, &end.0, &on_push);
            })
            .ok()?;
        Some(link)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// When the kernel refuses, is gone, or does not answer within seconds.
    pub fn request(&self, message: &Value) -> Result<()> {
        let (sender, answer) = mpsc::channel();
        self.send(message, Some(sender))?;
        let answer = answer.recv_timeout(PATIENCE).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => Error::Io(format!("the live kernel gave no answer within {PATIENCE:?}")),
            mpsc::RecvTimeoutError::Disconnected => gone(),
        })?;
        answer.map_err(|why| Error::Io(format!("the live kernel refused: {why}")))
    }

    /// Sends a request whose answer is of no interest.
    pub fn post(&self, message: &Value) -> Result<()> {
        self.send(message, None)
    }

    /// Opens the display `id`, or replaces what it shows: a MIME bundle with its metadata.
    pub fn display(&self, id: &str, update: bool, data: Value, metadata: Value) -> Result<()> {
        self.request(&json!({"display": {"id": id, "update": update, "data": data, "metadata": metadata}}))
    }

    fn send(&self, message: &Value, answer: Option<Sender<Answer>>) -> Result<()> {
        let line = format!("{message}\n");
        // Held until the line is out, so that answers are due in the order of the lines.
        let mut write = lock(&self.0.write);
        {
            let mut due = lock(&self.0.due);
            if due.closed {
                return Err(gone());
            }
            due.waiting.push_back(answer);
        }
        write.write_all(line.as_bytes()).map_err(|_| {
            // Half a line may be out: nothing after it would be understood.
            self.0.close();
            gone()
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Shared {
    fn close(&self) {
        let mut due = lock(&self.due);
        due.closed = true;
        due.waiting.clear();
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// `connect` itself knows no time limit, and waits as long as a kernel that hangs has no room for another connection.
fn open(path: &Path) -> Option<UnixStream> {
    let (sender, opened) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || drop(sender.send(UnixStream::connect(path))));
    opened.recv_timeout(PATIENCE).ok()?.ok()
}

fn listen(stream: UnixStream, shared: &Shared, on_push: &dyn Fn(Push)) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        let message = serde_json::from_slice::<Value>(&line).unwrap_or_default();
        line.clear();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if message.get("ok").is_some() || message.get("error").is_some() {
            let answer = message.get("error").map_or(Ok(()), |why| Err(text(why)));
            if let Some(Some(sender)) = lock(&shared.due).waiting.pop_front() {
                let _ = sender.send(answer);
            }
        } else if let Some(reason) = message.get("stop") {
            on_push(Push::Stop(text(reason)));
        } else if message["opened"] == true {
            on_push(Push::Opened);
        } else if let Some(comm) = message.get("comm_msg") {
            on_push(Push::Comm { comm_id: text(&comm["comm_id"]), data: comm["data"].clone() });
        }
    }
}

fn gone() -> Error {
    Error::Io("the live kernel closed the connection".into())
}

/// Plain values stay usable after a panic of a thread that held them.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, Interrupt asks this piece of work to stop instead of killing the process with all variables.
pub struct Watch(Link);

impl Watch {
    /// Names code that shows afterwards what the work made, for a page that was opened while it ran.
    pub(crate) fn afterwards(&self, code: &str) {
        // It is a hint: the kernel may be an older one.
        let _ = self.0.request(&json!({ "afterwards": code }));
    }
}

/// Watches for the user's Interrupt while some work runs; none without the live kernel.
pub fn watch(label: &str, on_stop: impl Fn(&str) + Send + 'static) -> Option<Watch> {
    let link = Link::connect(move |push| {
        if let Push::Stop(reason) = push {
            on_stop(&reason);
        }
    })?;
    link.request(&json!({ "watch": label })).ok()?;
    Some(Watch(link))
}
