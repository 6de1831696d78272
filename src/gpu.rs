//! What to say when a GPU's memory is full: who holds it, and how to free some.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

/// Returns what to add to libtorch's reason, if it is that a GPU has no memory left.
pub(crate) fn advice(reason: &str) -> Option<String> {
    reason.contains("CUDA out of memory").then(|| {
        let query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"];
        let listed = Command::new("nvidia-smi").args(query).output().map(|output| output.stdout).unwrap_or_default();
        let processes = processes(&String::from_utf8_lossy(&listed));
        explain(&processes, std::process::id(), &owner)
    })
}

/// Reads the processes on the GPU, a line each: number, and MiB that it holds.
fn processes(listed: &str) -> Vec<(u32, u64)> {
    let pair = |line: &str| {
        let (pid, size) = line.split_once(',')?;
        Some((pid.trim().parse().ok()?, size.trim().parse().ok()?))
    };
    listed.lines().filter_map(pair).collect()
}

fn explain(processes: &[(u32, u64)], own: u32, owner: &dyn Fn(u32) -> Option<String>) -> String {
    let you = owner(own);
    let mut held: BTreeMap<String, u64> = BTreeMap::new();
    for (pid, size) in processes {
        let who = match owner(*pid) {
            _ if *pid == own => "this kernel".to_owned(),
            who if who.is_some() && who == you => "your other programs".to_owned(),
            who => who.unwrap_or_else(|| "programs of others".to_owned()),
        };
        *held.entry(who).or_default() += size;
    }
    let mut held: Vec<_> = held.into_iter().collect();
    held.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let list: Vec<_> = held.iter().map(|(who, size)| format!("{who} {:.1} GB", *size as f64 / 1024.0)).collect();
    let holders = if list.is_empty() { String::new() } else { format!(" Held by: {}.", list.join(", ")) };
    format!(
        "{holders} To free some: drop(...) tensors and models that you no longer need, take a smaller batch_size, or \
         shut down the kernels of other notebooks"
    )
}

/// Returns the name of the account that runs a process.
fn owner(pid: u32) -> Option<String> {
    let uid = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid().to_string();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    Some(name.unwrap_or_else(|| format!("account {uid}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gpu_names_who_holds_what() {
        let found = processes("100, 8100\n200, 30822\n201, 30822\n300, 1024\n[N/A], 5\n400, 512\n");
        let owner = |pid| ["", "you", "ada", "you"].get(pid as usize / 100).map(|name| (*name).to_owned());
        let said = explain(&found, 100, &owner);
        let held =
            " Held by: ada 60.2 GB, this kernel 7.9 GB, your other programs 1.0 GB, programs of others 0.5 GB. To";
        assert!(said.starts_with(held), "{said}");
        assert!(explain(&[], 100, &owner).starts_with(" To free some: drop(...)"));
    }

    #[test]
    fn only_a_full_gpu_gets_advice() {
        assert!(
            advice("CUDA out of memory. Tried to allocate 2.00 GiB.").is_some_and(|text| text.contains("free some"))
        );
        assert_eq!(advice("DefaultCPUAllocator: can't allocate memory"), None);
        assert!(owner(std::process::id()).is_some_and(|name| !name.is_empty()));
    }
}
