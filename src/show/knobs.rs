//! Sliders and buttons on a [`Control`]: what is set by hand and what is set by program stay in step.

use super::output::{emit_text, lines_html};
use crate::error::lock;
use crate::train::{Control, Hyperparameters, Observer};
use kdlab_client::{Bundle, Panel, Widget};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const TEMPERATURE: &str = "T";
const ALPHA: &str = "alpha";
const LEARNING_RATE: &str = "learning rate";
const PAUSE: &str = "Pause";
const STOP: &str = "Stop";
/// Places below the knobs, empty but on a page that was opened later.
const MIRRORS: [&str; 2] = ["progress", "figure"];

/// The values that the knobs show: the control's over those that the fit began with.
struct Bound {
    control: Control,
    begun: Mutex<Hyperparameters>,
}

impl Bound {
    fn now(&self) -> Hyperparameters {
        self.control.over(*lock(&self.begun))
    }

    /// The knobs for these values. Temperature and alpha are there where the fit has them.
    fn widget(&self) -> Widget {
        let now = self.now();
        let slider = |widget: Widget, step: f64, format: &str, tooltip: &str| {
            widget.with("step", step).with("readout_format", format).with("tooltip", tooltip)
        };
        let temperature = now
            .temperature
            .map(|t| slider(Widget::slider(TEMPERATURE, [t.min(0.5), t.max(20.0)], t), 0.1, ".1f", "temperature T"));
        let alpha = now
            .alpha
            .map(|a| slider(Widget::slider(ALPHA, [0.0, 1.0], a), 0.01, ".2f", "alpha, the weight of the teacher"));
        let power = now.learning_rate.log10();
        let powers = [power.floor().min(-5.0), power.ceil().max(-1.0)];
        let rate = Widget::log_slider(LEARNING_RATE, powers, now.learning_rate);
        let (word, icon) = pause_face(self.control.is_paused());
        let pause = Widget::toggle(PAUSE, self.control.is_paused()).with("description", word).with("icon", icon);
        let stop = Widget::button(STOP).with("icon", "stop").with("button_style", "danger").with("disabled", false);
        let rows = [temperature, alpha, Some(slider(rate, 0.05, ".1e", LEARNING_RATE))];
        let below = [Widget::row([pause, stop])].into_iter().chain(MIRRORS.map(|name| Widget::html(name, "")));
        Widget::column(rows.into_iter().flatten().chain(below))
    }

    /// Moves what has to move in the front end.
    fn sync(&self, panel: &Panel) {
        // Held to the end: two threads may have changed the control, and the last message must be the last value.
        let begun = lock(&self.begun);
        let (now, paused) = (self.control.over(*begun), self.control.is_paused());
        let (word, icon) = pause_face(paused);
        panel.set(TEMPERATURE, json!({"value": now.temperature}));
        panel.set(ALPHA, json!({"value": now.alpha}));
        panel.set(LEARNING_RATE, json!({"value": now.learning_rate}));
        panel.set(PAUSE, json!({"value": paused, "description": word, "icon": icon}));
        panel.set(STOP, json!({"disabled": self.control.stopping().is_some()}));
    }

    /// Does what the user did in the front end.
    fn hear(&self, name: &str, value: &Value) {
        let number = value.as_f64().unwrap_or_default();
        // No error: the sliders' ends keep to what is allowed.
        match name {
            TEMPERATURE => drop(self.control.set_temperature(number)),
            ALPHA => drop(self.control.set_alpha(number)),
            LEARNING_RATE => drop(self.control.set_learning_rate(number)),
            PAUSE if *value == true => self.control.pause(),
            PAUSE => self.control.resume(),
            STOP => self.control.stop("by the Stop button"),
            _ => {}
        }
    }
}

/// Word and icon of the Pause button: what a click will do.
fn pause_face(paused: bool) -> (&'static str, &'static str) {
    if paused { ("Resume", "play") } else { ("Pause", "pause") }
}

/// Open knobs, on a connection of their own; closed when they are dropped.
pub(super) struct OpenKnobs {
    pub panel: Panel,
    bound: Arc<Bound>,
    observer: Option<Observer>,
}

impl OpenKnobs {
    /// Connects to the kernel; what else the connection's owner shows comes before [`OpenKnobs::show`].
    pub fn connect(control: &Control, begun: Hyperparameters) -> Option<Self> {
        let bound = Arc::new(Bound { control: control.clone(), begun: Mutex::new(begun) });
        let hears = Arc::clone(&bound);
        let panel = Panel::open(bound.widget(), move |_, name, value| hears.hear(name, value));
        panel.link()?;
        let (moves, to) = (Arc::clone(&bound), panel.clone());
        let observer = control.on_change(move || moves.sync(&to));
        bound.sync(&panel);
        Some(Self { panel, bound, observer: Some(observer) })
    }

    /// The values in force.
    pub fn now(&self) -> Hyperparameters {
        self.bound.now()
    }

    /// The values that the fit began with, where nothing is set by hand.
    pub fn begin(&self, begun: Hyperparameters) {
        *lock(&self.bound.begun) = begun;
        self.bound.sync(&self.panel);
    }

    /// Shows below the knobs what a page that was opened later cannot show otherwise.
    pub fn mirror(&self, place: usize, html: &str) {
        if self.panel.is_on_later_page() {
            self.panel.set(MIRRORS[place], json!({ "value": html }));
        }
    }

    pub fn show(&self) -> Option<()> {
        self.panel.show(&format!("{} (this front end shows no sliders)", self.now())).ok()
    }

    /// Leaves a line of text in its place.
    pub fn replace(&mut self, text: &str) {
        self.observer = None;
        self.panel.close(&Bundle::text(text).with("text/html", lines_html(text)), &MIRRORS);
    }
}

/// Sliders and buttons for a [`Control`], as the value of a cell. They work as long as the value lives.
pub struct Knobs {
    control: Control,
    begun: Hyperparameters,
    open: Mutex<Option<InCell>>,
}

/// Knobs that leave the values in force when they are dropped.
struct InCell(OpenKnobs);

impl Drop for InCell {
    fn drop(&mut self) {
        let now = self.0.now().to_string();
        self.0.replace(&now);
    }
}

/// Makes sliders for temperature, alpha and learning rate, a Pause and a Stop button, for a fit that began with
/// `begun`: for a run in the background `knobs(&run.control(), run.hyperparameters())`. Without the live kernel they
/// show the values in force.
pub fn knobs(control: &Control, begun: Hyperparameters) -> Knobs {
    Knobs { control: control.clone(), begun, open: Mutex::new(None) }
}

impl Knobs {
    /// Shows the knobs below the cell. Those that were shown before close: the last ones are in the user's view.
    pub fn evcxr_display(&self) {
        let shown = OpenKnobs::connect(&self.control, self.begun).filter(|knobs| knobs.show().is_some());
        if shown.is_none() {
            emit_text(&self.control.over(self.begun));
        }
        *lock(&self.open) = shown.map(InCell);
    }
}
