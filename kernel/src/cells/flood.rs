//! A limit on what a cell prints: frontends choke on more, and the notebook file would keep all of it.

use std::collections::VecDeque;
use std::time::Instant;

/// Bytes that a cell may print at once. Each line counts [`LINE`] bytes more.
const AT_ONCE: f64 = (20 << 20) as f64;
const LINE: usize = 64;
/// Bytes by which the limit grows each second, so that long work can go on reporting.
const A_SECOND: f64 = 2048.0;
/// Output goes on once the limit has grown to this many bytes.
const RESUME: f64 = (64 << 10) as f64;
/// Number of bytes that are shown of the end of what was left out.
const END: usize = 4 << 10;
const CUT: &str =
    "\n[cut: this is more than a notebook can hold. The cell goes on; the end of its output will follow.]\n";

/// The limit of one stream of one cell.
pub struct Flood {
    left: f64,
    since: Instant,
    left_out: u64,
    end: VecDeque<u8>,
}

impl Default for Flood {
    fn default() -> Self {
        Self { left: AT_ONCE, since: Instant::now(), left_out: 0, end: VecDeque::new() }
    }
}

impl Flood {
    /// Returns what to show of `text`, which was printed at `now`.
    pub fn pass(&mut self, text: String, now: Instant) -> String {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.left = (self.left + passed * A_SECOND).min(AT_ONCE);
        self.since = now;
        if self.left_out > 0 && self.left >= RESUME {
            let shown = self.finish();
            self.left -= cost(&shown);
            return shown + &self.pass(text, now);
        }
        if self.left_out > 0 {
            self.leave_out(&text);
            return String::new();
        }
        if cost(&text) <= self.left {
            self.left -= cost(&text);
            return text;
        }
        // Show as many whole lines as there is room for.
        let mut room = 0;
        for line in text.split_inclusive('\n') {
            self.left -= cost(line);
            if self.left < 0.0 {
                break;
            }
            room += line.len();
        }
        self.left = 0.0;
        let mut shown = text;
        let rest = shown.split_off(room);
        self.leave_out(&rest);
        shown + CUT
    }

    /// Returns the size and the end of what was left out; an empty text if all was shown.
    pub fn finish(&mut self) -> String {
        if self.left_out == 0 {
            return String::new();
        }
        let (left_out, end) = (std::mem::take(&mut self.left_out), std::mem::take(&mut self.end));
        let end = String::from_utf8_lossy(&Vec::from(end)).into_owned();
        // Begin at the start of a line, if there is one.
        let end =
            end.split_once('\n').map_or(end.as_str(), |(first, lines)| if lines.is_empty() { first } else { lines });
        let size = match left_out {
            0..1_000 => format!("{left_out} bytes"),
            1_000..1_000_000 => format!("{:.1} kB", left_out as f64 / 1e3),
            _ => format!("{:.1} MB", left_out as f64 / 1e6),
        };
        format!("[cut: {size} of output are left out here; this is their end:]\n{end}")
    }

    fn leave_out(&mut self, text: &str) {
        self.left_out += text.len() as u64;
        self.end.extend(&text.as_bytes()[text.len().saturating_sub(END)..]);
        self.end.drain(..self.end.len().saturating_sub(END));
    }
}

fn cost(text: &str) -> f64 {
    (text.len() + LINE * text.bytes().filter(|&byte| byte == b'\n').count()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_cut_and_its_end_is_shown() {
        let (mut flood, now) = (Flood::default(), Instant::now());
        let lines: String = (0..200_000).map(|i| format!("line {i} \u{e9}\n")).collect();
        let all: Vec<String> = (0..40).map(|_| flood.pass(lines.clone(), now)).collect();
        assert_eq!(all[0], lines);
        let second = all[1].strip_suffix(CUT).expect("a note where it was cut");
        assert!(lines.starts_with(second) && second.ends_with('\n'));
        assert!((AT_ONCE - 100.0..=AT_ONCE).contains(&(cost(&lines) + cost(second))));
        assert!(all[2..].iter().all(String::is_empty));
        let end = flood.finish();
        let left_out = 39 * lines.len() - second.len();
        let (first, last) = end.split_once('\n').expect("two lines or more");
        assert!(first.starts_with(&format!("[cut: {:.1} MB of output", left_out as f64 / 1e6)), "{first}");
        assert!(lines.ends_with(last) && last.starts_with("line ") && last.len() > END - 20, "{last}");
        assert_eq!(flood.finish(), "");
    }

    #[test]
    fn what_is_printed_slowly_is_shown_whole_and_a_flood_that_ends_goes_on() {
        let (mut flood, begun) = (Flood::default(), Instant::now());
        for second in 0..100_000 {
            let line = format!("{:>900}\n", second);
            assert_eq!(flood.pass(line.clone(), begun + Duration::from_secs(second)), line);
        }
        let later = begun + Duration::from_secs(100_000);
        assert!(flood.pass(format!("{:>99}\n", "x").repeat(1 << 18), later).contains("[cut: this"));
        assert_eq!(flood.pass("soon\n".into(), later + Duration::from_secs(2)), "");
        let shown = flood.pass("much later\n".into(), later + Duration::from_secs(60));
        assert!(shown.contains("MB of output are left out") && shown.ends_with("soon\nmuch later\n"), "{shown}");
    }
}
