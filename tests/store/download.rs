//! Downloads from a local server that fails in the ways real servers do.

use super::{Limits, Remote, fetch_within};
use crate::Error;
use sha2::Digest;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the server does with one request.
#[derive(Clone)]
enum Act {
    /// Serves the bytes, or the range asked for.
    Serve,
    /// As `Serve`, but closes the connection after so many bytes.
    Break(usize),
    /// Serves everything whatever the range, and closes after so many bytes.
    IgnoreRange(usize),
    /// Serves the right number of bytes with wrong values.
    Corrupt,
    /// Sends so many bytes and then nothing, but keeps the connection open.
    Stall(usize),
    /// Answers a range with one that starts elsewhere.
    OtherRange,
    Status(&'static str),
}

struct Server {
    url: String,
    /// The range asked for in each request so far.
    ranges: Arc<Mutex<Vec<Option<usize>>>>,
}

/// A server that performs one act for each request, in this order, and repeats the last act.
fn server(content: &[u8], acts: &[Act]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file.bin", listener.local_addr().unwrap());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let (seen, content, acts) = (ranges.clone(), content.to_vec(), acts.to_vec());
    std::thread::spawn(move || {
        for (i, stream) in listener.incoming().enumerate() {
            let stream = stream.unwrap();
            let start = range(&stream);
            seen.lock().unwrap().push(start);
            // The client may close the connection early.
            let _ = act(&acts[i.min(acts.len() - 1)], stream, start, &content);
        }
    });
    Server { url, ranges }
}

/// Reads a request and returns the start of its range.
fn range(stream: &TcpStream) -> Option<usize> {
    let lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty());
    let lines: Vec<String> = lines.map(|l| l.to_lowercase()).collect();
    lines.iter().find_map(|l| l.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok())
}

