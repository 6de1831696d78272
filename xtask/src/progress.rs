//! What the user sees while something runs: one line per step, a status line on terminals, elapsed time.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Instant;

/// Elapsed time, shown as `12.3 s` or `4 min 05 s`.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts a clock.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&seconds(self.0.elapsed().as_secs_f64()))
    }
}

/// Returns a duration as `12.3 s`, or as `4 min 05 s` from two minutes on.
pub fn seconds(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else {
        let whole = seconds.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

/// Returns a size as `1.2 GB` or `34 MB`.
pub fn size(bytes: u64) -> String {
    if bytes >= 1_000_000_000 { format!("{:.1} GB", bytes as f64 / 1e9) } else { format!("{} MB", bytes / 1_000_000) }
}

static STATUS: Mutex<()> = Mutex::new(());

/// Prints a line that stays, over the status line if there is one.
pub fn line(text: &str) {
    let _guard = STATUS.lock();
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[K");
    }
    println!("{text}");
    let _ = std::io::stdout().flush();
}

/// Shows a status line that the next line replaces. Does nothing if stdout is not a terminal.
pub fn status(text: &str) {
    let _guard = STATUS.lock();
    if std::io::stdout().is_terminal() {
        let short: String = text.chars().filter(|c| !c.is_control()).take(100).collect();
        print!("\r\x1b[K{short}");
        let _ = std::io::stdout().flush();
    }
}

/// Returns whether stdout is a terminal.
pub fn on_terminal() -> bool {
    std::io::stdout().is_terminal()
}
