//! A fit as it runs: its curve, a bar of progress, and sliders that act on it.

use super::curves::running_curve;
use super::display::bundle;
use super::knobs::OpenKnobs;
use super::progress::{duration, line, print_progress};
use super::table::escape;
use crate::error::lock;
use crate::train::{Control, Event, History, Hyperparameters, Listener, Observer, Progress};
use kdlab_client::{Bundle, Display};
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Between two updates of the bar, and of the figure within an epoch.
const BAR: Duration = Duration::from_millis(250);
const FIGURE: Duration = Duration::from_secs(2);
/// A slider that is dragged makes a change with every batch.
const SOON: Duration = Duration::from_millis(300);
/// For the last figure of a fit; a kernel that takes longer does not hold up the cell.
const PATIENCE: Duration = Duration::from_secs(20);

/// A listener that shows a fit while it runs, where the cell runs in the live kernel: curve and progress, and sliders
/// for temperature, alpha and learning rate with a Pause and a Stop button, bound to `control`, which must be the
/// fit's. When it ends, the curve, a line about the kept weights and one about the values stay.
///
/// Anywhere else it is [`print_progress`]. It is meant for one fit at a time.
pub fn live_progress(control: &Control) -> Listener {
    let (control, print) = (control.clone(), print_progress());
    let view: Mutex<Option<View>> = Mutex::new(None);
    Listener::new(move |event| {
        let mut view = lock(&view);
        if let Event::Queued { history, hyperparameters: settings }
        | Event::Started { history, hyperparameters: settings } = event
            && view.is_none()
        {
            *view = View::open(&control, history, *settings, matches!(event, Event::Started { .. }));
            if view.is_some() {
                return;
            }
        }
        match &*view {
            Some(open) => open.tell(Note::Event(Box::new(event.clone()))),
            None => print.notify(event),
        }
        if matches!(event, Event::Finished(_) | Event::Failed { .. })
            && let Some(done) = view.take()
        {
            done.close();
        }
    })
}

enum Note {
    Event(Box<Event>),
    /// Something in the control.
    Changed,
    End,
}

/// The fit's side of the view. Everything is drawn and sent on a thread of its own, so that training never waits for
/// it.
struct View {
    notes: Sender<Note>,
    done: Receiver<()>,
    _observer: Observer,
}

impl View {
    /// None without a live kernel.
    fn open(control: &Control, history: &History, settings: Hyperparameters, started: bool) -> Option<Self> {
        let knobs = OpenKnobs::connect(control, settings)?;
        let (bar, figure) = (Display::on(knobs.panel.link()), Display::on(knobs.panel.link()));
        let mut drawer = Drawer {
            knobs,
            control: control.clone(),
            bar,
            figure,
            history: history.clone(),
            progress: None,
            started,
            mirrored: Cell::new(false),
            aside: None,
            error: None,
        };
        drawer.show_bar()?;
        drawer.knobs.show()?;
        drawer.show_figure()?;
        let (notes, heard) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let changed = notes.clone();
        let observer = control.on_change(move || drop(changed.send(Note::Changed)));
        std::thread::Builder::new()
            .name("kdlab-view".into())
            .spawn(move || {
                drawer.run(&heard);
                let _ = finished.send(());
            })
            .ok()?;
        Some(Self { notes, done, _observer: observer })
    }

    fn tell(&self, note: Note) {
        let _ = self.notes.send(note);
    }

    /// Waits until the last state is shown.
    fn close(self) {
        self.tell(Note::End);
        let _ = self.done.recv_timeout(PATIENCE);
    }
}

struct Drawer {
    knobs: OpenKnobs,
    control: Control,
    bar: Display,
    figure: Display,
    history: History,
    /// Of the epoch that is running.
    progress: Option<Progress>,
    started: bool,
    /// A page that was opened later has the figure.
    mirrored: Cell<bool>,
    /// Where an earlier run was put.
    aside: Option<String>,
    error: Option<String>,
}

