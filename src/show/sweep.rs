//! A sweep as it runs, and what it came to: tables and the map of temperature and alpha.

use super::display::bundle;
use super::heatmap::parameter_map;
use super::progress::duration;
use super::table::escape;
use super::{Figure, Table, short};
use crate::Result;
use crate::error::lock;
use crate::study::{Measure, SweepListener, SweepProgress, SweepReport};
use kdlab_client::{Bundle, Display, Link};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two updates of the line that says what runs.
const OFTEN: Duration = Duration::from_millis(500);
/// A printed line about a run that goes on comes at most this often: a notebook keeps every line.
const QUIET: Duration = Duration::from_secs(30);

impl Measure {
    fn title(self) -> &'static str {
        match self {
            Measure::Validation => "validation acc",
            Measure::Test => "test acc",
            Measure::OmittedRecall => "omitted class recognised",
            Measure::CorrectedRecall => "omitted class recognised, bias corrected",
            Measure::CorrectedTest => "test acc, bias corrected",
        }
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn percent(values: &[f64]) -> String {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    format!("{:.1}", 100.0 * mean)
}

impl SweepReport {
    /// A row for each setting: mean of the student alone and of the distilled one in percent, their paired difference
    /// in points with its interval, and the verdict.
    ///
    /// # Errors
    /// When the measure speaks of an omitted class and there is none.
    pub fn table(&self, measure: Measure) -> Result<Table> {
        let what = measure.title();
        let (alone, distilled) = (format!("alone: {what} %"), "distilled %");
        let header = ["setting", "seeds", &alone, distilled, "difference ± std", "interval", "confidence %", "verdict"];
        Ok(self.compare(measure)?.iter().fold(Table::new(&header), |table, c| {
            let v = &c.verdict;
            table.row(&[
                c.setting.to_string(),
                c.alone.len().to_string(),
                percent(&c.alone),
                percent(&c.distilled),
                format!("{:+.1} ± {:.1}", 100.0 * v.mean, 100.0 * v.deviation),
                v.interval(),
                format!("{:.1}", 100.0 * v.confidence),
                v.decision.to_string(),
            ])
        }))
    }

    /// The mean gain over the student alone in points, temperature (rows) by alpha (columns), for the first value of
    /// every other axis.
    pub fn map(&self, measure: Measure) -> Result<Figure> {
        let names = |values: &[f64]| values.iter().map(|&v| short(v)).collect::<Vec<_>>();
        let title = format!("{}: gain over the student alone, {}", self.sweep.name, measure.title());
        let (temperatures, alphas) = (names(&self.sweep.temperatures), names(&self.sweep.alphas));
        parameter_map(&title, ("T", &temperatures), ("alpha", &alphas), &self.grid(measure), "points")
    }

    /// A row for each run, in the order they were made.
    pub fn runs_table(&self) -> Table {
        let header =
            ["setting", "seed", "validation acc %", "test acc %", "teacher %", "best epoch", "seconds", "img/s"];
        self.runs.iter().fold(Table::new(&header), |table, run| {
            table.row(&[
                run.setting.to_string(),
                run.seed.to_string(),
                percent(&[run.validation]),
                percent(&[run.test]),
                run.teacher.map_or(String::new(), |t| percent(&[t])),
                run.best_epoch.to_string(),
                format!("{:.1}", run.seconds),
                format!("{:.0}", run.images_per_second),
            ])
        })
    }

