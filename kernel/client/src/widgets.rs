//! Jupyter widgets (ipywidgets 8): trees of controls, opened and changed through the live kernel.

use crate::display::new_id;
use crate::{Bundle, Display, Link, Push, Result, lock};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};

/// Version of the widget messages.
const PROTOCOL: &str = "2.1.0";
/// Version of the JavaScript packages that ipywidgets 8 comes with.
const PACKAGE: &str = "2.0.0";
const BASE: &str = "@jupyter-widgets/base";
const CONTROLS: &str = "@jupyter-widgets/controls";
const VIEW: &str = "application/vnd.jupyter.widget-view+json";

/// A control or a box of controls, which a [`Panel`] opens. Names identify the controls of a panel, so give each its
/// own; they are also the labels.
///
/// ```
/// use kdlab_client::Widget;
/// let speed = Widget::slider("speed", [0.0, 10.0], 1.0).with("step", 0.5);
/// let controls = Widget::column([speed, Widget::row([Widget::toggle("Pause", false), Widget::button("Stop")])]);
/// ```
pub struct Widget {
    id: String,
    name: String,
    /// Such as `FloatSlider`, of `FloatSliderModel` and `FloatSliderView`.
    kind: &'static str,
    state: Map<String, Value>,
    layout: Value,
    style: Option<(&'static str, Value)>,
    children: Vec<Widget>,
}

impl Widget {
    fn new(kind: &'static str, name: &str, style: Option<&'static str>) -> Self {
        let (state, style) = (Map::new(), style.map(|style| (style, json!({}))));
        Self { id: new_id(), name: name.to_owned(), kind, state, layout: json!({}), style, children: Vec::new() }
    }

    /// Makes a slider over `[min, max]`.
    pub fn slider(name: &str, [min, max]: [f64; 2], value: f64) -> Self {
        Self::any_slider("FloatSlider", name).with("min", min).with("max", max).with("value", value)
    }

    /// Makes a slider over powers of ten, with exponents in `[min, max]`.
    pub fn log_slider(name: &str, [min, max]: [f64; 2], value: f64) -> Self {
        let slider = Self::any_slider("FloatLogSlider", name).with("base", 10.0);
        slider.with("min", min).with("max", max).with("value", value)
    }

    fn any_slider(kind: &'static str, name: &str) -> Self {
        let slider = Self::new(kind, name, None).with("description", name).with("tooltip", name);
        // A drag acts while it lasts.
        let slider = slider.with("continuous_update", true);
        let style = Some(("SliderStyle", json!({"description_width": "90px"})));
        Self { style, layout: json!({"width": "440px"}), ..slider }
    }

    /// Makes a button that is on or off.
    pub fn toggle(name: &str, on: bool) -> Self {
        Self::new("ToggleButton", name, Some("ToggleButtonStyle")).with("description", name).with("value", on)
    }

    /// Makes a button to click.
    pub fn button(name: &str) -> Self {
        Self::new("Button", name, Some("ButtonStyle")).with("description", name)
    }

    /// Makes a line of text to edit; it acts when the user leaves it or presses Enter.
    pub fn text(name: &str, value: &str) -> Self {
        let text = Self::new("Text", name, Some("TextStyle")).with("description", name);
        text.with("value", value).with("continuous_update", false)
    }

    /// Makes a button by which the user chooses files of the given types, such as `image/*` or `.csv`; an empty text
    /// allows all. [`Panel::files`] returns them.
    ///
    /// A Jupyter server takes messages of up to 10 MB, unless it is configured otherwise.
    ///
    /// ```
    /// use kdlab_client::{Panel, Widget};
    /// let panel = Panel::open(Widget::upload("Your image", "image/*"), |panel, name, _| {
    ///     for file in panel.files(name) {
    ///         println!("{}: {} bytes", file.name, file.bytes.len());
    ///     }
    /// });
    /// assert!(panel.files("Your image").is_empty());
    /// ```
    pub fn upload(name: &str, accept: &str) -> Self {
        let upload = Self::new("FileUpload", name, Some("ButtonStyle")).with("description", name);
        let upload = upload.with("accept", accept).with("multiple", false).with("icon", "upload").with("error", "");
        upload.with("value", json!([]))
    }

    /// Makes a place for HTML, without a label.
    pub fn html(name: &str, html: &str) -> Self {
        Self::new("HTML", name, Some("HTMLStyle")).with("value", html)
    }

