//! evcxr_jupyter as a process of its own, and the front's connections to it.

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use jupyter_zmq_client::{ClientIoPubConnection, ClientShellConnection, Connection, peer_identity_for_session};
use serde_json::json;
use tokio::process::{Child, Command};
use zeromq::{DealerSocket, Socket, SocketOptions, SubSocket};

use crate::link;

/// Names the private folder of the sockets; set in the inner process and its children.
pub const FOLDER: &str = "KDLAB_KERNEL_FOLDER";
/// evcxr_jupyter's own sockets carry messages for nobody but the front.
const SESSION: &str = "kdlab-kernel-front";

/// rust-analyzer takes 300 MB in small pieces. With huge pages, the system clears two megabytes at each first touch: a seventh
/// of the time until the first cell. This is for the allocator that evcxr_jupyter brings along, and for all processes below.
const HUGE_PAGES: &str = "MIMALLOC_ALLOW_THP";

/// Where children that run cells report.
pub fn child_socket(folder: &Path) -> PathBuf {
    folder.join("child")
}

/// Names the file descriptor by which the lock of the build directory was handed on.
const LOCK: &str = "KDLAB_KERNEL_LOCK";

/// In the inner process: holds the lock of the build directory, and keeps it from compilers and from what cells start. That may
/// outlive the kernel, and the build directory would stay taken.
pub fn keep_lock() {
    if let Some(fd) = std::env::var(LOCK).ok().and_then(|fd| fd.parse().ok()).filter(|fd| *fd > 2) {
        // SAFETY: nothing else in this process knows this descriptor, or closes it.
        let lock = unsafe { BorrowedFd::borrow_raw(fd) };
        // Without one of this number there is nothing to keep.
        let _ = rustix::io::fcntl_setfd(lock, rustix::io::FdFlags::CLOEXEC);
    }
    // SAFETY: called before there are other threads.
    unsafe { std::env::remove_var(LOCK) };
}

/// In the inner process: ends with the front, and takes the cells' process and compilers along.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        // The front holds the other end and never writes.
        let _ = std::io::stdin().read(&mut [0]);
        if let Some(folder) = std::env::var_os(FOLDER) {
            let _ = std::fs::remove_dir_all(folder);
        }
        let _ = rustix::process::kill_current_process_group(rustix::process::Signal::KILL);
    });
}

/// In the process that runs cells: gives it, and what it starts, huge pages where the system has them.
pub fn allow_huge_pages() {
    // SAFETY: called before there are other threads.
    unsafe { std::env::remove_var(HUGE_PAGES) };
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(false);
}

/// Starts the inner process, in a process group of its own.
pub fn start(folder: &Path, token: &str) -> Result<Child> {
    // With its transport `ipc`, evcxr_jupyter binds files named ADDRESS:PORT.
    let connection = json!({
        "transport": "ipc", "ip": folder.join("inner"), "key": token, "signature_scheme": "hmac-sha256",
        "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5,
    });
    let file = folder.join("inner.json");
    std::fs::write(&file, connection.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    Command::new(std::env::current_exe().context("cannot find this program's own file")?)
        .arg("--control_file")
        .arg(&file)
        .env(FOLDER, folder)
        .env(HUGE_PAGES, "0")
        .env(link::ADDRESS, folder.join("cells"))
        .env(link::TOKEN, token)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the process that compiles cells")
}

pub struct Connections {
    pub shell: ClientShellConnection,
    pub stdin: ClientShellConnection,
    pub iopub: ClientIoPubConnection,
}

/// Connects as soon as evcxr_jupyter listens.
pub async fn connect(folder: &Path, token: &str) -> Result<Connections> {
    let endpoint = |port: u16| format!("ipc://{}:{port}", folder.join("inner").display());
    while !(1..=5).all(|port| folder.join(format!("inner:{port}")).exists()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let dealer = async |port| {
        let mut options = SocketOptions::default();
        // Requests for input come to whoever has the identity of the shell connection.
        options.peer_identity(peer_identity_for_session(SESSION)?);
        let mut socket = DealerSocket::with_options(options);
        socket.connect(&endpoint(port)).await?;
        anyhow::Ok(Connection::new(socket, token, SESSION))
    };
    let mut iopub = SubSocket::new();
    iopub.subscribe("").await?;
    iopub.connect(&endpoint(2)).await?;
    Ok(Connections { shell: dealer(1).await?, stdin: dealer(3).await?, iopub: Connection::new(iopub, token, SESSION) })
}

/// The processes that compile for the inner process `pid`: all below it but `child` and what that started.
pub fn compilers(pid: i32, child: Option<i32>) -> Vec<i32> {
    let all = processes();
    let mut found = vec![];
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let below = all.iter().filter(|&&(_, p)| p == parent).map(|&(pid, _)| pid).filter(|&pid| Some(pid) != child);
        for pid in below {
            found.push(pid);
            parents.push(pid);
        }
    }
    found
}

/// All processes with their parents, as `ps` knows them everywhere; Linux tells without it, which is not always there.
fn processes() -> Vec<(i32, i32)> {
    if cfg!(target_os = "linux") {
        let stat = |entry: std::fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // After the name in parentheses, which may hold anything: state, parent.
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        };
        return std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(stat).collect();
    }
    let output = std::process::Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let pair = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    text.lines().filter_map(pair).collect()
}
