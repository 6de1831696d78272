//! One image's soft targets under a slider for the temperature.

use super::Figure;
use super::bars::soft_target_bars;
use super::display::base64;
use super::table::escape;
use super::widgets::{self, VIEW, Widget, new_id};
use crate::Result;
use crate::live::{Link, Push, lock};
use crate::train::six_digits;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, mpsc};
use tch::{Kind, Tensor};

/// What is shown where nothing moves.
const TEMPERATURES: [f64; 4] = [1.0, 2.0, 4.0, 10.0];
const BEGIN: f64 = 4.0;

/// `softmax(logits / T)` of one image at four temperatures. On the live kernel there is a slider for T above it, which
/// works as long as this value lives, while other cells run and between them.
pub struct TemperatureExplorer {
    scores: Arc<Scores>,
    open: Mutex<Option<Open>>,
}

struct Scores {
    logits: Vec<f64>,
    classes: Vec<String>,
    label: Option<i64>,
}

impl Scores {
    fn figure(&self, temperatures: &[f64]) -> Result<Figure> {
        soft_target_bars(&Tensor::f_from_slice(&self.logits)?, &self.classes, self.label, temperatures)
    }

    /// The bars at one temperature, as a widget shows them.
    fn html(&self, temperature: f64) -> Result<String> {
        let figure = self.figure(&[temperature])?;
        let ((width, height), png) = (figure.size(), base64(&figure.png()?));
        let alt = escape(&figure.alt());
        Ok(format!("<img width=\"{width}\" height=\"{height}\" alt=\"{alt}\" src=\"data:image/png;base64,{png}\">"))
    }

    /// The figure of four temperatures, in a mime bundle and its metadata.
    fn still(&self) -> Result<(Value, Value)> {
        let figure = self.figure(&TEMPERATURES)?;
        let (width, height) = figure.size();
        let text = "soft targets at T = 1, 2, 4 and 10 (this front end shows no images)";
        let data = json!({"image/png": base64(&figure.png()?), "text/plain": text});
        Ok((data, json!({"image/png": {"width": width, "height": height, "alt": figure.alt()}})))
    }
}

/// `softmax(logits / T)` of one image's logits `[C]` as bars at T = 1, 2, 4 and 10, on the live kernel with a slider
/// for T; `label` sets the true class off. Keep the value in a variable: the slider goes with it.
///
/// # Errors
/// When there are not as many logits as classes.
pub fn temperature_explorer(logits: &Tensor, classes: &[String], label: Option<i64>) -> Result<TemperatureExplorer> {
    let logits = Vec::try_from(logits.f_reshape(-1)?.f_to_kind(Kind::Double)?)?;
    let scores = Scores { logits, classes: classes.to_vec(), label };
    scores.figure(&TEMPERATURES)?;
    Ok(TemperatureExplorer { scores: Arc::new(scores), open: Mutex::new(None) })
}

/// The widgets and their connection.
struct Open {
    link: Arc<Link>,
    display: String,
    ids: Vec<String>,
}

impl Open {
    fn new(scores: &Arc<Scores>) -> Option<Self> {
        let state = json!({"value": BEGIN, "min": 0.5, "max": 20.0, "step": 0.1, "readout_format": ".1f"});
        let (slider, picture) =
            (Widget::slider("FloatSlider", "T", "temperature T", state), Widget::html(&scores.html(BEGIN).ok()?));
        let (slider_id, picture_id) = (slider.id.clone(), picture.id.clone());
        let both = Widget::boxed("VBox", vec![slider, picture]);
        let root = both.id.clone();
        let (moved, moves) = mpsc::channel();
        let link = Link::connect(move |push| {
            if let Push::Comm { comm_id, data } = push
                && comm_id == slider_id
                && let Some(temperature) = data["state"]["value"].as_f64()
            {
                let _ = moved.send(six_digits(temperature));
            }
        })?;
        let link = Arc::new(link);
        let ids = both.open(&link).ok()?;
        let display = new_id();
        let data = json!({VIEW: widgets::view(&root), "text/plain": "(this front end shows no sliders)"});
        link.display(&display, false, data, json!({})).ok()?;
        // A display of its own: a notebook that is opened again has lost its widgets, but not its figures.
        let (data, metadata) = scores.still().ok()?;
        link.display(&new_id(), false, data, metadata).ok()?;
        // Its thread ends when the connection does: then nobody sends any more.
        let (scores, to) = (Arc::clone(scores), Arc::downgrade(&link));
        std::thread::Builder::new()
            .name("kdlab-explorer".into())
            .spawn(move || {
                while let Ok(first) = moves.recv() {
                    // Of a drag, only where the slider is by now.
                    let temperature = moves.try_iter().last().unwrap_or(first);
                    let Some(link) = to.upgrade() else { return };
                    if let Ok(html) = scores.html(temperature) {
                        widgets::update(&link, &picture_id, json!({ "value": html }));
                    }
                }
            })
            .ok()?;
        Some(Self { link, display, ids })
    }

    fn close(self) {
        let data = json!({"text/plain": "(run the cell again for the slider)"});
        let _ = self.link.display(&self.display, true, data, json!({}));
        widgets::close(&self.link, &self.ids);
    }
}

impl TemperatureExplorer {
    pub fn evcxr_display(&self) {
        let mut open = lock(&self.open);
        let shown = Open::new(&self.scores);
        if shown.is_none() {
            match self.scores.figure(&TEMPERATURES) {
                Ok(figure) => figure.evcxr_display(),
                Err(e) => eprintln!("{e}"),
            }
        }
        let before = std::mem::replace(&mut *open, shown);
        drop(open);
        before.into_iter().for_each(Open::close);
    }
}

impl Drop for TemperatureExplorer {
    fn drop(&mut self) {
        let open = lock(&self.open).take();
        open.into_iter().for_each(Open::close);
    }
}
