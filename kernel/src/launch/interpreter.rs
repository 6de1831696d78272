//! evcxr_jupyter as a process of its own: its start, its settings, and its end.

use std::io::Read;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::launch::environment::Variables;
use crate::private::{FOLDER, LOCK, SOCKET, TOKEN, link_socket};

/// Environment variable that switches huge pages off in evcxr_jupyter's allocator and in all processes below.
/// rust-analyzer takes 300 MB in small pieces, and with huge pages the system clears two megabytes at each first
/// touch, which took a seventh of the time until the first cell.
const HUGE_PAGES: &str = "MIMALLOC_ALLOW_THP";

/// In the interpreter: keeps the lock of the build directory, and does not pass it on to compilers and to programs
/// that cells start. Such a program may outlive the kernel, and the build directory would stay locked.
pub fn keep_lock() {
    if let Ok(lock) = std::env::var(LOCK) {
        not_for_programs(&lock);
    }
    // SAFETY: called before there are other threads.
    unsafe { std::env::remove_var(LOCK) };
}

/// In a kernel that starts no interpreter: releases the lock of the build directory.
pub fn release_lock() {
    // SAFETY: no other code in this process uses or closes this descriptor.
    drop(std::env::var(LOCK).ok().and_then(|fd| lock(&fd)).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
}

fn lock(text: &str) -> Option<RawFd> {
    text.parse().ok().filter(|fd| *fd > 2)
}

/// Keeps the descriptor of the lock from programs that this process starts from now on.
fn not_for_programs(text: &str) {
    let Some(lock) = lock(text) else { return };
    // SAFETY: no other code in this process uses or closes this descriptor.
    let lock = unsafe { BorrowedFd::borrow_raw(lock) };
    // Without a descriptor of this number there is nothing to keep.
    let _ = rustix::io::fcntl_setfd(lock, rustix::io::FdFlags::CLOEXEC);
}

/// In the interpreter: ends when the server does, together with the child and compilers.
pub fn end_with_server() {
    std::thread::spawn(|| {
        // The server holds the other end and never writes.
        let _ = std::io::stdin().read(&mut [0]);
        if let Some(folder) = std::env::var_os(FOLDER) {
            let _ = std::fs::remove_dir_all(folder);
        }
        let _ = rustix::process::kill_current_process_group(rustix::process::Signal::KILL);
    });
}

/// In the child: allows huge pages for it and for the programs that it starts.
pub fn allow_huge_pages() {
    // SAFETY: called before there are other threads.
    unsafe { std::env::remove_var(HUGE_PAGES) };
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(false);
}

/// Starts the interpreter with these variables, in a process group of its own.
pub fn start(folder: &Path, token: &str, variables: Variables) -> Result<Child> {
    // With its transport `ipc`, evcxr_jupyter binds files named ADDRESS:PORT.
    let connection = json!({
        "transport": "ipc", "ip": folder.join("interpreter"), "key": token, "signature_scheme": "hmac-sha256",
        "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5,
    });
    let file = folder.join("interpreter.json");
    std::fs::write(&file, connection.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    let held = variables.iter().find(|(name, _)| *name == LOCK).map(|(_, fd)| fd.to_string_lossy().into_owned());
    let held = held.or_else(|| std::env::var(LOCK).ok());
    let started = Command::new(std::env::current_exe().context("cannot find this program's own file")?)
        .arg("--control_file")
        .arg(&file)
        .envs(variables)
        .env(FOLDER, folder)
        .env(HUGE_PAGES, "0")
        .env(SOCKET, link_socket(folder))
        .env(TOKEN, token)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    if let Some(lock) = held {
        not_for_programs(&lock);
    }
    started.context("cannot start the process that compiles cells")
}
