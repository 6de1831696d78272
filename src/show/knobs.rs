//! Sliders and buttons on a [`Control`]: what is set by hand and what is set by program stay in step.

use super::widgets::{self, VIEW, Widget, new_id};
use crate::live::{Link, Push, lock};
use crate::train::{Control, Observer, Settings, six_digits};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What a slider or button of the panel does.
#[derive(Clone, Copy, PartialEq)]
enum Knob {
    Temperature,
    Alpha,
    LearningRate,
    Pause,
    Stop,
}

/// The panel's state, shared by the connection's thread, the control's observer and the owner. It holds no link: the
/// connection's thread holds the panel, and would keep its own connection open.
pub(super) struct Panel {
    control: Control,
    begun: Mutex<Settings>,
    /// By comm.
    knobs: HashMap<String, Knob>,
    /// A page that was opened later shows the widgets.
    opened: AtomicBool,
    /// What the front end shows, so that a value is not sent back to the slider it came from.
    shown: Mutex<HashMap<String, f64>>,
}

impl Panel {
    /// The panel, and the widget to open for it: `mirror` comes below the knobs. Temperature and alpha are there where
    /// the fit has them.
    fn new(control: &Control, begun: Settings, mirror: Vec<Widget>) -> (Arc<Self>, Widget) {
        let now = control.over(begun);
        let mut knobs = HashMap::new();
        let mut add = |knob: Knob, widget: Widget| {
            knobs.insert(widget.id.clone(), knob);
            widget
        };
        let mut rows = Vec::new();
        if let Some(t) = now.temperature {
            let state =
                json!({"value": t, "min": t.min(0.5), "max": t.max(20.0), "step": 0.1, "readout_format": ".1f"});
            rows.push(add(Knob::Temperature, Widget::slider("FloatSlider", "T", "temperature T", state)));
        }
        if let Some(a) = now.alpha {
            let state = json!({"value": a, "min": 0.0, "max": 1.0, "step": 0.01, "readout_format": ".2f"});
            rows.push(add(
                Knob::Alpha,
                Widget::slider("FloatSlider", "alpha", "alpha, the weight of the teacher", state),
            ));
        }
        // Powers of ten.
        let power = now.learning_rate.log10();
        let (min, max) = (power.floor().min(-5.0), power.ceil().max(-1.0));
        let state = json!({"value": now.learning_rate, "base": 10.0, "min": min, "max": max, "step": 0.05,
            "readout_format": ".1e"});
        rows.push(add(Knob::LearningRate, Widget::slider("FloatLogSlider", "learning rate", "learning rate", state)));
        let pause = add(Knob::Pause, {
            let (word, icon) = pause_face(control.is_paused());
            Widget::toggle(word, icon, control.is_paused())
        });
        let stop = add(Knob::Stop, Widget::button("Stop", "stop"));
        rows.push(Widget::boxed("HBox", vec![pause, stop]));
        rows.extend(mirror);
        let panel = Self {
            control: control.clone(),
            begun: Mutex::new(begun),
            knobs,
            opened: AtomicBool::new(false),
            shown: Mutex::default(),
        };
        *lock(&panel.shown) = panel.values();
        (Arc::new(panel), Widget::boxed("VBox", rows))
    }

    /// What each knob should show: numbers, and 0 or 1.
    fn values(&self) -> HashMap<String, f64> {
        let now = self.now();
        let value = |knob: &Knob| match knob {
            Knob::Temperature => now.temperature.unwrap_or_default(),
            Knob::Alpha => now.alpha.unwrap_or_default(),
            Knob::LearningRate => now.learning_rate,
            Knob::Pause => f64::from(u8::from(self.control.is_paused())),
            Knob::Stop => f64::from(u8::from(self.control.stopping().is_some())),
        };
        self.knobs.iter().map(|(id, knob)| (id.clone(), value(knob))).collect()
    }

    pub fn now(&self) -> Settings {
        self.control.over(*lock(&self.begun))
    }

    /// The values that the fit began with, where nothing is set by hand.
    pub fn begin(&self, begun: Settings, link: &Link) {
        *lock(&self.begun) = begun;
        self.sync(link);
    }

    /// Moves what has to move in the front end.
    fn sync(&self, link: &Link) {
        // Held to the end: two threads may have changed the control, and the last message must be the last value.
        let mut shown = lock(&self.shown);
        for (id, value) in self.values() {
            if shown.insert(id.clone(), value) == Some(value) {
                continue;
            }
            let state = match self.knobs[&id] {
                Knob::Temperature | Knob::Alpha | Knob::LearningRate => json!({ "value": value }),
                Knob::Pause => {
                    let (word, icon) = pause_face(value != 0.0);
                    json!({ "value": value != 0.0, "description": word, "icon": icon })
                }
                Knob::Stop => json!({ "disabled": value != 0.0 }),
            };
            widgets::update(link, &id, state);
        }
    }

