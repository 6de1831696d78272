//! A kernel in reserve, so that the next notebook opens at once.
//!
//! A kernel of a Jupyter server that has nothing to do starts a second one, which opens without a connection file and
//! waits. The next kernel of the same server hands it the connection file and from then on only passes on its end. At
//! most one waits for each server, and it ends with the server.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Pid;
use sysinfo::{MemoryRefreshKind, System};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::launch::environment::cache;
use crate::private::LOCK;

/// `wait` in a kernel that waits in reserve; `off` if the user wants none.
const RESERVE: &str = "LIVE_KERNEL_RESERVE";

/// The program and its first arguments that start a kernel, as a list in JSON. By default it is this program.
const LAUNCHER: &str = "LIVE_KERNEL_LAUNCHER";

/// Set by Jupyter: its own process, and the path of the notebook.
const JUPYTER: &str = "JPY_PARENT_PID";
const NOTEBOOK: &str = "JPY_SESSION_NAME";

/// Variables by which the environments of a server's kernels differ.
const DIFFERENT: [&str; 8] = [NOTEBOOK, RESERVE, LOCK, "EVCXR_TMPDIR", "PATH", "SHLVL", "OLDPWD", "_"];

/// With less free memory, in bytes, no kernel is started in reserve. One takes about 0.3 GB.
const ENOUGH: u64 = 4 << 30;

/// A kernel in reserve answers within this time; if it does not, the notebook starts a kernel of its own.
const PATIENCE: Duration = Duration::from_secs(5);

const TAKEN: &[u8] = b"taken\n";

/// Returns whether this process is to wait in reserve.
pub fn waits() -> bool {
    std::env::var_os(RESERVE).is_some_and(|value| value == "wait")
}

/// Returns the process of the Jupyter server.
pub fn jupyter() -> Option<Pid> {
    std::env::var(JUPYTER).ok()?.parse().ok().and_then(Pid::from_raw)
}

/// Returns whether this kernel may start one in reserve: a server opens notebooks with it, and the machine has room.
pub fn is_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let off = std::env::var_os(RESERVE).is_some_and(|value| value == "off");
    if off || jupyter().is_none() || !(set(NOTEBOOK) || waits()) {
        return false;
    }
    let mut system = System::new();
    if let Ok(system) = &mut system {
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    cores > 1 && system.is_ok_and(|system| system.available_memory() >= ENOUGH)
}

