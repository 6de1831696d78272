//! The live view of a fit: its curve, a progress bar, and sliders that change it.

use super::curves::{Curve, running_curves};
use super::knobs::Knobs;
use super::output::{lines_html, picture_html, progress_html};
use super::progress::{line, print_progress};
use super::shared_chart::{Drawing, Place, SharedChart};
use super::words::{counted, duration, percent, threads};
use crate::error::lock;
use crate::train::{Control, Event, History, Hyperparameters, Listener, Metrics, Observer, Progress};
use kdlab_client::{Bundle, Display};
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Pause between two updates of the bar, and of the figure within an epoch.
const BAR: Duration = Duration::from_millis(250);
const FIGURE: Duration = Duration::from_secs(2);
/// Shortest time between two figures while values change: a dragged slider changes them at every batch.
const SOON: Duration = Duration::from_millis(300);
/// Time limit for the last figure of a fit: a kernel that takes longer does not hold up the cell.
const PATIENCE: Duration = Duration::from_secs(20);

/// A listener that shows a fit while it runs, in a cell of the live kernel: its curve, its progress, sliders for
/// temperature, alpha and learning rate, and the buttons Pause and Stop. They act on `control`, which must be the
/// fit's. After the fit there remain the curve, a line about the kept weights and one about the values. Fits in the
/// background that are shown at the same time are drawn in one chart, `shared`.
///
/// Anywhere else it is [`print_progress`]. One listener shows one fit at a time.
pub(crate) fn live_progress(control: &Control, shared: &SharedChart) -> Listener {
    let (control, shared, print) = (control.clone(), shared.clone(), print_progress());
    let view: Mutex<Option<FitView>> = Mutex::new(None);
    Listener::new(move |event| {
        let mut view = lock(&view);
        if let Event::Queued { history, hyperparameters } | Event::Started { history, hyperparameters } = event
            && view.is_none()
        {
            let shared = matches!(event, Event::Queued { .. }).then_some(&shared);
            *view = FitView::open(&control, history, *hyperparameters, shared);
            if view.is_some() {
                return;
            }
        }
        match &*view {
            Some(open) => open.send(Message::Event(Box::new(event.clone()))),
            None => print.notify(event),
        }
        if matches!(event, Event::Finished(_) | Event::Failed { .. })
            && let Some(done) = view.take()
        {
            done.close();
        }
    })
}

/// Message to the thread that draws.
enum Message {
    Event(Box<Event>),
    /// The control changed.
    Changed,
    /// Another run of the shared chart went on; whether the figure should show it at once.
    Redraw(bool),
    End,
}

/// The fit's side of the view. Another thread draws and sends everything, so training never waits for it.
struct FitView {
    messages: Sender<Message>,
    done: Receiver<()>,
    _observer: Observer,
}

impl FitView {
    /// Opens the view of a fit that begins now, or of one in the background, which is drawn in the shared chart.
    /// Returns `None` without a live kernel.
    fn open(
        control: &Control,
        history: &History,
        begun: Hyperparameters,
        shared: Option<&SharedChart>,
    ) -> Option<Self> {
        let knobs = Knobs::connect(control, begun)?;
        let (bar, figure) = (Display::on(knobs.panel.link()), Display::on(knobs.panel.link()));
        let (messages, received) = mpsc::channel();
        let mut drawer = Drawer {
            knobs,
            bar,
            figure,
            place: None,
            history: history.clone(),
            progress: None,
            started: shared.is_none(),
            mirrored: Cell::new(false),
            aside: None,
            error: None,
        };
        drawer.show_bar()?;
        drawer.knobs.show()?;
        drawer.place = shared.map(|chart| {
            let redraw: Sender<Message> = messages.clone();
            chart.join(drawer.curve(), move |at_once| drop(redraw.send(Message::Redraw(at_once))))
        });
        drawer.show_figure()?;
        let (finished, done) = mpsc::channel();
        let changed = messages.clone();
        let observer = control.on_change(move || drop(changed.send(Message::Changed)));
        std::thread::Builder::new()
            .name("kdlab-view".into())
            .spawn(move || {
                drawer.run(&received);
                let _ = finished.send(());
            })
            .ok()?;
        Some(Self { messages, done, _observer: observer })
    }

