//! Sliders and buttons for a [`Control`]. They move when a program changes the control.

use super::output::lines_html;
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
/// Places below the knobs. Only a page that was opened after the fit began shows something there.
const MIRRORS: [&str; 2] = ["progress", "figure"];

/// The values that the knobs show: those that the user set, else those that the fit began with.
struct Values {
    control: Control,
    begun: Mutex<Hyperparameters>,
}

impl Values {
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
        let rows =
            [temperature, alpha, Some(slider(rate, 0.05, ".1e", "learning rate, which the schedule multiplies"))];
        let below = [Widget::row([pause, stop])].into_iter().chain(MIRRORS.map(|name| Widget::html(name, "")));
        Widget::column(rows.into_iter().flatten().chain(below))
    }

    /// Shows the control's values in the frontend.
    fn sync(&self, panel: &Panel) {
        // Held to the end: two threads may change the control, and the last message must carry the last value.
        let begun = lock(&self.begun);
        let (now, paused) = (self.control.over(*begun), self.control.is_paused());
        let (word, icon) = pause_face(paused);
        panel.set(TEMPERATURE, json!({"value": now.temperature}));
        panel.set(ALPHA, json!({"value": now.alpha}));
        panel.set(LEARNING_RATE, json!({"value": now.learning_rate}));
        panel.set(PAUSE, json!({"value": paused, "description": word, "icon": icon}));
        panel.set(STOP, json!({"disabled": self.control.stopping().is_some()}));
    }

    /// Does to the control what the user did in the frontend.
    fn apply(&self, name: &str, value: &Value) {
        let number = value.as_f64().unwrap_or_default();
        // These do not fail: the sliders end where the range does.
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

/// Open knobs, on a connection of their own.
pub(super) struct Knobs {
    pub panel: Panel,
    values: Arc<Values>,
    observer: Option<Observer>,
}

impl Knobs {
    /// Connects to the kernel. The caller may show other things first, and then calls [`Knobs::show`].
    pub fn connect(control: &Control, begun: Hyperparameters) -> Option<Self> {
        let values = Arc::new(Values { control: control.clone(), begun: Mutex::new(begun) });
        let of_input = Arc::clone(&values);
        let panel = Panel::open(values.widget(), move |_, name, value| of_input.apply(name, value));
        panel.link()?;
        let (of_change, shown) = (Arc::clone(&values), panel.clone());
        let observer = control.on_change(move || of_change.sync(&shown));
        values.sync(&panel);
        Some(Self { panel, values, observer: Some(observer) })
    }

    pub fn control(&self) -> &Control {
        &self.values.control
    }

    /// The values in force.
    pub fn now(&self) -> Hyperparameters {
        self.values.now()
    }

    /// Takes over the values with which the fit begins.
    pub fn begin(&self, begun: Hyperparameters) {
        *lock(&self.values.begun) = begun;
        self.values.sync(&self.panel);
    }

    /// Shows below the knobs what a page that was opened later cannot show otherwise.
    pub fn mirror(&self, place: usize, html: &str) {
        if self.panel.is_on_later_page() {
            self.panel.set(MIRRORS[place], json!({ "value": html }));
        }
    }

    pub fn show(&self) -> Option<()> {
        self.panel.show(&format!("{} (this frontend shows no sliders)", self.now())).ok()
    }

    /// Closes the knobs and leaves a line of text in their place.
    pub fn replace(&mut self, text: &str) {
        self.observer = None;
        self.panel.close(&Bundle::text(text).with("text/html", lines_html(text)), &MIRRORS);
    }
}
