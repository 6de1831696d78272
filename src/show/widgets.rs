//! Jupyter widgets (ipywidgets 8) as trees of states, opened and changed through the live kernel.

use crate::Result;
use crate::live::Link;
use serde_json::{Map, Value, json};

/// Of the widget messages.
const PROTOCOL: &str = "2.1.0";
/// Of the JavaScript packages that ipywidgets 8 comes with.
const PACKAGE: &str = "2.0.0";
pub(super) const VIEW: &str = "application/vnd.jupyter.widget-view+json";

/// A widget, not yet open: a control of `@jupyter-widgets/controls`.
pub(super) struct Widget {
    pub id: String,
    /// Such as `FloatSlider`, of `FloatSliderModel` and `FloatSliderView`.
    kind: &'static str,
    state: Map<String, Value>,
    layout: Value,
    style: Option<(&'static str, Value)>,
    children: Vec<Widget>,
}

impl Widget {
    fn new(kind: &'static str, state: Value) -> Self {
        let state = match state {
            Value::Object(state) => state,
            _ => Map::new(),
        };
        Self { id: new_id(), kind, state, layout: json!({}), style: None, children: Vec::new() }
    }

    /// A slider; `state` holds at least `value`, `min` and `max`.
    pub fn slider(kind: &'static str, description: &str, tooltip: &str, mut state: Value) -> Self {
        state["description"] = json!(description);
        // The title of the whole control. The handle is named by an extension that `cargo lab setup` adds to
        // JupyterLab.
        state["tooltip"] = json!(tooltip);
        // A drag acts while it lasts.
        state["continuous_update"] = json!(true);
        let style = ("SliderStyle", json!({"description_width": "90px"}));
        Self { style: Some(style), layout: json!({"width": "440px"}), ..Self::new(kind, state) }
    }

    pub fn toggle(description: &str, icon: &str, value: bool) -> Self {
        let state = json!({"description": description, "icon": icon, "value": value});
        Self { style: Some(("ToggleButtonStyle", json!({}))), ..Self::new("ToggleButton", state) }
    }

    pub fn button(description: &str, icon: &str) -> Self {
        let state = json!({"description": description, "icon": icon, "button_style": "danger"});
        Self { style: Some(("ButtonStyle", json!({}))), ..Self::new("Button", state) }
    }

    pub fn html(value: &str) -> Self {
        Self { style: Some(("HTMLStyle", json!({}))), ..Self::new("HTML", json!({ "value": value })) }
    }

    /// `HBox` or `VBox`.
    pub fn boxed(kind: &'static str, children: Vec<Widget>) -> Self {
        Self { children, ..Self::new(kind, json!({})) }
    }

    /// Opens it with all it is made of, the parts first. Gives the ids to [`close`].
    pub fn open(mut self, link: &Link) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        let children: Vec<_> = self.children.iter().map(|child| reference(&child.id)).collect();
        for child in self.children {
            ids.extend(child.open(link)?);
        }
        if !children.is_empty() {
            self.state.insert("children".into(), json!(children));
        }
        let mut part = |name: &str, package: &str, model: &str, view: &str, state: &Value| -> Result<Value> {
            let id = new_id();
            let mut state = state.as_object().cloned().unwrap_or_default();
            describe(&mut state, package, (model, "@jupyter-widgets/base", view));
            open(link, &id, state)?;
            self.state.insert(name.to_owned(), reference(&id));
            ids.push(id.clone());
            Ok(reference(&id))
        };
        part("layout", "@jupyter-widgets/base", "LayoutModel", "LayoutView", &self.layout)?;
        if let Some((kind, state)) = &self.style {
            part("style", "@jupyter-widgets/controls", &format!("{kind}Model"), "StyleView", state)?;
        }
        let (model, view) = (format!("{}Model", self.kind), format!("{}View", self.kind));
        let controls = "@jupyter-widgets/controls";
        describe(&mut self.state, controls, (&model, controls, &view));
        open(link, &self.id, self.state)?;
        ids.push(self.id);
        Ok(ids)
    }
}

/// What of a mime bundle makes the front end show an open widget.
pub(super) fn view(id: &str) -> Value {
    json!({"version_major": 2, "version_minor": 0, "model_id": id})
}

/// Changes a few values of an open widget. It does not wait: it may be called where answers are read.
pub(super) fn update(link: &Link, id: &str, state: Value) {
    let data = json!({"method": "update", "state": state, "buffer_paths": []});
    // A kernel that is gone needs no update.
    let _ = link.post(&json!({"comm_msg": {"comm_id": id, "data": data}}));
}

pub(super) fn close(link: &Link, ids: &[String]) {
    for id in ids.iter().rev() {
        let _ = link.request(&json!({"comm_close": {"comm_id": id}}));
    }
}

/// Unlike any other, in this kernel and in those before it.
pub(super) fn new_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

pub(super) fn reference(id: &str) -> Value {
    json!(format!("IPY_MODEL_{id}"))
}

fn describe(state: &mut Map<String, Value>, package: &str, (model, view_package, view): (&str, &str, &str)) {
    for (key, value) in [
        ("_model_module", package),
        ("_model_module_version", PACKAGE),
        ("_model_name", model),
        ("_view_module", view_package),
        ("_view_module_version", PACKAGE),
        ("_view_name", view),
    ] {
        state.insert(key.to_owned(), json!(value));
    }
}

fn open(link: &Link, id: &str, state: Map<String, Value>) -> Result<()> {
    link.request(&json!({"comm_open": {
        "comm_id": id,
        "target_name": "jupyter.widget",
        "data": {"state": state, "buffer_paths": []},
        "metadata": {"version": PROTOCOL},
    }}))
}