    /// Does what the user did in the front end.
    fn hear(&self, push: Push) {
        if push == Push::Opened {
            self.opened.store(true, Ordering::Relaxed);
        }
        let Push::Comm { comm_id, data } = push else { return };
        let Some(&knob) = self.knobs.get(&comm_id) else { return };
        if knob == Knob::Stop {
            if data["content"]["event"] == "click" {
                self.control.stop("by the Stop button");
            }
            return;
        }
        let value = match &data["state"]["value"] {
            Value::Bool(on) => f64::from(u8::from(*on)),
            value => match value.as_f64() {
                Some(value) => six_digits(value),
                None => return,
            },
        };
        // The button changes its word too, which goes back with its value.
        if knob != Knob::Pause {
            lock(&self.shown).insert(comm_id, value);
        }
        // The sliders' ends keep to what is allowed.
        let _ = match knob {
            Knob::Temperature => self.control.set_temperature(value),
            Knob::Alpha => self.control.set_alpha(value),
            Knob::LearningRate => self.control.set_learning_rate(value),
            Knob::Pause if value != 0.0 => {
                self.control.pause();
                Ok(())
            }
            Knob::Pause | Knob::Stop => {
                self.control.resume();
                Ok(())
            }
        };
    }
}

/// Word and icon of the Pause button: what a click will do.
fn pause_face(paused: bool) -> (&'static str, &'static str) {
    if paused { ("Resume", "play") } else { ("Pause", "pause") }
}

/// A panel that is open, on a connection of its own; closed when it is dropped.
pub(super) struct OpenPanel {
    pub link: Arc<Link>,
    pub panel: Arc<Panel>,
    display: String,
    widget: String,
    /// Two places below the knobs, empty but on a page that was opened later.
    mirror: [String; 2],
    ids: Vec<String>,
    observer: Option<Observer>,
}

impl OpenPanel {
    /// Connects to the kernel; what else the connection's owner shows comes before [`OpenPanel::show`].
    pub fn connect(control: &Control, begun: Settings) -> Option<Self> {
        let mirror = [Widget::html(""), Widget::html("")];
        let places = mirror.each_ref().map(|place| place.id.clone());
        let (panel, widget) = Panel::new(control, begun, mirror.into());
        let hears = Arc::clone(&panel);
        let link = Arc::new(Link::connect(move |push| hears.hear(push))?);
        let id = widget.id.clone();
        let ids = widget.open(&link).ok()?;
        let (moves, to) = (Arc::clone(&panel), Arc::clone(&link));
        let observer = control.on_change(move || moves.sync(&to));
        panel.sync(&link);
        Some(Self { link, panel, display: new_id(), widget: id, mirror: places, ids, observer: Some(observer) })
    }

    /// Whether a page shows these widgets and cannot show the displays beside them.
    pub fn is_mirrored(&self) -> bool {
        self.panel.opened.load(Ordering::Relaxed)
    }

    /// Shows below the knobs what that page cannot show otherwise.
    pub fn mirror(&self, place: usize, html: &str) {
        if self.is_mirrored() {
            widgets::update(&self.link, &self.mirror[place], json!({ "value": html }));
        }
    }

    pub fn show(&self) -> Option<()> {
        let text = format!("{} (this front end shows no sliders)", self.panel.now());
        let data = json!({VIEW: widgets::view(&self.widget), "text/plain": text});
        self.link.display(&self.display, false, data, json!({})).ok()
    }

    /// Leaves a line of text in its place.
    pub fn replace(&mut self, text: &str) {
        self.observer = None;
        let html = format!("<pre style=\"margin:0\">{}</pre>", super::table::escape(text));
        let data = json!({"text/plain": text, "text/html": html});
        let _ = self.link.display(&self.display, true, data, json!({}));
        let ids = std::mem::take(&mut self.ids);
        if self.is_mirrored() {
            // That page does not hear of the display: what it mirrors stays, without the knobs.
            let left: Vec<_> = self.mirror.iter().map(|id| widgets::reference(id)).collect();
            widgets::update(&self.link, &self.widget, json!({ "children": left }));
            let _ = self.link.request(&json!({"comms_keep": {}}));
        } else {
            widgets::close(&self.link, &ids);
        }
    }
}

/// Sliders and buttons for a [`Control`], as the value of a cell. They work as long as the value lives.
pub struct Knobs {
    control: Control,
    begun: Settings,
    open: Mutex<Option<OpenPanel>>,
}

/// Sliders for temperature, alpha and learning rate, a Pause and a Stop button, for a fit that began with `begun`: for
/// a run in the background `knobs(&run.control(), run.settings())`. Without the live kernel it shows the values in
/// force.
pub fn knobs(control: &Control, begun: Settings) -> Knobs {
    Knobs { control: control.clone(), begun, open: Mutex::new(None) }
}

impl Knobs {
    pub fn evcxr_display(&self) {
        let mut open = lock(&self.open);
        let shown = OpenPanel::connect(&self.control, self.begun).filter(|panel| panel.show().is_some());
        if shown.is_none() {
            super::display::emit_text(&self.control.over(self.begun));
        }
        // One that was shown before goes: the last one is in the user's view.
        let before = std::mem::replace(&mut *open, shown);
        drop(open);
        before.into_iter().for_each(|panel| self.close(panel));
    }

    fn close(&self, mut panel: OpenPanel) {
        panel.replace(&self.control.over(self.begun).to_string());
    }
}

impl Drop for Knobs {
    fn drop(&mut self) {
        let open = lock(&self.open).take();
        open.into_iter().for_each(|panel| self.close(panel));
    }
}