impl Drawer {
    fn run(&mut self, notes: &Receiver<Note>) {
        let (mut bar, mut figure) = (Due::new(BAR), Due::new(FIGURE));
        loop {
            let wait = [&bar, &figure].iter().filter_map(|due| due.left()).min();
            let first = match wait {
                Some(left) => notes.recv_timeout(left),
                None => notes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match first {
                Ok(first) => {
                    // All that came meanwhile is shown at once.
                    for note in std::iter::once(first).chain(notes.try_iter()) {
                        match note {
                            Note::Event(event) => {
                                bar.wanted = true;
                                figure.wanted = true;
                                figure.urgent |= self.hear(*event);
                            }
                            Note::Changed => bar.wanted = true,
                            Note::End => return self.end(),
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The fit is gone without a word: it panicked.
                Err(RecvTimeoutError::Disconnected) => {
                    self.error = Some("it ended with a panic".into());
                    return self.end();
                }
            }
            // A kernel that is gone is noticed at the end; until then the fit goes on unseen.
            if bar.take() {
                self.show_bar();
            }
            if figure.take() {
                self.show_figure();
            }
        }
    }

    /// Takes an event in; true when the figure should show it at once.
    fn hear(&mut self, event: Event) -> bool {
        match event {
            Event::Started { history, hyperparameters: settings } => {
                self.history = history;
                self.started = true;
                self.knobs.begin(settings);
                return true;
            }
            Event::SetAside { .. } => self.aside = line(&event),
            // The first point of the curve says that it has begun.
            Event::Progress(progress) => return self.progress.replace(progress).is_none(),
            Event::Changed { change, .. } => {
                self.history.changes.push(change);
                return true;
            }
            Event::Epoch { record, .. } => {
                self.history.records.push(record);
                return true;
            }
            Event::Finished(history) => self.history = history,
            Event::Failed { error, .. } => self.error = Some(error),
            Event::Queued { .. } | Event::Awaited { .. } => {}
        }
        false
    }

    fn end(&mut self) {
        let mut text = self.closing_line();
        if let Some(aside) = &self.aside {
            text = format!("{aside}\n{text}");
        }
        self.show_figure();
        let html = format!("<pre style=\"margin:0\">{}</pre>", escape(&text));
        let _ = self.bar.show(&Bundle::text(text).with("text/html", html.clone()));
        let now = self.knobs.now();
        let changes: Vec<_> = self.history.changes.iter().map(|c| format!("{c} at epoch {:.2}", c.epoch)).collect();
        let text = match changes.len() {
            0 => format!("{now}, unchanged"),
            1..=4 => format!("{now} at the end; {}", changes.join("; ")),
            n => format!("{now} at the end; {n} changes: {}; ... {}", changes[..2].join("; "), changes[n - 1]),
        };
        self.knobs.mirror(0, &format!("{html}<pre style=\"margin:0\">{}</pre>", escape(&text)));
        self.knobs.replace(&text);
    }

    fn closing_line(&self) -> String {
        let name = &self.history.name;
        if let Some(error) = &self.error {
            return format!("{name} failed: {error}");
        }
        line(&Event::Finished(self.history.clone())).unwrap_or_else(|| {
            let why = self.history.stopped.as_deref().unwrap_or("no epoch");
            format!("{name}: stopped before its first epoch was done ({why}); the weights are those it began with")
        })
    }

    /// Of the epoch that is running, where it stands on the epoch axis.
    fn running(&self) -> Option<&Progress> {
        self.progress.as_ref().filter(|p| p.epoch > self.history.records.len())
    }

    fn show_figure(&self) -> Option<()> {
        let at = |p: &Progress| ((p.epoch - 1) as f64 + p.done as f64 / p.total.max(1) as f64, p.metrics);
        let running = self.running().map(at).and_then(|(epoch, metrics)| Some((epoch, metrics?)));
        let bundle = bundle(&running_curve(&self.history, running)).ok()?;
        if self.knobs.panel.is_on_later_page() {
            self.mirrored.set(true);
            let png = bundle.data["image/png"].as_str().unwrap_or_default();
            let image = &bundle.metadata["image/png"];
            let (width, alt) = (&image["width"], escape(image["alt"].as_str().unwrap_or_default()));
            self.knobs.mirror(
                1,
                &format!(
                    "<img src=\"data:image/png;base64,{png}\" width=\"{width}\" alt=\"{alt}\" style=\"max-width:100%\">"
                ),
            );
        }
        self.figure.show(&bundle).ok()
    }

    fn show_bar(&self) -> Option<()> {
        let History { name, epochs, records, .. } = &self.history;
        let (done, total) = match self.running() {
            Some(p) => ((p.epoch - 1) * p.total + p.done, p.epochs * p.total),
            None => (records.len(), *epochs),
        };
        let numbers = match (self.running(), &self.progress) {
            (Some(p), _) | (None, Some(p)) => {
                let metrics = p
                    .metrics
                    .map_or(String::new(), |m| format!("  loss {:.3}, accuracy {:.1} %", m.loss, 100.0 * m.accuracy));
                let (speed, left) = (p.images_per_second, duration(p.seconds_left));
                format!(
                    "epoch {}/{epochs}  {} of {} images{metrics}  {speed:.0} img/s, {left} left",
                    p.epoch, p.done, p.total
                )
            }
            _ if self.started => format!("epoch {}/{epochs}", (records.len() + 1).min(*epochs)),
            _ => format!("{epochs} epochs, waiting for the runs before it"),
        };
        let text = if self.control.stopping().is_some() {
            // What matters now stands first, where nothing is cut off.
            format!("stopping: variables stay (a second Interrupt within 3 s would lose them)  {numbers}")
        } else if self.control.is_paused() {
            format!("{numbers}  paused")
        } else {
            numbers
        };
        let html = format!(
            "<progress value=\"{done}\" max=\"{total}\" style=\"display:block;width:min(100%,880px)\"></progress>\
             <div style=\"font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px);\
             white-space:nowrap;overflow:hidden;text-overflow:ellipsis\">{}</div>",
            escape(&text).replace("  ", " &nbsp;")
        );
        if self.knobs.panel.is_on_later_page() {
            self.knobs.mirror(0, &format!("<p>This page was opened while the fit ran; it goes on here:</p>{html}"));
            if !self.mirrored.get() {
                self.show_figure();
            }
        }
        self.bar.show(&Bundle::text(format!("{name}  {text}")).with("text/html", html)).ok()
    }
}

/// Something to be shown not too often.
struct Due {
    every: Duration,
    last: Instant,
    wanted: bool,
    /// Sooner than that: an epoch is done, or a slider moved.
    urgent: bool,
}

impl Due {
    fn new(every: Duration) -> Self {
        Self { every, last: Instant::now(), wanted: false, urgent: false }
    }

    /// Until its turn; none if nothing is wanted.
    fn left(&self) -> Option<Duration> {
        let every = if self.urgent { SOON } else { self.every };
        self.wanted.then(|| every.saturating_sub(self.last.elapsed()))
    }

    fn take(&mut self) -> bool {
        let now = self.left() == Some(Duration::ZERO);
        if now {
            *self = Self::new(self.every);
        }
        now
    }
}
