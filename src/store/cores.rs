//! The cores of the CPU: work on all of them, and their name.

use crate::error::lock;
use std::panic::resume_unwind;
use std::sync::Mutex;

/// Applies `work` to every item on all cores and returns the results in the order of the items.
pub(crate) fn on_all_cores<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    on_cores(std::thread::available_parallelism().map_or(1, |n| n.get()), items, work)
}

/// The same on at most so many threads, at least 1.
pub(crate) fn on_cores<T: Send, R: Send>(threads: usize, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = threads.max(1).min(items.len());
    let queue = Mutex::new(items.into_iter().enumerate());
    let next = || lock(&queue).next();
    let worker = || std::iter::from_fn(next).map(|(at, item)| (at, work(item))).collect::<Vec<_>>();
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The name of this machine's CPU, such as "AMD EPYC 9B14"; of its family where the system does not say.
pub(crate) fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.trim_start().strip_prefix(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |name| name.trim().to_owned())
}
