//! Progress as lines of text, for notebook cells and terminals.

use super::words::{duration, percent, short};
use crate::error::lock;
use crate::train::{Event, History, Listener};
use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Shortest time between two lines within an epoch: a notebook keeps every line.
const QUIET: Duration = Duration::from_secs(10);

/// Returns a listener that prints a line per epoch, with loss and accuracy of both splits, and a line every ten seconds
/// within a longer epoch or pass. It prints nothing about a run in the background until a cell waits for it: what is
/// printed between cells is not shown.
pub fn print_progress() -> Listener {
    let state = Mutex::new((Instant::now(), HashSet::new()));
    Listener::new(move |event| {
        let (last, unawaited) = &mut *lock(&state);
        match event {
            Event::Queued { history, .. } => drop(unawaited.insert(history.name.clone())),
            Event::Awaited { name } => drop(unawaited.remove(name)),
            Event::Progress(_) if last.elapsed() < QUIET => return,
            _ => {}
        }
        if unawaited.contains(event.name()) {
            return;
        }
        if let Some(line) = line(event) {
            *last = Instant::now();
            println!("{line}");
        }
    })
}

/// A line about the event; `None` for an event without one.
pub(super) fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Started { history: History { name, records, .. }, .. } => match records.len() {
            0 => return None,
            epoch => format!("{name}: going on after epoch {epoch}, where an earlier run ended"),
        },
        Event::SetAside { name, folder } => {
            format!(
                "{name}: an earlier run of other settings, code or first weights is kept as {}; to go on with it, run \
                 the cell that makes its model again",
                folder.file_name()?.display()
            )
        }
        Event::Progress(p) => {
            let loss = p.metrics.map_or(String::new(), |m| format!("  loss {:.4}", m.loss));
            let epoch = if p.epochs > 1 { format!(" {:>2}/{}", p.epoch, p.epochs) } else { String::new() };
            format!(
                "{}{epoch}  {} of {} images{loss}  {:.0} img/s, {} left",
                p.name,
                p.done,
                p.total,
                p.images_per_second,
                duration(p.seconds_left)
            )
        }
        Event::Epoch { name, record: r, epochs } => {
            let kd = match (r.hyperparameters.temperature, r.hyperparameters.alpha, r.validation.divergence) {
                (Some(t), Some(a), Some(d)) => format!("  KL {d:.3} (T {}, alpha {})", short(t), short(a)),
                _ => String::new(),
            };
            format!(
                "{name} {:>2}/{epochs}  train {:.3}, {} %  validation {:.3}, {} %{kd}  {:.0} img/s, {} left",
                r.epoch,
                r.train.loss,
                percent(r.train.accuracy, 1),
                r.validation.loss,
                percent(r.validation.accuracy, 1),
                r.images_per_second,
                duration(r.seconds * (epochs - r.epoch.min(*epochs)) as f64)
            )
        }
        Event::Finished(history) => {
            let best = history.best()?;
            let stopped = match (&history.stopped, history.out_of_patience()) {
                (Some(why), _) => format!(", stopped: {why}"),
                (None, Some(patience)) => {
                    let (done, all) = (history.records.len(), history.epochs);
                    format!(", ended after epoch {done} of {all}: {patience} without a better one")
                }
                (None, None) => String::new(),
            };
            format!(
                "{}: kept the weights of epoch {}, validation accuracy {} %{stopped}; {} in all",
                history.name,
                best.epoch,
                percent(best.validation.accuracy, 1),
                duration(history.seconds())
            )
        }
        Event::Queued { .. } | Event::Awaited { .. } | Event::Changed { .. } | Event::Failed { .. } => return None,
    })
}
