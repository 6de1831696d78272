//! Output with an id, which later calls replace in place.

use crate::{Link, Result, lock};
use serde_json::{Map, Value, json};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Mutex;

/// One piece of output in several representations: a MIME bundle with metadata. A frontend shows the richest one that
/// it knows.
///
/// ```
/// use kdlab_client::Bundle;
/// let chart = Bundle::text("loss 0.3").with("image/svg+xml", "<svg></svg>").with("text/html", "<b>0.3</b>");
/// assert_eq!(chart.data["text/plain"], "loss 0.3");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bundle {
    /// The forms by MIME type.
    pub data: Map<String, Value>,
    /// Metadata by MIME type, such as `{"width": 640, "height": 360, "alt": "a line"}` for an image.
    pub metadata: Map<String, Value>,
}

impl Bundle {
    /// Makes a bundle of plain text, which is also what appears where nothing is live.
    pub fn text(text: impl Into<String>) -> Self {
        Self::default().with("text/plain", text.into())
    }

    /// Describes an image for readers who do not see it: as `alt` in the metadata of its form `mime`, which nbconvert
    /// reads, and as plain text where there is none yet.
    ///
    /// ```
    /// use kdlab_client::Bundle;
    /// let chart = Bundle::default().with("image/svg+xml", "<svg></svg>").with_alt("image/svg+xml", "the loss falls");
    /// assert_eq!(chart.metadata["image/svg+xml"]["alt"], "the loss falls");
    /// assert_eq!(chart.data["text/plain"], "the loss falls");
    /// ```
    pub fn with_alt(mut self, mime: &str, alt: &str) -> Self {
        match self.metadata.entry(mime).or_insert_with(|| json!({})) {
            Value::Object(metadata) => drop(metadata.insert("alt".into(), json!(alt))),
            other => *other = json!({ "alt": alt }),
        }
        self.data.entry("text/plain").or_insert_with(|| json!(alt));
        self
    }

    /// Adds a form: text, or binary content such as `image/png` in base64.
    pub fn with(mut self, mime: &str, content: impl Into<Value>) -> Self {
        self.data.insert(mime.to_owned(), content.into());
        self
    }
}

impl From<&Bundle> for Bundle {
    fn from(bundle: &Bundle) -> Self {
        bundle.clone()
    }
}

impl From<&str> for Bundle {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Bundle {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

/// A place in the output of the cell that shows it first; each further [`Display::show`] replaces what it shows.
///
/// Without the live kernel it prints the plain text whenever that changes.
///
/// ```
/// use kdlab_client::Display;
/// let display = Display::new();
/// for step in 0..3 {
///     display.show(format!("step {step}"))?;
/// }
/// # Ok::<(), kdlab_client::Error>(())
/// ```
pub struct Display {
    link: Option<Link>,
    id: String,
    /// The text shown last.
    shown: Mutex<Option<String>>,
}

impl Display {
    /// Makes a display on a connection of its own.
    #[expect(clippy::new_without_default, reason = "it connects")]
    pub fn new() -> Self {
        Self::on(Link::connect(|_| ()).as_ref())
    }

    /// Makes a display on a connection that is there; `None` prints.
    ///
    /// ```
    /// use kdlab_client::{Display, Link};
    /// let link = Link::connect(|_| ());
    /// let (chart, table) = (Display::on(link.as_ref()), Display::on(link.as_ref()));
    /// ```
    pub fn on(link: Option<&Link>) -> Self {
        Self { link: link.cloned(), id: new_id(), shown: Mutex::default() }
    }

    /// Shows `content` in the place of what it showed before: a [`Bundle`], a text, or what a crate turns into a
    /// bundle, such as a figure of kdlab.
    ///
    /// # Errors
    /// When the kernel refuses the bundle, has ended or does not reply. Without the live kernel there is no error.
    pub fn show(&self, content: impl Into<Bundle>) -> Result<()> {
        self.show_bundle(&content.into())
    }

    fn show_bundle(&self, bundle: &Bundle) -> Result<()> {
        let text = bundle.data.get("text/plain").and_then(Value::as_str).unwrap_or_default();
        // Held until the kernel replies: the first of two threads opens the display, the other one replaces it.
        let mut shown = lock(&self.shown);
        match &self.link {
            Some(link) => link.request(&json!({"display": {
                "id": self.id, "update": shown.is_some(), "data": bundle.data, "metadata": bundle.metadata,
            }}))?,
            None if shown.as_deref() != Some(text) => println!("{text}"),
            None => {}
        }
        *shown = Some(text.to_owned());
        Ok(())
    }
}

/// Returns 32 random hexadecimal digits: an id unlike any other, in this kernel and in those before it.
pub(crate) fn new_id() -> String {
    let number = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", number(), number())
}