    /// Puts widgets side by side.
    pub fn row(children: impl IntoIterator<Item = Widget>) -> Self {
        Self { children: children.into_iter().collect(), ..Self::new("HBox", "", None) }
    }

    /// Puts widgets below each other.
    pub fn column(children: impl IntoIterator<Item = Widget>) -> Self {
        Self { children: children.into_iter().collect(), ..Self::new("VBox", "", None) }
    }

    /// Sets a value of the widget's state by its name in ipywidgets, such as `step`, `tooltip` or `icon`.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.state.insert(key.to_owned(), value.into());
        self
    }

    /// Adds every named control below, with its id and state, to `controls`.
    fn collect(&self, controls: &mut HashMap<String, Control>) {
        if !self.name.is_empty() {
            let control = Control { id: self.id.clone(), state: self.state.clone(), files: Vec::new() };
            controls.insert(self.name.clone(), control);
        }
        self.children.iter().for_each(|child| child.collect(controls));
    }

    /// Opens a comm for the widget and each of its parts, the parts first, and adds their ids to `ids`.
    fn open(mut self, link: &Link, ids: &mut Vec<String>) -> Result<()> {
        let children: Vec<_> = self.children.iter().map(|child| reference(&child.id)).collect();
        for child in self.children {
            child.open(link, ids)?;
        }
        if !children.is_empty() {
            self.state.insert("children".into(), json!(children));
        }
        let style = self.style.map(|(kind, state)| ("style", CONTROLS, format!("{kind}Model"), "StyleView", state));
        let layout = ("layout", BASE, "LayoutModel".to_owned(), "LayoutView", self.layout);
        for (part, package, model, view, state) in [Some(layout), style].into_iter().flatten() {
            let id = new_id();
            self.state.insert(part.to_owned(), reference(&id));
            let state = state.as_object().cloned().unwrap_or_default();
            open(link, id, state, (package, &model), (BASE, view), ids)?;
        }
        let (model, view) = (format!("{}Model", self.kind), format!("{}View", self.kind));
        open(link, self.id, self.state, (CONTROLS, &model), (CONTROLS, &view), ids)
    }
}

fn reference(id: &str) -> Value {
    json!(format!("IPY_MODEL_{id}"))
}

fn open(
    link: &Link,
    id: String,
    mut state: Map<String, Value>,
    (package, model): (&str, &str),
    (view_package, view): (&str, &str),
    ids: &mut Vec<String>,
) -> Result<()> {
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
    link.request(&json!({"comm_open": {
        "comm_id": id,
        "target_name": "jupyter.widget",
        "data": {"state": state, "buffer_paths": []},
        "metadata": {"version": PROTOCOL},
    }}))?;
    ids.push(id);
    Ok(())
}

/// What frontends show of a control.
struct Control {
    id: String,
    state: Map<String, Value>,
    /// The chosen files of an upload.
    files: Vec<File>,
}

/// A file that the user chose by [`Widget::upload`].
///
/// ```
/// let file = kdlab_client::File { name: "cat.png".into(), mime: "image/png".into(), bytes: vec![0x89, b'P'] };
/// assert!(file.bytes.starts_with(b"\x89P"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Its name, without a folder.
    pub name: String,
    /// Its MIME type as the browser guesses it, such as `image/png`; empty where it does not know.
    pub mime: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Open widgets, on a connection of their own. Clones share them; they close when the last clone goes.
///
/// Without the live kernel the values stay as they are, and nothing is called.
///
/// ```
/// use kdlab_client::{Panel, Widget};
/// let slider = Widget::slider("speed", [0.0, 10.0], 1.0);
/// let controls = Widget::column([slider, Widget::html("twice", "2")]);
/// let panel = Panel::open(controls, |panel, _name, value| {
///     let twice = 2.0 * value.as_f64().unwrap_or_default();
///     panel.set("twice", serde_json::json!({"value": twice.to_string()}));
/// });
/// panel.show("speed 1 (this frontend shows no sliders)")?;
/// // A loop can read the value whenever it wants.
/// assert_eq!(panel.value("speed").as_f64(), Some(1.0));
/// # Ok::<(), kdlab_client::Error>(())
/// ```
#[derive(Clone)]
pub struct Panel(Arc<OpenPanel>);

struct OpenPanel {
    link: Option<Link>,
    display: Display,
    root: String,
    ids: Mutex<Vec<String>>,
    /// By name.
    controls: Mutex<HashMap<String, Control>>,
    /// A page that was opened later shows the widgets.
    on_later_page: Arc<AtomicBool>,
}

