//! The streams of the process that runs cells, in the hands of the front.

use std::io::{ErrorKind, Write};

use tokio::net::unix::pipe;

use crate::child::Streams;
use crate::failure::Stderr;
use crate::output::Stdout;

/// The process that runs cells, as the front sees it.
pub struct Child {
    pub pid: i32,
    pub commands: Option<pipe::Receiver>,
    pub answers: std::fs::File,
    /// None when evcxr has nothing more to say: the child ends then, and evcxr waits for that.
    pub stdin: Option<std::fs::File>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    pub out: Stdout,
    pub err: Stderr,
    /// It runs a cell's code, and evcxr waits for it.
    pub running: bool,
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

impl Child {
    pub fn new(streams: Streams, pid: i32) -> std::io::Result<Self> {
        Ok(Self {
            pid,
            commands: Some(pipe::Receiver::from_owned_fd(streams.commands)?),
            answers: streams.answers.into(),
            stdin: Some(streams.stdin.into()),
            stdout: Some(pipe::Receiver::from_owned_fd(streams.stdout)?),
            stderr: Some(pipe::Receiver::from_owned_fd(streams.stderr)?),
            out: Stdout::default(),
            err: Stderr::default(),
            running: false,
        })
    }

    /// Lets evcxr read a line. It listens only while it waits for a cell's code.
    pub fn answer(&mut self, line: &str) {
        if self.running {
            let _ = writeln!(self.answers, "{line}");
        }
    }
}
