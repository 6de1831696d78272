//! The process that runs cells, the child, as the server sees it: its streams and its state.

use std::collections::VecDeque;
use std::ffi::OsString;
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
use crate::processes::{reads_of_stdin, reads_stdin};

/// The process that runs cells.
pub struct Child {
    pub pid: i32,
    /// The commands that evcxr sends to the child.
    pub commands: Option<pipe::Receiver>,
    /// The beginning of a command whose end evcxr has not sent yet.
    begun: Vec<u8>,
    /// What evcxr reads of the child's stdout.
    pub to_evcxr: std::fs::File,
    /// `None` once evcxr has closed its end. The child then ends, and evcxr waits for that.
    pub stdin: Option<Stdin>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    pub out: Stdout,
    pub err: Stderr,
    /// The child runs a cell's code, and evcxr waits for its end.
    pub running: bool,
    /// Output from the line on that announces the end of the cell, kept back until the end is certain.
    pub waiting: VecDeque<Piece>,
    pub waits_since: Option<Instant>,
    /// Such a line that was shown as text of the cell. It counts all the same if the child comes to rest later.
    pub doubtful: Option<String>,
    /// The socket on which the child can be asked for a new stdin, and whether it was asked.
    pub socket: UnixStream,
    pub renews_stdin: bool,
    /// The cell asked evcxr for input and still waits for it.
    pub asked_input: bool,
}

/// Waits until the child has written something, or evcxr has sent it a command.
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

/// Reads once what is there. Returns `None` where nothing is there now, and closes a pipe that has ended.
pub fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> Option<usize> {
    let open = pipe.as_ref()?;
    // tokio goes by the last event of the pipe and may miss what was written a moment ago, so ask the pipe itself.
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

/// The writing end of the child's stdin. A thread of its own writes, so that a cell that reads slowly or never blocks
/// nobody else.
pub struct Stdin {
    sender: Sender<Vec<u8>>,
    /// Number of pieces that were sent and are not in the pipe yet.
    unwritten: Arc<AtomicUsize>,
    /// The same pipe, for asking how much is left in it.
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

    /// Returns whether the child has read everything.
    fn is_read(&self) -> bool {
        self.unwritten.load(Ordering::SeqCst) == 0 && rustix::io::ioctl_fionread(&self.pipe) == Ok(0)
    }
}

impl Child {
    pub fn new(streams: Streams, pid: i32, socket: UnixStream) -> std::io::Result<Self> {
        Ok(Self {
            pid,
            commands: Some(pipe::Receiver::from_owned_fd(streams.commands)?),
            begun: Vec::new(),
            to_evcxr: streams.to_evcxr.into(),
            stdin: Some(Stdin::new(streams.stdin)?),
            stdout: Some(pipe::Receiver::from_owned_fd(streams.stdout)?),
            stderr: Some(pipe::Receiver::from_owned_fd(streams.stderr)?),
            out: Stdout::default(),
            err: Stderr::default(),
            running: false,
            waiting: VecDeque::new(),
            waits_since: None,
            doubtful: None,
            socket,
            renews_stdin: false,
            asked_input: false,
        })
    }

    /// Returns whether the child waits for evcxr's next command, as it does after the end of a cell. Returns `true`
    /// on systems that cannot tell.
    pub fn is_at_rest(&self) -> bool {
        !self.running || reads_stdin(self.pid) != Some(false)
    }

    /// Returns the reads of stdin that wait while nothing is on its way to them, as [`reads_of_stdin`] does. They may
    /// also wait for evcxr's next command, if the end of the cell is not read yet.
    pub fn waiting_reads(&self) -> Vec<(OsString, String)> {
        // While a command is on its way, the child waits for that command. Held back output may be the end of the cell.
        let nothing_comes = || self.waiting.is_empty() && self.stdin.as_ref().is_some_and(Stdin::is_read);
        match self.running && !self.asked_input && !self.renews_stdin && nothing_comes() {
            true => reads_of_stdin(self.pid),
            false => vec![],
        }
    }

    /// Takes what evcxr has sent. Returns it once it ends with a whole line: evcxr sends a command in parts, and a
    /// child that got the first of them would seem to wait for a line from the user.
    pub fn whole_command(&mut self, part: &[u8]) -> Option<Vec<u8>> {
        self.begun.extend_from_slice(part);
        self.begun.ends_with(b"\n").then(|| std::mem::take(&mut self.begun))
    }

    /// Passes a line on to the read that waits for it.
    pub fn type_line(&self, line: &str) {
        if let Some(stdin) = &self.stdin {
            stdin.send(format!("{line}\n").as_bytes());
        }
    }

    /// Asks for a new stdin, so that the waiting read finds the end of the file.
    pub fn end_stdin(&mut self) {
        self.renews_stdin = true;
        ask_for_stdin(&self.socket);
    }

    pub fn renew_stdin(&mut self, stdin: OwnedFd) {
        self.renews_stdin = false;
        // The thread that writes to the old one ends and closes it.
        self.stdin = Stdin::new(stdin).ok();
    }

    /// Sends a line to evcxr, which reads only while it waits for a cell's code.
    pub fn tell_evcxr(&mut self, line: &str) {
        if self.running {
            let _ = writeln!(self.to_evcxr, "{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn reads_are_told_apart_and_one_behind_a_held_back_end_of_the_cell_is_none() {
        let pipe = || std::io::pipe().map(|(reader, writer)| (OwnedFd::from(reader), OwnedFd::from(writer))).unwrap();
        let (stdin, to_stdin) = pipe();
        let mut reader = Command::new("cat").stdin(stdin).stdout(Stdio::null()).spawn().unwrap();
        let ((commands, _a), (_b, to_evcxr)) = (pipe(), pipe());
        let ((stdout, _c), (stderr, _d)) = (pipe(), pipe());
        let streams = Streams { commands, to_evcxr, stdin: to_stdin, stdout, stderr };
        let pid = i32::try_from(reader.id()).unwrap();
        let mut child = Child::new(streams, pid, UnixStream::pair().unwrap().0).unwrap();
        child.running = true;
        let reads = |child: &Child| loop {
            let found = child.waiting_reads();
            match found.is_empty() {
                true => std::thread::yield_now(),
                false => return found,
            }
        };
        let first = reads(&child);
        assert_eq!(reads(&child), first, "it goes on");
        child.type_line("a command");
        assert_ne!(reads(&child), first, "the next read");
        child.waiting.push_back(Piece::Complete { line: String::new() });
        assert_eq!(child.waiting_reads(), [], "the child may wait for evcxr's next command");
        assert_eq!(child.whole_command(b"LOAD_AND_RUN "), None);
        assert_eq!(child.whole_command(b"a b\n"), Some(b"LOAD_AND_RUN a b\n".to_vec()));
        assert_eq!(child.whole_command(b"\n"), Some(b"\n".to_vec()));
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
}