    fn send(&self, message: Message) {
        let _ = self.messages.send(message);
    }

    /// Waits until the last state is shown.
    fn close(self) {
        self.send(Message::End);
        let _ = self.done.recv_timeout(PATIENCE);
    }
}

/// The drawing thread's side of the view.
struct Drawer {
    knobs: Knobs,
    bar: Display,
    figure: Display,
    /// Its place in the chart of the background runs.
    place: Option<Place>,
    history: History,
    /// Progress within the epoch that is running.
    progress: Option<Progress>,
    started: bool,
    /// Whether the figure was also sent to a page that was opened after the fit began.
    mirrored: Cell<bool>,
    /// Message that the folder of an earlier run was renamed.
    aside: Option<String>,
    error: Option<String>,
}

impl Drawer {
    fn run(&mut self, messages: &Receiver<Message>) {
        let begun = Instant::now();
        let (mut bar, mut figure) = (Due { last: begun, at: None }, Due { last: begun, at: None });
        loop {
            let first = match [bar.at, figure.at].into_iter().flatten().min() {
                Some(at) => messages.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if let Err(RecvTimeoutError::Disconnected) = first {
                // The fit dropped its side of the channel without an end: it panicked.
                self.error = Some("it ended with a panic".into());
                return self.end();
            }
            // All messages that arrived meanwhile are shown together.
            for message in first.into_iter().chain(messages.try_iter()) {
                match message {
                    Message::Event(event) => {
                        let at_once = self.apply(*event);
                        figure.want(pace(at_once));
                        if let Some(place) = &self.place {
                            place.update(self.curve(), at_once);
                        }
                    }
                    Message::Redraw(at_once) => figure.want(pace(at_once)),
                    Message::Changed => {}
                    Message::End => return self.end(),
                }
                bar.want(BAR);
            }
            // Errors are ignored: if the kernel is gone, the fit goes on without a view.
            if bar.take() {
                self.show_bar();
            }
            if figure.take() {
                self.show_figure();
            }
        }
    }

    /// Updates the state by an event. Returns whether the figure should show it at once.
    fn apply(&mut self, event: Event) -> bool {
        let at_once = matches!(event, Event::Started { .. } | Event::Changed { .. } | Event::Epoch { .. });
        match event {
            Event::Started { history, hyperparameters } => {
                (self.history, self.started) = (history, true);
                self.knobs.begin(hyperparameters);
            }
            // The first progress is shown at once, because it says that the fit has begun.
            Event::Progress(progress) => return self.progress.replace(progress).is_none(),
            Event::Changed { change, .. } => self.history.changes.push(change),
            Event::Epoch { record, .. } => self.history.records.push(record),
            // For these the last figure of the fit is enough.
            Event::SetAside { .. } => self.aside = line(&event),
            Event::Finished(history) => self.history = history,
            Event::Failed { error, .. } => self.error = Some(error),
            Event::Queued { .. } | Event::Awaited { .. } => {}
        }
        at_once
    }

    fn end(&mut self) {
        let mut text = self.closing_line();
        if let Some(aside) = &self.aside {
            text = format!("{aside}\n{text}");
        }
        match self.place.take() {
            Some(place) => self.draw(place.leave()),
            None => self.show_figure(),
        };
        let html = lines_html(&text);
        let _ = self.bar.show(Bundle::text(text).with("text/html", html.clone()));
        let now = self.knobs.now();
        let changes: Vec<_> = self.history.changes.iter().map(|c| format!("{c} at epoch {:.2}", c.epoch)).collect();
        let text = match changes.len() {
            0 => format!("{now}, unchanged"),
            1..=4 => format!("{now} at the end; {}", changes.join("; ")),
            n => format!("{now} at the end; {n} changes: {}; ... {}", changes[..2].join("; "), changes[n - 1]),
        };
        let text = match &self.history.threads[..] {
            [] | [_] => text,
            changed => format!("{text}\n{}, as others on this machine left", threads(changed)),
        };
        self.knobs.mirror(0, &format!("{html}{}", lines_html(&text)));
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

    /// Progress within an epoch that has no record yet.
    fn running(&self) -> Option<&Progress> {
        self.progress.as_ref().filter(|p| p.epoch > self.history.records.len())
    }

    fn curve(&self) -> Curve {
        let at = |p: &Progress| ((p.epoch - 1) as f64 + p.done as f64 / p.total.max(1) as f64, p.metrics);
        let running = self.running().map(at).and_then(|(epoch, metrics)| Some((epoch, metrics?)));
        Curve { history: self.history.clone(), running, learning_rate: self.knobs.now().learning_rate }
    }

    fn show_figure(&self) -> Option<()> {
        self.draw(match &self.place {
            Some(place) => place.drawing(),
            None => Drawing::Curves(vec![self.curve()]),
        })
    }

    fn draw(&self, drawing: Drawing) -> Option<()> {
        let (bundle, html) = match drawing {
            Drawing::Curves(curves) => {
                let bundle = running_curves(curves).bundle().ok()?;
                let html = picture_html(&bundle);
                (bundle, html)
            }
            Drawing::Elsewhere(name) => {
                let text = format!("The chart of {name} also shows the curve of {}.", self.history.name);
                let html = lines_html(&text);
                (Bundle::text(text).with("text/html", html.clone()), html)
            }
        };
        if self.knobs.panel.is_on_later_page() {
            self.mirrored.set(true);
            self.knobs.mirror(1, &html);
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
                let Progress { epoch, done, total, images_per_second: speed, .. } = p;
                let accuracy = |m: Metrics| format!("  loss {:.3}, accuracy {} %", m.loss, percent(m.accuracy, 1));
                let (metrics, left) = (p.metrics.map_or(String::new(), accuracy), duration(p.seconds_left));
                let on = p.threads.map_or(String::new(), |n| format!("  {}", counted(n, "thread")));
                format!("epoch {epoch}/{epochs}  {done} of {total} images{metrics}  {speed:.0} img/s, {left} left{on}")
            }
            _ if self.started => format!("epoch {}/{epochs}", (records.len() + 1).min(*epochs)),
            _ => format!("{epochs} epochs, waiting for the runs before it"),
        };
        let control = self.knobs.control();
        let text = if control.stopping().is_some() {
            // This comes first, because a long line is cut off at its end.
            format!("stopping: variables stay (a second Interrupt within 3 s would lose them)  {numbers}")
        } else if control.is_paused() {
            format!("{numbers}  paused")
        } else {
            numbers
        };
        let style = ";white-space:nowrap;overflow:hidden;text-overflow:ellipsis";
        let html = progress_html(done, total, &text, style).replace("  ", " &nbsp;");
        if self.knobs.panel.is_on_later_page() {
            self.knobs.mirror(0, &format!("<p>This page was opened while the fit ran; it goes on here:</p>{html}"));
            if !self.mirrored.get() {
                self.show_figure();
            }
        }
        self.bar.show(Bundle::text(format!("{name}  {text}")).with("text/html", html)).ok()
    }
}

/// Pause before the next figure.
fn pace(at_once: bool) -> Duration {
    if at_once { SOON } else { FIGURE }
}

/// When something was shown last and is due to be shown again, so that it is not shown too often.
struct Due {
    last: Instant,
    at: Option<Instant>,
}

impl Due {
    /// Asks for it to be shown, but not before `pause` after the last time.
    fn want(&mut self, pause: Duration) {
        let at = self.last + pause;
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Returns whether it is due, and then counts it as shown.
    fn take(&mut self) -> bool {
        let due = self.at.is_some_and(|at| at <= Instant::now());
        if due {
            *self = Self { last: Instant::now(), at: None };
        }
        due
    }
}