    /// What it was about, in a line.
    pub fn headline(&self) -> String {
        let Self { sweep, images, data, runs, .. } = self;
        let stopped = self.stopped.as_ref().map_or(String::new(), |why| format!("; stopped: {why}"));
        format!(
            "{}: {data}, {images} images at {} px, {}, {} in {}{stopped}",
            sweep.name,
            sweep.size,
            counted(sweep.epochs, "epoch"),
            counted(runs.len(), "run"),
            duration(self.seconds())
        )
    }
}

/// A listener that shows a sweep while it runs: on the live kernel a line of progress, the table of verdicts, and the
/// runs so far, each updated in place, and where several temperatures or alphas are swept their map; elsewhere a line
/// for each run.
pub fn live_sweep() -> SweepListener {
    let view: Mutex<Option<View>> = Mutex::new(None);
    let begun = Mutex::new(false);
    Arc::new(move |report, now| {
        let mut view = lock(&view);
        if !std::mem::replace(&mut *lock(&begun), true) {
            *view = Some(View::open());
        }
        if let Some(view) = &mut *view {
            view.show(report, now);
        }
    })
}

struct View {
    live: bool,
    progress: Display,
    verdicts: Display,
    runs_so_far: Display,
    map: Display,
    shown: bool,
    /// Runs in the tables, or printed.
    runs: usize,
    last: Instant,
}

impl View {
    fn open() -> Self {
        let link = Link::connect(|_| ());
        let [progress, verdicts, runs_so_far, map] = std::array::from_fn(|_| Display::on(link.as_ref()));
        let last = Instant::now().checked_sub(QUIET).unwrap_or_else(Instant::now);
        Self { live: link.is_some(), progress, verdicts, runs_so_far, map, shown: false, runs: 0, last }
    }

    fn show(&mut self, report: &SweepReport, now: &SweepProgress) {
        let (new, over) = (report.runs.len() > self.runs, now.run.is_none());
        let pause = if self.live { OFTEN } else { QUIET };
        if !new && !over && self.last.elapsed() < pause {
            return;
        }
        self.last = Instant::now();
        let line = line(report, now);
        if !self.live {
            for run in &report.runs[self.runs..] {
                let (setting, seconds) = (&run.setting, duration(run.seconds));
                println!("{setting}, seed {}: test {} %, {seconds}", run.seed, percent(&[run.test]));
            }
            // On the stock kernel the cell's own output is all there is.
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
        let share = match &now.progress {
            Some(p) => (p.epoch as f64 - 1.0 + p.done as f64 / p.total.max(1) as f64) / p.epochs as f64,
            None => 0.0,
        };
        let done = if over { now.number as f64 } else { now.number as f64 - 1.0 + share };
        let html = format!(
            "<progress value=\"{done}\" max=\"{}\" style=\"display:block;width:min(100%,880px)\"></progress>\
             <div style=\"font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)\">{}</div>",
            now.total.max(1),
            escape(&line)
        );
        let _ = self.progress.show(&Bundle::text(line).with("text/html", html));
        if new || over || !self.shown {
            let verdicts = report.table(Measure::Test).unwrap_or_default();
            if let Some(figure) = live_map(report)
                && let Ok(map) = bundle(&figure)
            {
                let _ = self.map.show(&map);
            }
            for (display, table) in [(&self.verdicts, verdicts), (&self.runs_so_far, report.runs_table())] {
                let _ = display.show(&Bundle::text(table.to_string()).with("text/html", table.html()));
            }
        }
        (self.shown, self.runs) = (true, report.runs.len());
    }
}

/// The map on the validation split, where there is more than one place on it.
fn live_map(report: &SweepReport) -> Option<Figure> {
    let several = report.sweep.temperatures.len() + report.sweep.alphas.len() > 2;
    several.then(|| report.map(Measure::Validation).ok()).flatten()
}

fn line(report: &SweepReport, now: &SweepProgress) -> String {
    let left = now.seconds_left.map_or(String::new(), |s| format!(", {} left", duration(s)));
    let Some(run) = &now.run else { return report.headline() };
    let progress = now.progress.as_ref().map_or(String::new(), |p| {
        let what = if p.name == *run { String::new() } else { format!("{}, ", p.name) };
        let epoch = if p.epochs > 1 { format!("epoch {}/{}, ", p.epoch, p.epochs) } else { String::new() };
        format!(": {what}{epoch}{} of {} images, {:.0} img/s", p.done, p.total, p.images_per_second)
    });
    format!("{} run {}/{} {run}{progress}{left}", report.sweep.name, now.number, now.total)
}
