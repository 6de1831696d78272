//! Interrupts, threads and progress of long passes over images.

use super::Progress;
use crate::store::threads::Threads;
use crate::{Error, Result};
use kdlab_client::{Watch, watch};
use std::time::{Duration, Instant};
use tch::Device;

/// A long pass that is not a fit: the user's Interrupt, and its share of the cores. The pass looks at both between two
/// batches.
pub(super) struct Pass {
    name: String,
    watch: Watch,
    threads: Option<Threads>,
}

impl Pass {
    pub(super) fn begin(name: &str, device: Device) -> Self {
        let threads = (device == Device::Cpu).then(Threads::take);
        Self { name: name.to_owned(), watch: watch(name, |_| ()), threads }
    }

    /// Threads that the pass uses; `None` on a GPU.
    pub(super) fn threads(&mut self) -> Option<usize> {
        self.threads.as_mut().map(Threads::look)
    }

    /// Returns an error if the user pressed Interrupt.
    pub(super) fn check(&mut self, done: usize, total: usize) -> Result<()> {
        self.threads();
        match self.watch.reason() {
            None => Ok(()),
            Some(reason) => {
                Err(Error::Interrupted(format!("{}: {reason} after {done} of {total} images; run it again", self.name)))
            }
        }
    }
}

/// Measures throughput, and decides a few times a second that progress is due.
pub(super) struct Ticker {
    progress: Progress,
    start: Instant,
    last: Instant,
}

impl Ticker {
    pub(super) fn new(name: &str, total: usize) -> Self {
        Self::epoch(name, 1, 1, total)
    }

    pub(super) fn epoch(name: &str, epoch: usize, epochs: usize, total: usize) -> Self {
        let (name, now) = (name.to_owned(), Instant::now());
        let (done, metrics, images_per_second, seconds_left) = (0, None, 0.0, 0.0);
        let progress =
            Progress { name, epoch, epochs, done, total, metrics, images_per_second, seconds_left, threads: None };
        Self { progress, start: now, last: now }
    }

    /// Counts the images of an earlier run, which took so many seconds.
    pub(super) fn resume(&mut self, images: usize, seconds: f64) {
        self.progress.done = images;
        let before = Duration::try_from_secs_f64(seconds).ok().and_then(|time| self.start.checked_sub(time));
        self.start = before.unwrap_or(self.start);
    }

    /// Counts a batch; returns the progress when it is due.
    pub(super) fn advance(&mut self, images: usize, threads: Option<usize>) -> Option<Progress> {
        let p = &mut self.progress;
        p.done += images;
        p.threads = threads;
        p.images_per_second = p.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let left = p.total - p.done.min(p.total) + (p.epochs - p.epoch) * p.total;
        p.seconds_left = left as f64 / p.images_per_second;
        if self.last.elapsed() < Duration::from_millis(250) && p.done < p.total {
            return None;
        }
        self.last = Instant::now();
        Some(p.clone())
    }

    /// Leaves a pause out of the throughput.
    pub(super) fn skip(&mut self, pause: Duration) {
        self.start += pause;
    }

    pub(super) fn images_per_second(&self) -> f64 {
        self.progress.images_per_second
    }
}
