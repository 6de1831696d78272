//! Downloads that resume where they broke off, are compared with a checksum, and put a whole file in place or none.

use crate::store::{atomic, digest};
use crate::{Error, Result};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use ureq::tls::{RootCerts, TlsConfig};

/// A file to download.
pub(crate) struct Remote {
    /// Name of the file for messages.
    pub name: String,
    /// Addresses to try, in this order.
    pub urls: Vec<String>,
    /// SHA-256 of the whole file: 64 hex digits, upper or lower case.
    pub sha256: String,
    /// What else the user can do if no address works, as the end of a sentence: "or set ...".
    pub otherwise: String,
}

/// Timeouts and retries of a download.
struct Limits {
    /// Timeout of a connection; short, so that a machine without network falls back soon.
    connect: Duration,
    /// Timeout for the next bytes on an open connection.
    stall: Duration,
    /// Number of retries at one address without a new byte. A retry that brings new bytes is not counted.
    retries: usize,
    /// Pause before a retry.
    pause: Duration,
}

const USUAL: Limits = Limits {
    connect: Duration::from_secs(10),
    stall: Duration::from_secs(30),
    retries: 2,
    pause: Duration::from_secs(1),
};

/// Called with the number of bytes on disk, and the size of the whole file if it is known.
type OnBytes<'a> = &'a mut dyn FnMut(u64, Option<u64>);

/// Makes sure that `to` is the file that `remote` describes. A file that is there is compared with the checksum. A
/// missing one is downloaded to `.part` beside its place, which a later call continues, then compared and renamed. Two
/// processes may call this for the same file. A line is printed at the start, every three seconds and at the end.
///
/// # Errors
/// [`Error::Network`] names each address with its failure, and the place where the user can put the file;
/// [`Error::Data`] when the file that is there has another checksum; [`Error::Io`] when the disk refuses.
pub(crate) fn fetch(remote: &Remote, to: &Path) -> Result<()> {
    let (name, mb) = (&remote.name, |bytes: u64| bytes as f64 / 1e6);
    let mut last: Option<Instant> = None;
    fetch_within(&USUAL, remote, to, &mut |done, total| {
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
    })
}

