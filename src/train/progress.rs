//! How far a long pass is, and whether the user asked it to end.

use super::Progress;
use crate::{Error, Result};
use kdlab_client::{Watch, watch};
use std::time::{Duration, Instant};

/// A long pass that is no fit, which the user may interrupt between two batches.
pub(crate) struct Pass {
    name: String,
    watch: Watch,
}

impl Pass {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), watch: watch(name, |_| ()) }
    }

    /// Why it is to end, if it is.
    pub(crate) fn asked(&self) -> Option<String> {
        self.watch.reason()
    }

    pub(crate) fn check(&self, done: usize, total: usize) -> Result<()> {
        match self.asked() {
            None => Ok(()),
            Some(reason) => Err(Error::Interrupted(format!(
                "{}: {reason} after {done} of {total} images; run the cell again",
                self.name
            ))),
        }
    }
}

/// Decides when progress is due (a few times a second) and what it says.
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
        let now = Instant::now();
        let progress = Progress {
            name: name.to_owned(),
            epoch,
            epochs,
            done: 0,
            total,
            metrics: None,
            images_per_second: 0.0,
            seconds_left: 0.0,
        };
        Self { progress, start: now, last: now }
    }

    pub(super) fn advance(&mut self, images: usize) -> Option<Progress> {
        let p = &mut self.progress;
        p.done += images;
        p.images_per_second = p.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let left = p.total - p.done.min(p.total) + (p.epochs - p.epoch) * p.total;
        p.seconds_left = left as f64 / p.images_per_second;
        if self.last.elapsed() < Duration::from_millis(250) && p.done < p.total {
            return None;
        }
        self.last = Instant::now();
        Some(p.clone())
    }

    /// Leaves out a time in which nothing was to be done.
    pub(super) fn skip(&mut self, idle: Duration) {
        self.start += idle;
    }

    pub(super) fn images_per_second(&self) -> f64 {
        self.progress.images_per_second
    }
}
