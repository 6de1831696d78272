//! The reply to `usage_request`: what the kernel's processes use of the machine, as ipykernel reports it.

use serde_json::{Value, json};
use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::processes::below;

/// The system, with the times at the last request: shares of the processor are means since then.
#[derive(Default)]
pub struct Usage(Option<System>);

impl Usage {
    /// Measures the process `pid` and all below it. The first call knows no share of the processor.
    pub fn measure(&mut self, pid: u32) -> Value {
        let first = self.0.is_none();
        if first {
            match System::new() {
                Ok(system) => self.0 = Some(system),
                Err(error) => return json!({"status": "error", "ename": "error", "evalue": error.to_string()}),
            }
        }
        let Some(system) = &mut self.0 else { return json!({}) };
        let mut pids = vec![pid as i32];
        pids.extend(below(pid as i32, None));
        let own: Vec<Pid> = pids.iter().map(|&pid| Pid::from_u32(pid as u32)).collect();
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&own), true, what);
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        system.refresh_cpu_usage();
        let found = || own.iter().filter_map(|pid| system.process(*pid));
        let cpu: f32 = found().map(|process| process.cpu_usage()).sum();
        let memory: u64 = found().map(|process| share(process.pid()).unwrap_or(process.memory())).sum();
        let (total, available) = (system.total_memory(), system.available_memory());
        let percent = 100.0 * total.saturating_sub(available) as f64 / total.max(1) as f64;
        let mut usage = json!({
            "hostname": System::host_name().unwrap_or_default(),
            "pid": pid,
            "kernel_cpu": if first { 0.0 } else { cpu },
            "kernel_memory": memory,
            "cpu_count": system.cpus().len(),
            "host_virtual_memory": {
                "total": total, "available": available, "used": system.used_memory(), "free": system.free_memory(),
                "percent": percent,
            },
        });
        if !first {
            usage["host_cpu_percent"] = json!(system.global_cpu_usage());
        }
        usage
    }
}

/// Returns the memory of a process in bytes, with its share of what it shares with others. Only Linux knows.
fn share(pid: Pid) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}