impl Panel {
    /// Opens `widget` with all its parts, not shown yet. `on_input` is called on a thread of its own for what the user
    /// does, with the panel, the control's name and its value: a number rounded to six digits, a `bool`, a text, a list
    /// of the chosen files without their content, or `Null` for a click. Values that arrive during a call are merged:
    /// the next call gets the last one.
    pub fn open(widget: Widget, mut on_input: impl FnMut(&Panel, &str, &Value) + Send + 'static) -> Self {
        let on_later_page = Arc::new(AtomicBool::new(false));
        let (page_opened, (sender, pushes)) = (Arc::clone(&on_later_page), mpsc::channel());
        let link = Link::connect(move |push| match push {
            Push::PageOpened => page_opened.store(true, Ordering::Relaxed),
            Push::Comm { comm_id, data, buffers } => drop(sender.send((comm_id, (data, buffers)))),
            Push::Stop(_) => {}
        });
        let (root, mut controls, mut ids) = (widget.id.clone(), HashMap::new(), Vec::new());
        widget.collect(&mut controls);
        let link = link.filter(|link| widget.open(link, &mut ids).is_ok());
        let (display, controls) = (Display::on(link.as_ref()), Mutex::new(controls));
        let panel = Self(Arc::new(OpenPanel { link, display, root, ids: Mutex::new(ids), controls, on_later_page }));
        let weak = Arc::downgrade(&panel.0);
        // Ends with the connection, which owns the sender.
        std::thread::spawn(move || {
            while let Some(pushes) = next(&pushes) {
                let Some(panel) = weak.upgrade().map(Panel) else { return };
                for (id, (data, buffers)) in pushes {
                    if let Some((name, value)) = panel.receive(&id, &data, buffers) {
                        on_input(&panel, &name, &value);
                    }
                }
            }
        });
        panel
    }

    /// Returns the panel's connection, for displays beside it; `None` without the live kernel.
    pub fn link(&self) -> Option<&Link> {
        self.0.link.as_ref()
    }

    /// Shows the widgets in the cell, and `text` where a frontend shows no widgets.
    ///
    /// # Errors
    /// As [`Display::show`].
    pub fn show(&self, text: &str) -> Result<()> {
        let view = json!({"version_major": 2, "version_minor": 0, "model_id": self.0.root});
        self.0.display.show(Bundle::text(text).with(VIEW, view))
    }

    /// Returns the value of a control: a number, a truth value or a text; `Null` for one that has none.
    pub fn value(&self, name: &str) -> Value {
        let controls = lock(&self.0.controls);
        controls.get(name).and_then(|control| control.state.get("value")).cloned().unwrap_or_default()
    }

    /// Returns the files that the user chose last in the upload `name`.
    pub fn files(&self, name: &str) -> Vec<File> {
        lock(&self.0.controls).get(name).map(|control| control.files.clone()).unwrap_or_default()
    }

    /// Changes a control's state, such as `{"value": 2.0}` or `{"disabled": true}`. Only what differs is sent to the
    /// frontend. An unknown name is ignored.
    pub fn set(&self, name: &str, state: Value) {
        // Held until the message is out: the last message must be the last value.
        let mut controls = lock(&self.0.controls);
        let (Some(control), Value::Object(mut state)) = (controls.get_mut(name), state) else { return };
        state.retain(|key, value| control.state.get(key) != Some(value));
        control.state.extend(state.clone());
        if !state.is_empty() {
            self.0.update(&control.id, state.into());
        }
    }

    /// Returns whether a page was opened after the widgets. It shows the widgets, but not the displays beside them.
    pub fn is_on_later_page(&self) -> bool {
        self.0.on_later_page.load(Ordering::Relaxed)
    }

    /// Closes the widgets and leaves `bundle` in their place. Without the live kernel it does nothing. A page that was
    /// opened later does not see that display: there the controls named in `keep` stay, the others go.
    pub fn close(&self, bundle: &Bundle, keep: &[&str]) {
        let Some(link) = &self.0.link else { return };
        let _ = self.0.display.show(bundle);
        let ids = std::mem::take(&mut *lock(&self.0.ids));
        if self.is_on_later_page() {
            let controls = lock(&self.0.controls);
            let left: Vec<_> = keep.iter().filter_map(|name| Some(reference(&controls.get(*name)?.id))).collect();
            self.0.update(&self.0.root, json!({ "children": left }));
            let _ = link.request(&json!({"comms_keep": {}}));
        } else {
            for id in ids.iter().rev() {
                let _ = link.request(&json!({"comm_close": {"comm_id": id}}));
            }
        }
    }