/// Starts a kernel that waits in reserve. It goes on when this one ends.
pub fn start() -> Result<()> {
    let this = std::env::current_exe().context("cannot find this program's own file")?;
    let given = std::env::var(LAUNCHER).ok().and_then(|text| serde_json::from_str::<Vec<String>>(&text).ok());
    let mut command = match given.as_deref() {
        Some([program, args @ ..]) => {
            let mut command = Command::new(program);
            command.args(args);
            command
        }
        _ => Command::new(this),
    };
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    // In place of a connection file.
    command.arg("reserve").env(RESERVE, "wait").env_remove(NOTEBOOK).env_remove(LOCK).stdin(Stdio::null());
    let mut child = command.spawn().context("cannot start a kernel in reserve")?;
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// Returns a number that is the same for kernels that can stand in for one another: same folder, environment,
/// configuration and program.
fn key() -> Result<u64> {
    let variables: BTreeMap<_, _> =
        std::env::vars_os().filter(|(name, _)| !DIFFERENT.iter().any(|other| name == other)).collect();
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let changed = fs::metadata(&program).and_then(|found| found.modified())?;
    let folder = evcxr::config_dir().unwrap_or_default();
    let settings =
        ["prelude.rs", "init.evcxr", "evcxr.toml", "kernel.toml"].map(|name| fs::read(folder.join(name)).ok());
    let mut hasher = DefaultHasher::new();
    (variables, std::env::current_dir()?, program, changed, settings).hash(&mut hasher);
    Ok(hasher.finish())
}

fn place() -> Result<PathBuf> {
    Ok(cache()?.join("reserve"))
}

/// The file that names the socket of the kernel in reserve. Who renames it has taken the kernel.
fn notice() -> Result<PathBuf> {
    Ok(place()?.join(format!("{:016x}", key()?)))
}

/// In a new kernel: gives the connection file to a kernel in reserve. Returns the connection that ends with the other
/// kernel; `None` where none fits.
pub fn take(connection_file: &Path) -> Option<StdStream> {
    let notice = notice().ok()?;
    let mine = notice.with_extension(std::process::id().to_string());
    fs::rename(&notice, &mine).ok()?;
    let socket = fs::read_to_string(&mine);
    let _ = fs::remove_file(&mine);
    let mut stream = StdStream::connect(socket.ok()?).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let file = std::path::absolute(connection_file).ok()?;
    stream.write_all(format!("{}\n", file.display()).as_bytes()).ok()?;
    let mut answer = [0; TAKEN.len()];
    stream.read_exact(&mut answer).ok()?;
    stream.set_read_timeout(None).ok()?;
    (answer == TAKEN).then_some(stream)
}

/// A kernel in reserve that can be taken.
pub struct Offer {
    notice: PathBuf,
    listener: UnixListener,
    /// Held while it waits.
    _lock: File,
}

/// A new kernel that has taken the one in reserve.
pub struct Taken {
    pub connection_file: PathBuf,
    stream: UnixStream,
}

impl Offer {
    /// Offers the kernel with this private folder. Returns `None` if a kernel waits already.
    pub fn make(folder: &Path) -> Result<Option<Self>> {
        let (place, notice, socket) = (place()?, notice()?, folder.join("reserve"));
        let server = jupyter().context("a kernel in reserve belongs to a Jupyter server")?;
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        remove_old(&place);
        let lock = place.join(format!("{}.lock", server.as_raw_nonzero()));
        let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        let listener = UnixListener::bind(&socket).context("cannot listen for a new kernel")?;
        // In one step, so that nobody reads half of it.
        let beside = notice.with_extension("new");
        fs::write(&beside, socket.to_string_lossy().as_bytes()).context("cannot write in the cache")?;
        fs::rename(&beside, &notice).context("cannot write in the cache")?;
        Ok(Some(Self { notice, listener, _lock: lock }))
    }

    /// Waits until a new kernel takes this one.
    pub async fn taken(&self) -> Result<Taken> {
        let (stream, _) = self.listener.accept().await?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        Ok(Taken { connection_file: line.trim_end_matches('\n').into(), stream: reader.into_inner() })
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.notice);
    }
}

impl Taken {
    /// Tells the new kernel that this one serves, and waits until the new one ends.
    pub async fn serve(mut self) {
        if self.stream.write_all(TAKEN).await.is_ok() {
            let _ = self.stream.read(&mut [0]).await;
        }
    }
}

/// Removes the locks and notices of servers that have ended.
fn remove_old(place: &Path) {
    for file in fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let ended = match file.extension() {
            Some(_) => {
                let server = file.file_stem().and_then(|name| name.to_str()?.parse().ok()).and_then(Pid::from_raw);
                server.is_some_and(|pid| rustix::process::test_kill_process(pid).is_err())
            }
            None => fs::read_to_string(&file).is_ok_and(|socket| !Path::new(&socket).exists()),
        };
        if ended {
            let _ = fs::remove_file(&file);
        }
    }
}

/// Calls `ended` once the process `pid` has ended.
pub fn when_ended(pid: Pid, ended: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        #[cfg(target_os = "linux")]
        if let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            let mut ends = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
            while rustix::event::poll(&mut ends, None) == Err(rustix::io::Errno::INTR) {}
        }
        while rustix::process::test_kill_process(pid).is_ok() && cfg!(not(target_os = "linux")) {
            std::thread::sleep(Duration::from_secs(1));
        }
        ended();
    });
}
