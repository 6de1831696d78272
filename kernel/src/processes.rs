//! Other processes: which of them belong to the kernel, and whether one waits for input.

use std::ffi::OsString;

/// Returns all processes below `pid`, except `child` and those below `child`.
pub fn below(pid: i32, child: Option<i32>) -> Vec<i32> {
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

/// Returns all processes with their parents: on Linux from `/proc`, because `ps` may be missing there, elsewhere from
/// `ps`.
fn processes() -> Vec<(i32, i32)> {
    if cfg!(target_os = "linux") {
        let stat = |entry: std::fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name stands in parentheses and may hold anything; state and parent follow.
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

/// Returns whether the main thread of `pid` waits in a read of its stdin. Only Linux knows, and may be configured not
/// to tell.
pub fn reads_stdin(pid: i32) -> Option<bool> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/syscall")).ok().map(|call| is_read_of_stdin(&call))
}

/// Returns the threads of `pid` that wait in a read of its stdin, as [`reads_stdin`] knows, each with the number of
/// times that it was taken off a processor. A thread whose number is the same as before has waited all the time.
pub fn reads_of_stdin(pid: i32) -> Vec<(OsString, String)> {
    let read = |thread: std::fs::DirEntry| {
        let text = |name: &str| std::fs::read_to_string(thread.path().join(name)).ok();
        text("syscall").filter(|call| is_read_of_stdin(call))?;
        let switches: String = text("status")?.lines().filter(|line| line.contains("ctxt_switches")).collect();
        (!switches.is_empty()).then(|| (thread.file_name(), switches))
    };
    std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().filter_map(read).collect()
}

/// Reads `/proc/PID/syscall`: the number of the call, then its arguments.
fn is_read_of_stdin(call: &str) -> bool {
    let read = if cfg!(target_arch = "x86_64") { "0" } else { "63" };
    let mut words = call.split_whitespace();
    words.next() == Some(read) && words.next() == Some("0x0")
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_a_read_of_stdin_is_one() {
        let read = if cfg!(target_arch = "x86_64") { "0" } else { "63" };
        assert!(super::is_read_of_stdin(&format!("{read} 0x0 0x7f8e1eddd000 0x2000")));
        for call in [format!("{read} 0x3 0x7f8e1eddd000"), "230 0x0 0x0".into(), "running".into(), String::new()] {
            assert!(!super::is_read_of_stdin(&call), "{call}");
        }
    }
}
