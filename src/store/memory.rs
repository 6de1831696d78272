//! How much memory this process may use.

use rustix::process::{Resource, getrlimit};
use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};

/// Returns the bytes of memory that this process may use: what is free on the machine, or the limit of its cgroup (a
/// container, a job of a cluster) or of `ulimit -v` where that is less. `None` if the system does not say.
pub(crate) fn allowed() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let free = Some(system.available_memory()).filter(|free| *free > 0);
    let own = get_current_pid().ok();
    let own = own.and_then(|pid| {
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing());
        system.process(pid)
    });
    // The whole limit, not what is left of it: cached pages of files count as used, and make way when needed.
    let group = own.and_then(|process| process.cgroup_limits()).map(|limits| limits.total_memory);
    [free, group, getrlimit(Resource::As).current].into_iter().flatten().min()
}
