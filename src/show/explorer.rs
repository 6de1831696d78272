//! One image's soft targets under a slider for the temperature.

use super::bars::soft_target_bars;
use super::canvas::Figure;
use super::output::picture_html;
use crate::Result;
use crate::error::lock;
use kdlab_client::{Bundle, Display, Panel, Widget};
use serde_json::json;
use std::sync::{Arc, Mutex};
use tch::{Kind, Tensor};

/// Temperatures of the figure without a slider.
const TEMPERATURES: [f64; 4] = [1.0, 2.0, 4.0, 10.0];
const BEGIN: f64 = 4.0;
const SLIDER: &str = "T";
const PICTURE: &str = "picture";

/// `softmax(logits / T)` of one image at four temperatures, on the live kernel with a slider for T. The slider works as
/// long as this value exists, also while other cells run.
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
        Ok(picture_html(&self.figure(&[temperature])?.bundle()?))
    }
}

/// Draws `softmax(logits / T)` of one image's logits `[C]` as bars at T = 1, 2, 4 and 10, on the live kernel with a
/// slider for T. The true class `label`, in [0, C), has a colour of its own. Keep the value in a variable: without it
/// the slider closes.
///
/// # Errors
/// When there are not as many logits as classes, or the label is not among the classes.
pub fn temperature_explorer(logits: &Tensor, classes: &[String], label: Option<i64>) -> Result<TemperatureExplorer> {
    let logits = Vec::try_from(logits.f_reshape(-1)?.f_to_kind(Kind::Double)?)?;
    let scores = Scores { logits, classes: classes.to_vec(), label };
    scores.figure(&TEMPERATURES)?;
    Ok(TemperatureExplorer { scores: Arc::new(scores), open: Mutex::new(None) })
}

/// Slider and picture, which close when they are dropped.
struct Open(Panel);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close(&Bundle::text("(run the cell again for the slider)"), &[]);
    }
}

/// Opens slider and picture, with the figure of four temperatures below them; returns `None` without a live kernel.
fn open(scores: &Arc<Scores>) -> Option<Open> {
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
    panel.show("(this frontend shows no sliders)").ok()?;
    // In a display of its own, because a notebook that is opened again has lost its widgets, but not its figures.
    let text = "soft targets at T = 1, 2, 4 and 10 (this frontend shows no images)";
    let still = scores.figure(&TEMPERATURES).ok()?.bundle().ok()?.with("text/plain", text);
    Display::on(panel.link()).show(&still).ok()?;
    Some(Open(panel))
}

impl TemperatureExplorer {
    /// Shows the bars below the cell. A slider that was shown before closes.
    pub fn evcxr_display(&self) {
        let shown = open(&self.scores);
        if shown.is_none() {
            match self.scores.figure(&TEMPERATURES) {
                Ok(figure) => figure.evcxr_display(),
                Err(e) => eprintln!("{e}"),
            }
        }
        *lock(&self.open) = shown;
    }
}
