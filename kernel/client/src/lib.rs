#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod display;
mod link;
mod notebook;
mod watch;
mod widgets;

pub use display::{Bundle, Display};
pub use link::{Link, Push};
pub use notebook::{clear_output, set_next_input};
pub use watch::{Watch, interrupt, watch};
pub use widgets::{File, Panel, Widget};

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a request to the kernel failed, in a line.
///
/// `Debug` prints the same line as `Display`, because a notebook cell shows `Debug` for a failed `?`.
///
/// ```
/// let display = kdlab_client::Display::new();
/// if let Err(error) = display.show("hello") {
///     eprintln!("{error}"); // Such as "the live kernel closed the connection".
/// }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Error(String);

/// The result of a request to the kernel.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// Locks a mutex whose value stays usable after a thread panicked while holding it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
