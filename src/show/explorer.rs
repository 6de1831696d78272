//! One image's soft targets under a slider for the temperature.

use super::Figure;
use super::bars::soft_target_bars;
use super::display::{base64, bundle};
use super::table::escape;
use crate::Result;
use crate::error::lock;
use kdlab_client::{Bundle, Display, Panel, Widget};
use serde_json::json;
use std::sync::{Arc, Mutex};
use tch::{Kind, Tensor};

/// What is shown where nothing moves.
const TEMPERATURES: [f64; 4] = [1.0, 2.0, 4.0, 10.0];
const BEGIN: f64 = 4.0;
const SLIDER: &str = "T";
const PICTURE: &str = "picture";

/// `softmax(logits / T)` of one image at four temperatures. On the live kernel there is a slider for T above it, which
/// works as long as this value lives, while other cells run and between them.
pub struct TemperatureExplorer {
    scores: Arc<Scores>,
    open: Mutex<Option<Panel>>,
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

/// Slider and picture, with the figure of four temperatures below them; `None` without a live kernel.
fn open(scores: &Arc<Scores>) -> Option<Panel> {
    let slider = Widget::slider(SLIDER, [0.5, 20.0], BEGIN).with("step", 0.1).with("readout_format", ".1f");
    let slider = slider.with("tooltip", "temperature T");
    let picture = Widget::html(PICTURE, &scores.html(BEGIN).ok()?);
    let drawn = Arc::clone(scores);
    let panel = Panel::open(Widget::column([slider, picture]), move |panel, _, value| {
        if let Some(temperature) = value.as_f64()
            && let Ok(html) = drawn.html(temperature)
        {
            panel.set(PICTURE, json!({ "value": html }));
        }
    });
    panel.link()?;
    panel.show("(this front end shows no sliders)").ok()?;
    // A display of its own: a notebook that is opened again has lost its widgets, but not its figures.
    let text = "soft targets at T = 1, 2, 4 and 10 (this front end shows no images)";
    let still = bundle(&scores.figure(&TEMPERATURES).ok()?).ok()?.with("text/plain", text);
    Display::on(panel.link()).show(&still).ok()?;
    Some(panel)
}

fn close(panel: Panel) {
    panel.close(&Bundle::text("(run the cell again for the slider)"), &[]);
}

impl TemperatureExplorer {
    pub fn evcxr_display(&self) {
        let mut shown = lock(&self.open);
        let panel = open(&self.scores);
        if panel.is_none() {
            match self.scores.figure(&TEMPERATURES) {
                Ok(figure) => figure.evcxr_display(),
                Err(e) => eprintln!("{e}"),
            }
        }
        let before = std::mem::replace(&mut *shown, panel);
        drop(shown);
        before.into_iter().for_each(close);
    }
}

impl Drop for TemperatureExplorer {
    fn drop(&mut self) {
        let open = lock(&self.open).take();
        open.into_iter().for_each(close);
    }
}