/// [`fetch`] within these limits, with a callback instead of printed lines.
fn fetch_within(limits: &Limits, remote: &Remote, to: &Path, progress: OnBytes) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let part = folder.join(format!("{name}.part"));
    // A shared cache may be read-only, so nothing is written before this check.
    if in_place(remote, to, &part)? {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
    // One process downloads; the others wait and find the file in place.
    let _lock = atomic::lock(&folder.join(format!(".{name}.lock")))?;
    if in_place(remote, to, &part)? {
        return Ok(());
    }
    progress(length(&part), None);
    let mut reasons = Vec::new();
    for url in &remote.urls {
        match try_url(url, remote, &part, limits, progress)? {
            None => return std::fs::rename(&part, to).map_err(|e| Error::io("writing", to, e)),
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

/// Returns whether the file is in place. If it is, its checksum is right, and what an interrupted download left in
/// `part` is deleted.
fn in_place(remote: &Remote, to: &Path, part: &Path) -> Result<bool> {
    if !to.exists() {
        return Ok(false);
    }
    if let Some(sums) = mismatch(to, &remote.sha256)? {
        return Err(Error::Data(format!("{} is not {}: {sums}; delete the file", to.display(), remote.name)));
    }
    delete(part).map_err(|e| Error::io("deleting", part, e))?;
    Ok(true)
}

/// Downloads to `part` from one address, with retries. Returns `None` when the file is whole and its checksum is right,
/// else the reason to give the address up.
fn try_url(url: &str, remote: &Remote, part: &Path, limits: &Limits, progress: OnBytes) -> Result<Option<String>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(limits.connect))
        .timeout_connect(Some(limits.connect))
        .timeout_recv_response(Some(limits.stall))
        .timeout_per_read(Some(limits.stall))
        .http_status_as_error(false)
        // Companies and schools add their own certificates to the system's.
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .build()
        .into();
    let (mut most, mut failures) = (length(part), 0);
    loop {
        let resumed = length(part) > 0;
        let (reason, may_retry) = match attempt(&agent, url, part, progress) {
            Ok(()) => match mismatch(part, &remote.sha256)? {
                None => return Ok(None),
                Some(sums) => {
                    delete(part).map_err(|e| Error::io("deleting", part, e))?;
                    // The part that was there before may be the cause, so the download starts anew once.
                    (format!("{sums}; the download was deleted"), resumed)
                }
            },
            Err(RequestError::Disk(e)) => return Err(Error::io("writing", part, e)),
            Err(RequestError::Network { reason, may_retry }) => (reason, may_retry),
        };
        failures = if length(part) > most { 1 } else { failures + 1 };
        most = most.max(length(part));
        if !may_retry || failures > limits.retries {
            return Ok(Some(reason));
        }
        std::thread::sleep(limits.pause);
    }
}

/// Why a request ended before the file was whole.
enum RequestError {
    Disk(std::io::Error),
    /// `may_retry`: a retry at the same address may succeed.
    Network {
        reason: String,
        may_retry: bool,
    },
}

/// Returns a failure of the network, with the first line of its reason.
fn network(reason: impl ToString, may_retry: bool) -> RequestError {
    RequestError::Network { reason: first_line(reason), may_retry }
}

/// The first line of an error's text.
pub(crate) fn first_line(error: impl ToString) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Makes one request, which continues `part` if the server supports it and else starts it anew.
fn attempt(agent: &ureq::Agent, url: &str, part: &Path, progress: OnBytes) -> std::result::Result<(), RequestError> {
    let have = length(part);
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let response = request.call().map_err(|e| {
        // A lost connection may succeed next time; a missing host or a refused connection will not.
        let lost =
            [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted, ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe];
        let may_retry = match &e {
            ureq::Error::Io(io) => lost.contains(&io.kind()),
            ureq::Error::Timeout(t) => !matches!(t, ureq::Timeout::Connect | ureq::Timeout::Resolve),
            _ => false,
        };
        network(e, may_retry)
    })?;
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (start, total) = match response.status().as_u16() {
        200 => (0, header("content-length").and_then(|v| v.parse().ok())),
        206 => match header("content-range").as_deref().and_then(content_range) {
            Some((start, total)) if start == have => (have, total),
            _ => {
                delete(part).map_err(RequestError::Disk)?;
                return Err(network("the server sent another range than asked for", true));
            }
        },
        // The server has no more bytes: `part` is complete or of another file, and the checksum will show which.
        416 => return Ok(()),
        code => return Err(network(response.status(), code >= 500 || code == 429)),
    };
    let open = OpenOptions::new().create(true).append(start > 0).write(true).truncate(start == 0).open(part);
    let mut file = open.map_err(RequestError::Disk)?;
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let (mut done, mut bytes) = (start, vec![0; 1 << 16]);
    loop {
        progress(done, total);
        match body.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => file.write_all(&bytes[..n]).map_err(RequestError::Disk)?,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(network(format!("broke off after {done} bytes ({e})"), true)),
        }
        done = file.metadata().map_err(RequestError::Disk)?.len();
    }
    match total {
        Some(total) if done < total => Err(network(format!("broke off after {done} of {total} bytes"), true)),
        _ => file.sync_all().map_err(RequestError::Disk),
    }
}

fn delete(part: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(part) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Returns the first byte and the size of the whole file from a header such as `bytes 100-199/200`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// Returns the length of a file in bytes; 0 for a missing one.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// Returns `None` if the file has the right checksum, else a text with both.
fn mismatch(path: &Path, expected: &str) -> Result<Option<String>> {
    let got = digest::file_sha256(path)?;
    let differs = !got.eq_ignore_ascii_case(expected);
    Ok(differs.then(|| format!("SHA-256 {got}, expected {expected}")))
}

#[cfg(test)]
#[path = "../../tests/store/download.rs"]
mod tests;
