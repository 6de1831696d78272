//! Files from the network: resumed where they broke off, checked against their sum, whole or absent.

use crate::store::{atomic, digest};
use crate::{Error, Result};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use ureq::tls::{RootCerts, TlsConfig};

/// A file and the addresses it can be had from, tried in order.
#[derive(Clone, Debug)]
pub struct Remote {
    /// For messages.
    pub name: String,
    pub urls: Vec<String>,
    pub sum: Sum,
    /// What else the user can do when no address works, as the end of a sentence: "or set ...".
    pub otherwise: String,
}

/// The checksum a file must have, in hex.
#[derive(Clone, Debug)]
pub enum Sum {
    Sha256(String),
    Md5(String),
}

/// How long to wait, and how often to try again.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For a connection; short, so that a machine without network falls back soon.
    pub connect: Duration,
    /// For the next bytes on an open connection.
    pub stall: Duration,
    /// Further tries at one address that bring no new bytes; tries that do are not counted.
    pub retries: usize,
    /// Between tries at one address.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            retries: 2,
            pause: Duration::from_secs(1),
        }
    }
}

/// Told of the bytes on disk and of the size of the whole file where it is known.
pub type Progress<'a> = &'a mut dyn FnMut(u64, Option<u64>);

/// A progress callback that prints a line at the start, every three seconds, and at the end.
pub fn printer(name: &str) -> impl FnMut(u64, Option<u64>) + use<> {
    let name = name.to_owned();
    let mut last: Option<Instant> = None;
    move |done, total| {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        if last.is_none() {
            println!("Downloading {name}");
        } else if last.is_some_and(|t| t.elapsed() < Duration::from_secs(3)) && total != Some(done) {
            return;
        } else if let Some(total) = total {
            println!("  {name}: {:.0} of {:.0} MB", mb(done), mb(total));
        } else {
            println!("  {name}: {:.0} MB", mb(done));
        }
        last = Some(Instant::now());
    }
}

/// Makes sure that `to` is the file `remote` describes: checked where it is there, else downloaded beside its place
/// (`.part`, which a later call takes up again), checked, and renamed. Two processes may call this for the same file.
///
/// # Errors
/// [`Error::Network`] lists each address with its reason, and names the place where the file can be put by hand;
/// [`Error::Data`] when the file that is there has another sum; [`Error::Io`] when the disk refuses.
pub fn fetch(remote: &Remote, to: &Path, limits: &Limits, progress: Progress) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let part = folder.join(format!("{name}.part"));
    // Before anything is written: a shared cache may be read-only.
    if in_place(remote, to, &part)? {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
    // Held until the end: one process downloads, the others find the file in place.
    let _lock = atomic::lock(&folder.join(format!(".{name}.lock")))?;
    if in_place(remote, to, &part)? {
        return Ok(());
    }
    progress(length(&part), None);
    let mut reasons = Vec::new();
    for url in &remote.urls {
        match from_one(url, remote, &part, limits, progress)? {
            None => {
                std::fs::rename(&part, to).map_err(|e| Error::io("writing", to, e))?;
                return Ok(());
            }
            Some(reason) => reasons.push(format!("{url}: {reason}")),
        }
    }
    Err(Error::Network(format!(
        "{} could not be downloaded ({}); check the network, put the file at {} by hand, {}",
        remote.name,
        reasons.join("; "),
        to.display(),
        remote.otherwise
    )))
}

/// Whether the file is there; then its sum is right and no `part` of it is left.
fn in_place(remote: &Remote, to: &Path, part: &Path) -> Result<bool> {
    if !to.exists() {
        return Ok(false);
    }
    if let Some(sums) = mismatch(to, &remote.sum)? {
        return Err(Error::Data(format!("{} is not {}: {sums}; delete the file", to.display(), remote.name)));
    }
    // Left by a download that somebody cut short by putting the file there.
    discard(part).map_err(|e| Error::io("deleting", part, e))?;
    Ok(true)
}

