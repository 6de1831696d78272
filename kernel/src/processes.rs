//! Other processes, as the system shows them: who compiles for the kernel, and whether a process waits for input.

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

/// Whether the main thread of `pid` waits in a read of its stdin. Only Linux tells, and may be set not to.
pub fn reads_stdin(pid: i32) -> Option<bool> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/syscall")).ok().map(|call| is_read_of_stdin(&call))
}

/// `/proc/PID/syscall`: the number of the call, then its arguments.
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
