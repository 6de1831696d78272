//! The child hands its standard streams over to the server before evcxr's code takes over.
//!
//! The server holds the other ends of the pipes, so it can read what a cell printed even after the child has
//! crashed.

use std::io::{IoSlice, IoSliceMut, Read, Write, pipe, stderr, stdin, stdout};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::cells::interrupt;
use crate::private::{self, TOKEN};

/// The file descriptors that the child hands over, in this order.
pub struct Streams {
    /// Reads the commands that evcxr sends to the child.
    pub commands: OwnedFd,
    /// Writes what evcxr reads of the child's stdout.
    pub to_evcxr: OwnedFd,
    /// The other ends of the child's new stdin, stdout and stderr.
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// In the child: hands the streams over. Without a server, as in stock evcxr_jupyter, nothing happens.
pub fn hand_over() -> Result<()> {
    let Some(folder) = std::env::var_os(private::FOLDER) else {
        return Ok(());
    };
    let token = std::env::var(TOKEN).context("the kernel gave no token")?;
    interrupt::share(Path::new(&folder))?;
    let socket = private::child_socket(Path::new(&folder));
    let mut server = UnixStream::connect(&socket).with_context(|| format!("cannot reach {}", socket.display()))?;
    let (new_stdin, to_stdin) = pipe()?;
    let (from_stdout, new_stdout) = pipe()?;
    let (from_stderr, new_stderr) = pipe()?;
    let (commands, to_evcxr) = (stdin(), stdout());
    let given = [commands.as_fd(), to_evcxr.as_fd(), to_stdin.as_fd(), from_stdout.as_fd(), from_stderr.as_fd()];
    send(&server, format!("{token} {}\n", std::process::id()).as_bytes(), &given)?;
    // evcxr takes the closing of this stderr for the end of the process, so it must stay open until then.
    std::mem::forget(stderr().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(&new_stdin)?;
    rustix::stdio::dup2_stdout(&new_stdout)?;
    rustix::stdio::dup2_stderr(&new_stderr)?;
    std::thread::spawn(move || {
        // Each byte from the server asks for a new stdin. When the socket closes, the server has ended, and this
        // process ends, too.
        while server.read(&mut [0]).is_ok_and(|length| length == 1) && renew_stdin(&server).is_ok() {}
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
    Ok(())
}

/// Puts a new pipe in place of stdin and sends the server its other end. So a cell's read can end without the end of
/// stdin: when the server closes the old pipe, a waiting read finds the end of the file, and later reads, evcxr's among
/// them, use the new pipe.
fn renew_stdin(server: &UnixStream) -> Result<()> {
    let (new_stdin, to_stdin) = pipe()?;
    rustix::stdio::dup2_stdin(&new_stdin)?;
    send(server, b"stdin\n", &[to_stdin.as_fd()])
}

/// In the server: asks the child for a new stdin, which [`next_stdin`] receives.
pub fn ask_for_stdin(child: &UnixStream) {
    let _ = (&mut &*child).write_all(&[1]);
}

/// In the server: waits for a new stdin of the child. Returns `None` when the child has ended.
pub fn next_stdin(child: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(child, &mut [IoSliceMut::new(&mut [0; 16])], &mut ancillary, RecvFlags::empty()).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

fn send(server: &UnixStream, text: &[u8], fds: &[BorrowedFd]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(fds));
    sendmsg(server, &[IoSlice::new(text)], &mut ancillary, SendFlags::empty())?;
    (&mut &*server).flush()?;
    Ok(())
}

/// In the server: receives the streams and the process id of a new child.
pub fn receive(child: &UnixStream, token: &str) -> Result<(Streams, i32)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 256];
    let got = recvmsg(child, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::empty())?;
    let text = String::from_utf8_lossy(&text[..got.bytes]).into_owned();
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = fds.next().into_iter().flatten();
    let pid = text.strip_prefix(token).and_then(|rest| rest.trim().parse().ok());
    match (pid, fds.next(), fds.next(), fds.next(), fds.next(), fds.next()) {
        (Some(pid), Some(commands), Some(to_evcxr), Some(stdin), Some(stdout), Some(stderr)) => {
            Ok((Streams { commands, to_evcxr, stdin, stdout, stderr }, pid))
        }
        _ => bail!("a process without the token asked to run cells"),
    }
}