fn act(act: &Act, mut stream: TcpStream, start: Option<usize>, content: &[u8]) -> std::io::Result<()> {
    let whole = content.len();
    let from = if matches!(act, Act::IgnoreRange(_)) { 0 } else { start.unwrap_or(0) };
    let mut body = content.get(from..).unwrap_or(&[]).to_vec();
    let status = match act {
        Act::Status(status) => {
            return write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
        }
        _ if from >= whole && start.is_some() => {
            return write!(
                stream,
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        _ if start.is_some() && !matches!(act, Act::IgnoreRange(_)) => {
            let shown = if matches!(act, Act::OtherRange) { from + 1 } else { from };
            format!("206 Partial Content\r\nContent-Range: bytes {shown}-{}/{whole}", whole - 1)
        }
        _ => "200 OK".into(),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    match act {
        Act::Corrupt => body.iter_mut().for_each(|b| *b ^= 1),
        Act::Break(n) | Act::IgnoreRange(n) | Act::Stall(n) => body.truncate(*n),
        _ => {}
    }
    stream.write_all(&body)?;
    stream.flush()?;
    if matches!(act, Act::Stall(_)) {
        std::thread::sleep(Duration::from_secs(10));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

struct Case {
    content: Vec<u8>,
    folder: tempfile::TempDir,
    to: PathBuf,
    part: PathBuf,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("deep/file.bin");
        let part = folder.path().join("deep/file.bin.part");
        let content = (0..300_000u32).map(|i| (i * 7919 / 32) as u8).collect();
        Case { content, folder, to, part }
    }

    fn fetch(&self, servers: &[&Server]) -> Result<Vec<(u64, Option<u64>)>, Error> {
        self.fetch_urls(servers.iter().map(|s| s.url.clone()).collect())
    }

    fn fetch_urls(&self, urls: Vec<String>) -> Result<Vec<(u64, Option<u64>)>, Error> {
        self.fetch_sum(urls, hex(&self.content))
    }

    fn fetch_sum(&self, urls: Vec<String>, sha256: String) -> Result<Vec<(u64, Option<u64>)>, Error> {
        let remote = Remote { name: "the file".into(), urls, sha256, otherwise: "or bring your own".into() };
        let (second, moment) = (Duration::from_secs(1), Duration::from_millis(1));
        let limits = Limits { connect: second, stall: second, retries: 2, pause: moment };
        let mut seen = Vec::new();
        fetch_within(&limits, &remote, &self.to, &mut |done, total| seen.push((done, total)))?;
        assert_eq!(fs::read(&self.to).unwrap(), self.content, "what is put in place is right");
        assert!(!self.part.exists());
        Ok(seen)
    }

    fn start(&self, part: &[u8]) {
        fs::create_dir_all(self.folder.path().join("deep")).unwrap();
        fs::write(&self.part, part).unwrap();
    }
}

#[track_caller]
fn failure<T>(result: Result<T, Error>, parts: &[&str]) {
    let Err(error) = result else { panic!("an error was expected") };
    let text = error.to_string();
    assert!(matches!(error, Error::Network(_)), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn a_download_is_checked_reported_and_done_once() {
    let case = Case::new();
    let server = server(&case.content, &[Act::Serve]);
    let seen = case.fetch(&[&server]).unwrap();
    assert_eq!(seen.first(), Some(&(0, None)));
    assert_eq!(seen.last(), Some(&(300_000, Some(300_000))));
    assert!(seen.is_sorted());
    case.fetch(&[&server]).unwrap();
    assert_eq!(server.ranges.lock().unwrap().len(), 1, "a file that is there is not asked for again");
}

#[test]
fn a_checksum_may_be_in_upper_case_and_a_wrong_one_is_reported() {
    let case = Case::new();
    let server = server(&case.content, &[Act::Serve]);
    let sum = hex(&case.content);
    let wrong = sum.replace(['0', '1', '2', '3'], "4");
    failure(case.fetch_sum(vec![server.url.clone()], wrong), &["SHA-256", &sum, "expected"]);
    case.fetch_sum(vec![server.url.clone()], sum.to_uppercase()).unwrap();
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let case = Case::new();
    // There are more breaks than retries. None counts, because each request brings new bytes.
    let acts = [Act::Break(50_000), Act::Break(50_000), Act::Break(50_000), Act::Break(50_000), Act::Serve];
    let server = server(&case.content, &acts);
    case.fetch(&[&server]).unwrap();
    let asked = [None, Some(50_000), Some(100_000), Some(150_000), Some(200_000)];
    assert_eq!(*server.ranges.lock().unwrap(), asked);
}

#[test]
fn a_later_call_goes_on_where_an_earlier_one_was_killed() {
    let case = Case::new();
    case.start(&case.content[..123_456]);
    let server = server(&case.content, &[Act::Serve]);
    let seen = case.fetch(&[&server]).unwrap();
    assert_eq!(seen.first(), Some(&(123_456, None)));
    assert_eq!(*server.ranges.lock().unwrap(), [Some(123_456)]);
}

#[test]
fn a_complete_part_only_needs_its_check() {
    let case = Case::new();
    case.start(&case.content);
    let server = server(&case.content, &[Act::Serve]);
    case.fetch(&[&server]).unwrap();
    assert_eq!(*server.ranges.lock().unwrap(), [Some(300_000)]); // answered with 416
}

#[test]
fn a_wrong_part_is_thrown_away() {
    for wrong in [&[9; 1000][..], &[9; 300_000], &[9; 400_000]] {
        let case = Case::new();
        case.start(wrong);
        let server = server(&case.content, &[Act::Serve]);
        case.fetch(&[&server]).unwrap();
        assert_eq!(*server.ranges.lock().unwrap(), [Some(wrong.len()), None]);
    }
}

#[test]
fn a_server_without_ranges_starts_over() {
    let case = Case::new();
    case.start(&case.content[..1000]);
    let server = server(&case.content, &[Act::IgnoreRange(usize::MAX)]);
    case.fetch(&[&server]).unwrap();
    assert_eq!(*server.ranges.lock().unwrap(), [Some(1000)]);
}

#[test]
fn a_server_that_always_breaks_off_is_given_up() {
    let case = Case::new();
    let server = server(&case.content, &[Act::IgnoreRange(70_000)]);
    failure(case.fetch(&[&server]), &[&server.url, "broke off after 70000"]);
    assert!(!case.to.exists());
    assert!(server.ranges.lock().unwrap().len() <= 4);
}

#[test]
fn another_range_than_asked_for_is_not_appended() {
    let case = Case::new();
    case.start(&case.content[..1000]);
    let server = server(&case.content, &[Act::OtherRange, Act::Serve]);
    case.fetch(&[&server]).unwrap();
    assert_eq!(*server.ranges.lock().unwrap(), [Some(1000), None]);
}

#[test]
fn corrupt_bytes_are_deleted_and_reported() {
    let case = Case::new();
    let server = server(&case.content, &[Act::Corrupt]);
    let flipped: Vec<u8> = case.content.iter().map(|b| b ^ 1).collect();
    failure(case.fetch(&[&server]), &["SHA-256", &hex(&flipped), &hex(&case.content), "deleted"]);
    assert!(!case.to.exists() && !case.part.exists());
    assert_eq!(server.ranges.lock().unwrap().len(), 1, "the same bytes are not fetched twice");
}

#[test]
fn a_silent_server_is_given_up_in_time() {
    let case = Case::new();
    let stalling = server(&case.content, &[Act::Stall(1000), Act::Status("404 Not Found")]);
    let good = server(&case.content, &[Act::Serve]);
    let start = Instant::now();
    case.fetch(&[&stalling, &good]).unwrap();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(*good.ranges.lock().unwrap(), [Some(1000)], "the mirror goes on where the first stopped");
}

#[test]
fn mirrors_are_tried_in_order_and_all_reasons_given() {
    let case = Case::new();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/file.bin", listener.local_addr().unwrap())
    };
    let missing = server(&case.content, &[Act::Status("404 Not Found")]);
    let busy = server(&case.content, &[Act::Status("503 Service Unavailable")]);
    let urls = vec![closed.clone(), missing.url.clone(), busy.url.clone(), "http://no-such-host.invalid/f".into()];
    let place = case.to.display().to_string();
    let reasons = [&*closed, "efused", &missing.url, "404", &busy.url, "503", "no-such-host.invalid"];
    failure(case.fetch_urls(urls.clone()), &reasons);
    failure(case.fetch_urls(urls.clone()), &[&place, "by hand", "or bring your own"]);
    assert_eq!(missing.ranges.lock().unwrap().len(), 2, "what is not there is asked for once a call");
    assert_eq!(busy.ranges.lock().unwrap().len(), 6, "a busy server three times");

    let good = server(&case.content, &[Act::Serve]);
    case.fetch_urls([urls, vec![good.url]].concat()).unwrap();
}

#[test]
fn a_file_put_there_by_hand_is_checked() {
    let case = Case::new();
    let server = server(&case.content, &[Act::Serve]);
    case.start(b"");
    fs::write(&case.to, "something else").unwrap();
    let text = case.fetch(&[&server]).err().unwrap().to_string();
    assert!(text.contains("is not the file: SHA-256") && text.contains("delete"), "{text}");
    assert_eq!(fs::read(&case.to).unwrap(), b"something else", "the user's file is left alone");
    fs::write(&case.to, &case.content).unwrap();
    case.fetch(&[&server]).unwrap();
    assert!(server.ranges.lock().unwrap().is_empty());
}

#[test]
fn two_at_a_time_download_once() {
    let case = Case::new();
    let server = server(&case.content, &[Act::Serve]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| case.fetch(&[&server]).unwrap());
        }
    });
    assert_eq!(server.ranges.lock().unwrap().len(), 1);
}
