//! Changes to the notebook around the running cell.

use crate::{Link, Result};
use serde_json::{Value, json};

/// Removes what the running cell has shown so far. With `wait`, it stays until the cell shows something new, so that
/// nothing flickers.
///
/// Without the live kernel nothing happens.
///
/// ```
/// for step in 0..3 {
///     kdlab_client::clear_output(true)?;
///     println!("step {step}");
/// }
/// # Ok::<(), kdlab_client::Error>(())
/// ```
///
/// # Errors
/// When the kernel has ended or does not reply.
pub fn clear_output(wait: bool) -> Result<()> {
    ask(&json!({"clear_output": {"wait": wait}}))
}

/// Puts `text` into a new cell below the running one when that ends; with `replace`, into the running one itself.
///
/// Of several calls in a cell, the last one counts. Without the live kernel nothing happens.
///
/// ```
/// kdlab_client::set_next_input("let epochs = 20;", false)?;
/// # Ok::<(), kdlab_client::Error>(())
/// ```
///
/// # Errors
/// When no cell runs, or the kernel has ended or does not reply.
pub fn set_next_input(text: &str, replace: bool) -> Result<()> {
    ask(&json!({"set_next_input": {"text": text, "replace": replace}}))
}

/// Sends one request. A new connection belongs to the cell that runs now.
fn ask(request: &Value) -> Result<()> {
    Link::connect(|_| ()).map_or(Ok(()), |link| link.request(request))
}
