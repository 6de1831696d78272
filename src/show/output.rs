//! What a cell emits: the forms of its result, and the pieces of HTML in them.

use base64::Engine;
use kdlab_client::Bundle;
use serde_json::{Value, json};
use std::fmt::Display;
use std::io::Write;

const PLAIN: &str = "text/plain";
/// MIME type of a form that holds the metadata of the others; the live kernel puts it where Jupyter has it.
const METADATA: &str = "application/vnd.live-kernel.metadata+json";

/// Hands one cell result to the kernel, in every form given. Outside a kernel its text is printed.
pub(super) fn emit(bundle: &Bundle) {
    let text = |content: &Value| content.as_str().unwrap_or_default().to_owned();
    let plain = bundle.data.get(PLAIN).map(text).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    if std::env::var_os("EVCXR_IS_RUNTIME").is_none() {
        // A closed stdout must not end the fit.
        let _ = writeln!(out, "{plain}");
        return;
    }
    let mut forms = vec![(PLAIN, plain)];
    forms.extend(bundle.data.iter().filter(|(mime, _)| *mime != PLAIN).map(|(mime, form)| (mime.as_str(), text(form))));
    // Only the live kernel understands this form.
    if !bundle.metadata.is_empty() && std::env::var_os("LIVE_KERNEL_SOCKET").is_some() {
        forms.push((METADATA, json!(bundle.metadata).to_string()));
    }
    for (mime, content) in forms {
        let _ = writeln!(out, "EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT");
    }
}

/// Emits a text in a monospace font.
pub(crate) fn emit_text(value: &dyn Display) {
    let text = value.to_string();
    let text = text.trim_end();
    let html = format!("<pre style=\"line-height:1.3;font-family:monospace\">{}</pre>", escape(text));
    emit(&Bundle::text(text).with("text/html", html));
}

/// Implements `evcxr_display` by the text of `Display`.
macro_rules! show_as_text {
    ($($shown:ty)*) => { $(impl $shown {
        /// Shows the value as text below the cell.
        pub fn evcxr_display(&self) {
            $crate::show::emit_text(self);
        }
    })* };
}

/// Implements `Debug` by the text of `Display`: evcxr shows `Debug` when a notebook's first cell ends with `?`.
macro_rules! debug_as_display {
    ($($shown:ty)*) => { $(impl std::fmt::Debug for $shown {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{self}")
        }
    })* };
}

pub(crate) use {debug_as_display, show_as_text};

/// Shows a cell's value by `{:?}` if its type has no `evcxr_display` of its own. evcxr does the same, but finds out by
/// compiling the cell twice.
pub trait ShowDebug: std::fmt::Debug {
    /// Shows the value as text below the cell.
    fn evcxr_display(&self) {
        emit(&Bundle::text(format!("{self:?}")));
    }
}

impl<T: std::fmt::Debug + ?Sized> ShowDebug for T {}

/// A picture for a cell or a display. It has its size, so that nothing below it moves when it is redrawn.
pub(super) fn picture(png: &[u8], [width, height]: [u32; 2], alt: &str, text: &str) -> Bundle {
    let png = base64::engine::general_purpose::STANDARD.encode(png);
    let mut bundle = Bundle::text(text).with("image/png", png);
    bundle.metadata.insert("image/png".into(), json!({"width": width, "height": height, "alt": alt}));
    bundle
}

/// The picture as HTML, for a widget.
pub(super) fn picture_html(bundle: &Bundle) -> String {
    let (png, size) = (bundle.data["image/png"].as_str().unwrap_or_default(), &bundle.metadata["image/png"]);
    let alt = escape(size["alt"].as_str().unwrap_or_default());
    format!(
        "<img src=\"data:image/png;base64,{png}\" width=\"{}\" height=\"{}\" alt=\"{alt}\" \
         style=\"max-width:100%;height:auto\">",
        size["width"], size["height"]
    )
}

/// A bar of progress over a line of text; `style` is CSS for the line.
pub(super) fn progress_html(done: impl Display, total: usize, line: &str, style: &str) -> String {
    format!(
        "<progress value=\"{done}\" max=\"{total}\" style=\"display:block;width:min(100%,880px)\"></progress>\
         <div style=\"font-family:var(--jp-code-font-family,monospace);\
         font-size:var(--jp-code-font-size,13px){style}\">{}</div>",
        escape(line)
    )
}

/// Text as HTML without a margin.
pub(super) fn lines_html(text: &str) -> String {
    format!("<pre style=\"margin:0\">{}</pre>", escape(text))
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
