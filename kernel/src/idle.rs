//! Whether the process that runs cells waits for somebody to type. Its stdin carries evcxr's commands and nothing else,
//! so a cell that reads from it would wait for ever.

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
