//! Shows in the notebook that crates are being compiled where that takes long, because minutes of silence look like a
//! dead kernel.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::private;

/// A cell that needs no new crate is compiled within this time.
const WITHOUT_CRATES: Duration = Duration::from_secs(8);

/// Runs `cargo build` and passes its stderr on as it arrives. Returns the exit status and its stdout.
pub fn run(cargo: &mut Command) -> Result<(ExitStatus, String)> {
    let mut child = cargo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start cargo")?;
    let (mut stdout, stderr) = (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
    let (sender, crates) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n').map_while(|line| line.ok()) {
            let line = String::from_utf8_lossy(&line).into_owned();
            eprintln!("{line}");
            if let Some(name) = line.trim_start().strip_prefix("Compiling ").and_then(|rest| rest.split(' ').next())
                && name != "ctx"
                && sender.send(name.to_owned()).is_err()
            {
                return;
            }
        }
    });
    let teller = std::thread::spawn(move || {
        let begun = Instant::now();
        let (mut notice, mut count, mut last, mut told) = (Notice::default(), 0, String::new(), Duration::ZERO);
        loop {
            match crates.recv_timeout(Duration::from_secs(1)) {
                Ok(name) => (count, last) = (count + 1, name),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if count > 0 && begun.elapsed() > WITHOUT_CRATES && begun.elapsed() > told + Duration::from_secs(2) {
                told = begun.elapsed();
                let seconds = told.as_secs();
                notice.tell(&format!(
                    "Compiling the crates that cells depend on, once: {count} so far in {seconds} s, now `{last}`. \
                     Cells run when this is done."
                ));
            }
        }
        if notice.shown {
            let seconds = begun.elapsed().as_secs();
            let crates = if count == 1 { "1 crate".to_owned() } else { format!("{count} crates") };
            notice.tell(&format!("Compiled {crates} that cells depend on, in {seconds} s."));
        }
    });
    let mut said = vec![];
    stdout.read_to_end(&mut said).context("cannot read what cargo says")?;
    let status = child.wait().context("cannot wait for cargo")?;
    let _ = teller.join();
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

/// A display that changes. Nothing appears in stock evcxr_jupyter, or before the first cell.
#[derive(Default)]
struct Notice {
    connection: Option<UnixStream>,
    shown: bool,
}

impl Notice {
    fn tell(&mut self, text: &str) {
        if self.connection.is_none() {
            self.connection = connect();
        }
        let Some(connection) = &mut self.connection else { return };
        let id = format!("compiling-{}", std::process::id());
        let display = json!({"display": {"id": id, "update": self.shown, "data": {"text/plain": text}}});
        let reply = || -> std::io::Result<Value> {
            connection.write_all(format!("{display}\n").as_bytes())?;
            let mut line = String::new();
            BufReader::new(connection).read_line(&mut line)?;
            Ok(serde_json::from_str(&line).unwrap_or_default())
        }();
        self.shown |= reply.is_ok_and(|reply| reply["ok"] == true);
        if !self.shown {
            self.connection = None;
        }
    }
}

fn connect() -> Option<UnixStream> {
    let mut connection = UnixStream::connect(std::env::var_os(private::SOCKET)?).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let token = std::env::var(private::TOKEN).ok()?;
    connection.write_all(format!("{}\n", json!({"token": token})).as_bytes()).ok()?;
    Some(connection)
}
