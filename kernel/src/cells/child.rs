//! The streams of the process that runs cells, in the hands of the front.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use tokio::net::unix::pipe;

use crate::cells::handover::{Streams, ask_for_stdin};
use crate::cells::output::{Piece, Stdout};
use crate::cells::stderr::Stderr;
use crate::processes::reads_stdin;

/// The process that runs cells, as the front sees it.
pub struct Child {
    pub pid: i32,
    pub commands: Option<pipe::Receiver>,
    pub answers: std::fs::File,
    /// None when evcxr has nothing more to say: the child ends then, and evcxr waits for that.
    pub stdin: Option<Stdin>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    pub out: Stdout,
    pub err: Stderr,
    /// It runs a cell's code, and evcxr waits for it.
    pub running: bool,
    /// What it printed, from the line on that says that the cell has ended, until that is sure.
    pub waiting: VecDeque<Piece>,
    pub waits_since: Option<Instant>,
    /// That line turned out to be one that the cell printed, unless the child comes to rest all the same.
    pub doubtful: Option<String>,
    /// Whom to ask for a new stdin, and whether it was asked.
    pub line: UnixStream,
    pub renews_stdin: bool,
    /// The cell asked evcxr for input, which has not come yet.
    pub asked_input: bool,
}

/// Waits until the child, or evcxr on its way to the child, has something to say.
pub async fn readable(child: &Option<Child>) {
    async fn one(pipe: &Option<pipe::Receiver>) {
        match pipe {
            Some(pipe) => drop(pipe.readable().await),
            None => std::future::pending().await,
        }
    }
    match child {
        Some(child) => tokio::select! {
            () = one(&child.commands) => {}
            () = one(&child.stdout) => {}
            () = one(&child.stderr) => {}
        },
        None => std::future::pending().await,
    }
}

/// One read of what is there; None when there is nothing now. An end closes the pipe.
pub fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> Option<usize> {
    let open = pipe.as_ref()?;
    // tokio answers from what it was last told of the pipe; only the pipe itself knows what was written a moment ago.
    let found = match open.try_read(buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            rustix::io::read(open, &mut *buffer).map_err(std::io::Error::from)
        }
        found => found,
    };
    match found {
        Ok(length) if length > 0 => return Some(length),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        _ => *pipe = None,
    }
    None
}

/// The end of the child's stdin that is written to, by a thread of its own: a cell that takes its input slowly, or
/// never, keeps nobody else waiting.
pub struct Stdin {
    sender: Sender<Vec<u8>>,
    /// What was sent and is not in the pipe yet.
    unwritten: Arc<AtomicUsize>,
    /// The same pipe, to ask what is left in it.
    pipe: std::fs::File,
}

impl Stdin {
    fn new(pipe: OwnedFd) -> std::io::Result<Self> {
        let (sender, receiver) = channel::<Vec<u8>>();
        let pipe = std::fs::File::from(pipe);
        let (mut end, unwritten) = (pipe.try_clone()?, Arc::new(AtomicUsize::new(0)));
        let written = unwritten.clone();
        std::thread::spawn(move || {
            while let Ok(bytes) = receiver.recv() {
                if end.write_all(&bytes).is_err() {
                    return;
                }
                written.fetch_sub(1, Ordering::SeqCst);
            }
        });
        Ok(Self { sender, unwritten, pipe })
    }

    pub fn send(&self, bytes: &[u8]) {
        self.unwritten.fetch_add(1, Ordering::SeqCst);
        let _ = self.sender.send(bytes.to_vec());
    }

    /// Whether the child has read all that was sent.
    fn is_read(&self) -> bool {
        self.unwritten.load(Ordering::SeqCst) == 0 && rustix::io::ioctl_fionread(&self.pipe) == Ok(0)
    }
}

impl Child {
    pub fn new(streams: Streams, pid: i32, line: UnixStream) -> std::io::Result<Self> {
        Ok(Self {
            pid,
            commands: Some(pipe::Receiver::from_owned_fd(streams.commands)?),
            answers: streams.answers.into(),
            stdin: Some(Stdin::new(streams.stdin)?),
            stdout: Some(pipe::Receiver::from_owned_fd(streams.stdout)?),
            stderr: Some(pipe::Receiver::from_owned_fd(streams.stderr)?),
            out: Stdout::default(),
            err: Stderr::default(),
            running: false,
            waiting: VecDeque::new(),
            waits_since: None,
            doubtful: None,
            line,
            renews_stdin: false,
            asked_input: false,
        })
    }

    /// Whether it waits for evcxr's next command, as it does when a cell has ended. True where nobody can tell.
    pub fn is_at_rest(&self) -> bool {
        !self.running || reads_stdin(self.pid) != Some(false)
    }

    /// Whether the cell's code itself waits for somebody to type, which nobody can.
    pub fn waits_in_vain(&self) -> bool {
        // While a command is on its way, it is that for which the child waits. This is asked first: a read that still
        // waits when all was taken is the cell's own.
        let nothing_comes = || self.stdin.as_ref().is_some_and(Stdin::is_read);
        self.running
            && !self.asked_input
            && !self.renews_stdin
            && nothing_comes()
            && reads_stdin(self.pid) == Some(true)
    }

    /// Lets that read meet the end of the file.
    pub fn end_stdin(&mut self) {
        self.renews_stdin = true;
        ask_for_stdin(&self.line);
    }

    pub fn renew_stdin(&mut self, stdin: OwnedFd) {
        self.renews_stdin = false;
        // The writer of the old one ends and closes it.
        self.stdin = Stdin::new(stdin).ok();
    }

    /// Lets evcxr read a line. It listens only while it waits for a cell's code.
    pub fn answer(&mut self, line: &str) {
        if self.running {
            let _ = writeln!(self.answers, "{line}");
        }
    }
}