    /// Takes in what the frontend sent to the comm `id`.
    fn receive(&self, id: &str, data: &Value, buffers: Vec<Vec<u8>>) -> Option<(String, Value)> {
        let mut controls = lock(&self.0.controls);
        let (name, control) = controls.iter_mut().find(|(_, control)| control.id == id)?;
        let value = match &data["state"]["value"] {
            Value::Null if data["content"]["event"] == "click" => return Some((name.clone(), Value::Null)),
            Value::Null => return None,
            // A slider counts its steps in floats: 9.799999999999999 is 9.8.
            Value::Number(number) => json!(format!("{:.5e}", number.as_f64()?).parse::<f64>().ok()?),
            other => other.clone(),
        };
        if control.state.contains_key("accept") {
            control.files = files(data, buffers);
        }
        control.state.insert("value".into(), value.clone());
        Some((name.clone(), value))
    }
}

impl OpenPanel {
    /// Sends changed values without waiting for a reply; a kernel that has ended needs none.
    fn update(&self, id: &str, state: Value) {
        let data = json!({"method": "update", "state": state, "buffer_paths": []});
        let message = json!({"comm_msg": {"comm_id": id, "data": data}});
        let _ = self.link.as_ref().map(|link| link.post(&message));
    }
}

impl Drop for OpenPanel {
    fn drop(&mut self) {
        self.link.iter().for_each(Link::close);
    }
}

/// Returns the files in a message of an upload: `data` describes them, and `buffers` holds their contents.
fn files(data: &Value, buffers: Vec<Vec<u8>>) -> Vec<File> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let described = data["state"]["value"].as_array().into_iter().flatten();
    let describe = |file: &Value| File { name: text(&file["name"]), mime: text(&file["type"]), bytes: Vec::new() };
    let mut files: Vec<File> = described.map(describe).collect();
    for (path, bytes) in data["buffer_paths"].as_array().into_iter().flatten().zip(buffers) {
        if path[0] == "value"
            && path[2] == "content"
            && let Some(file) = path[1].as_u64().and_then(|at| files.get_mut(at as usize))
        {
            file.bytes = bytes;
        }
    }
    files
}

/// The data of a message, and its binary parts.
type Data = (Value, Vec<Vec<u8>>);

/// Waits for messages and takes all that came; of those that follow each other for one control, the last value.
fn next(pushes: &Receiver<(String, Data)>) -> Option<Vec<(String, Data)>> {
    let mut taken = vec![pushes.recv().ok()?];
    for push in pushes.try_iter() {
        let is_value = |(data, _): &Data| !data["state"]["value"].is_null();
        match taken.last_mut() {
            Some(last) if last.0 == push.0 && is_value(&last.1) && is_value(&push.1) => *last = push,
            _ => taken.push(push),
        }
    }
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drag_gives_its_last_value_and_no_click_is_lost() {
        let (sender, pushes) = mpsc::channel();
        let value = |v: f64| json!({"state": {"value": v}});
        let click = json!({"content": {"event": "click"}});
        for (id, data) in [("a", value(1.0)), ("a", value(2.0)), ("b", click.clone()), ("b", click.clone())] {
            sender.send((id.to_owned(), (data, vec![]))).unwrap();
        }
        let taken: Vec<Value> = next(&pushes).unwrap().into_iter().map(|(_, (data, _))| data).collect();
        assert_eq!(taken, [value(2.0), click.clone(), click]);
        drop(sender);
        assert_eq!(next(&pushes), None);
    }

    #[test]
    fn files_have_their_bytes() {
        let data = json!({
            "state": {"value": [{"name": "a.png", "type": "image/png", "size": 2}, {"name": "empty", "type": ""}]},
            "buffer_paths": [["value", 1, "content"], ["value", 0, "content"], ["value", 7, "content"]],
        });
        let file =
            |name: &str, mime: &str, bytes: &[u8]| File { name: name.into(), mime: mime.into(), bytes: bytes.to_vec() };
        let expected = [file("a.png", "image/png", &[1, 255]), file("empty", "", &[])];
        assert_eq!(files(&data, vec![vec![], vec![1, 255], vec![9]]), expected);
        assert_eq!(files(&json!({}), vec![]), []);
    }
}
