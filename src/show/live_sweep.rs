//! The live view of a sweep: a line of progress, tables, and the map of temperature and alpha.

use super::canvas::Figure;
use super::output::progress_html;
use super::words::{duration, percent};
use crate::error::lock;
use crate::study::{Measure, SweepListener, SweepProgress, SweepReport};
use crate::train::Progress;
use kdlab_client::{Bundle, Display, Link};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Shortest time between two updates of the line that says what runs.
const OFTEN: Duration = Duration::from_millis(500);
/// Shortest time between two printed lines about a running fit: a notebook keeps every line.
const QUIET: Duration = Duration::from_secs(30);

/// A listener that shows a sweep while it runs. On the live kernel it shows a line of progress, the table of
/// verdicts, the runs so far and, where several temperatures or alphas are swept, their map, each updated in place;
/// elsewhere it prints a line for each run.
pub(crate) fn live_sweep() -> SweepListener {
    let view: Mutex<Option<SweepView>> = Mutex::new(None);
    Arc::new(move |report, now| lock(&view).get_or_insert_with(SweepView::open).show(report, now))
}

/// The displays of a sweep, and what they show.
struct SweepView {
    live: bool,
    progress: Display,
    verdicts: Display,
    runs_so_far: Display,
    map: Display,
    shown: bool,
    /// Number of runs that are in the tables or printed.
    runs: usize,
    last: Instant,
}

impl SweepView {
    fn open() -> Self {
        let link = Link::connect(|_| ());
        let [progress, verdicts, runs_so_far, map] = std::array::from_fn(|_| Display::on(link.as_ref()));
        let last = Instant::now().checked_sub(QUIET).unwrap_or_else(Instant::now);
        Self { live: link.is_some(), progress, verdicts, runs_so_far, map, shown: false, runs: 0, last }
    }

    fn show(&mut self, report: &SweepReport, now: &SweepProgress) {
        let (new, over) = (report.runs.len() > self.runs, now.running.is_empty());
        let pause = if self.live { OFTEN } else { QUIET };
        if !new && !over && self.last.elapsed() < pause {
            return;
        }
        self.last = Instant::now();
        let line = line(report, now);
        if !self.live {
            for run in &report.runs[self.runs..] {
                let (setting, seconds) = (&run.setting, duration(run.seconds));
                println!("{setting}, seed {}: test {} %, {seconds}", run.seed, percent(run.test, 1));
            }
            // The stock kernel shows only what the cell itself emits.
            if over && std::env::var_os("EVCXR_IS_RUNTIME").is_some() {
                report.evcxr_display();
                if let Some(map) = live_map(report) {
                    map.evcxr_display();
                }
            } else {
                println!("{line}");
            }
            self.runs = report.runs.len();
            return;
        }
        let share = |p: &Progress| (p.epoch as f64 - 1.0 + p.done as f64 / p.total.max(1) as f64) / p.epochs as f64;
        let shares: f64 = now.running.iter().filter_map(|(_, progress)| progress.as_ref()).map(share).sum();
        let done = report.runs.len() as f64 + shares;
        let html = progress_html(done, now.total.max(1), &line, "");
        let _ = self.progress.show(Bundle::text(line).with("text/html", html));
        if new || over || !self.shown {
            let verdicts = report.table(Measure::Test).unwrap_or_default();
            if let Some(map) = live_map(report).and_then(|map| map.bundle().ok()) {
                let _ = self.map.show(&map);
            }
            let _ = self.verdicts.show(verdicts.bundle());
            let _ = self.runs_so_far.show(report.runs_table().bundle());
        }
        (self.shown, self.runs) = (true, report.runs.len());
    }
}

/// The map on the validation split; `None` if it would have a single cell.
fn live_map(report: &SweepReport) -> Option<Figure> {
    let several = report.sweep.temperatures.len() + report.sweep.alphas.len() > 2;
    several.then(|| report.map(Measure::Validation).ok()).flatten()
}

fn line(report: &SweepReport, now: &SweepProgress) -> String {
    if now.running.is_empty() {
        return report.headline();
    }
    let running = now.running.iter().map(|(run, progress)| match progress {
        None => run.clone(),
        Some(p) if p.name == *run => format!("{run} epoch {}/{}", p.epoch, p.epochs),
        Some(p) => format!("{run}: {}, {} of {} images", p.name, p.done, p.total),
    });
    let running = running.collect::<Vec<_>>().join(", ");
    let speed: f64 = now.running.iter().filter_map(|(_, p)| Some(p.as_ref()?.images_per_second)).sum();
    let left = now.seconds_left.map_or(String::new(), |s| format!(", {} left", duration(s)));
    format!(
        "{}, {} of {} runs done; {running}; {speed:.0} img/s{left}",
        report.sweep.name,
        report.runs.len(),
        now.total
    )
}