/// Downloads to `part` from one address, trying again as long as there is hope. `None` when the file is there and
/// its sum is right, else the reason to give the address up.
fn from_one(url: &str, remote: &Remote, part: &Path, limits: &Limits, progress: Progress) -> Result<Option<String>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(limits.connect))
        .timeout_connect(Some(limits.connect))
        .timeout_recv_response(Some(limits.stall))
        .timeout_per_read(Some(limits.stall))
        .http_status_as_error(false)
        // The system's certificates: companies and schools add their own.
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .build()
        .into();
    let (mut most, mut failures) = (length(part), 0);
    loop {
        let resumed = length(part) > 0;
        let failure = match attempt(&agent, url, part, progress) {
            Ok(()) => match mismatch(part, &remote.sum)? {
                None => return Ok(None),
                Some(sums) => {
                    discard(part).map_err(|e| Error::io("deleting", part, e))?;
                    // What was there before may be to blame: once more from the start.
                    Failure { reason: format!("{sums}; the download was deleted"), again: resumed }
                }
            },
            Err(Stop::Disk(e)) => return Err(Error::io("writing", part, e)),
            Err(Stop::Net(failure)) => failure,
        };
        failures = if length(part) > most { 1 } else { failures + 1 };
        most = most.max(length(part));
        if !failure.again || failures > limits.retries {
            return Ok(Some(failure.reason));
        }
        std::thread::sleep(limits.pause);
    }
}

struct Failure {
    reason: String,
    /// Whether the same address may do better.
    again: bool,
}

enum Stop {
    Disk(std::io::Error),
    Net(Failure),
}

fn net(reason: impl ToString, again: bool) -> Stop {
    Stop::Net(Failure { reason: reason.to_string().lines().next().unwrap_or_default().to_owned(), again })
}

/// One request: continues `part` where the server can, else starts it anew.
fn attempt(agent: &ureq::Agent, url: &str, part: &Path, progress: Progress) -> std::result::Result<(), Stop> {
    let have = length(part);
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let response = request.call().map_err(|e| {
        // A connection that was made and lost may do better next time; no such host, or nobody there, will not.
        let again = match &e {
            ureq::Error::Io(io) => matches!(
                io.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::UnexpectedEof
                    | ErrorKind::BrokenPipe
            ),
            ureq::Error::Timeout(t) => !matches!(t, ureq::Timeout::Connect | ureq::Timeout::Resolve),
            _ => false,
        };
        net(e, again)
    })?;
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (start, total) = match response.status().as_u16() {
        200 => (0, header("content-length").and_then(|v| v.parse().ok())),
        206 => match header("content-range").as_deref().and_then(content_range) {
            Some((start, total)) if start == have => (have, total),
            _ => {
                discard(part).map_err(Stop::Disk)?;
                return Err(net("the server sent another range than asked for", true));
            }
        },
        // Nothing behind what we have: either it is complete (the sum will tell) or it is of another file.
        416 => return Ok(()),
        code => return Err(net(response.status(), code >= 500 || code == 429)),
    };
    let open = OpenOptions::new().create(true).append(start > 0).write(true).truncate(start == 0).open(part);
    let mut file = open.map_err(Stop::Disk)?;
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let (mut done, mut bytes) = (start, vec![0; 1 << 16]);
    loop {
        progress(done, total);
        match body.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => file.write_all(&bytes[..n]).map_err(Stop::Disk)?,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(net(format!("broke off after {done} bytes ({e})"), true)),
        }
        done = file.metadata().map_err(Stop::Disk)?.len();
    }
    match total {
        Some(total) if done < total => Err(net(format!("broke off after {done} of {total} bytes"), true)),
        _ => file.sync_all().map_err(Stop::Disk),
    }
}

fn discard(part: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(part) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// First byte and size of the whole in `bytes 100-199/200`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// `None` when the file has the sum it should have, else both sums in words.
fn mismatch(path: &Path, sum: &Sum) -> Result<Option<String>> {
    let (name, expected, got) = match sum {
        Sum::Sha256(expected) => ("SHA-256", expected, digest::file_digest::<sha2::Sha256>(path)),
        Sum::Md5(expected) => ("MD5", expected, digest::file_digest::<md5::Md5>(path)),
    };
    let got = got?;
    let differs = !got.eq_ignore_ascii_case(expected);
    Ok(differs.then(|| format!("{name} {got}, expected {expected}")))
}
