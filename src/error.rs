//! The error type of the crate: one line that says what is wrong and what to do about it.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Everything that can go wrong in kdlab. `Debug` prints the same line as `Display`, because a notebook cell shows
/// `Debug` for a failed `?`.
#[derive(thiserror::Error)]
pub enum Error {
    /// An argument out of its range, or arguments that do not fit each other.
    #[error("{0}")]
    Input(String),
    /// A file or folder with unexpected content.
    #[error("{0}")]
    Data(String),
    /// The operating system refused: permissions, missing file, full disk.
    #[error("{0}")]
    Io(String),
    /// A download, or a group of processes, that failed.
    #[error("{0}")]
    Network(String),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),
    /// A loss that is no longer finite. The fit has restored the best weights so far.
    #[error("{0}")]
    Diverged(String),
    /// The user pressed Interrupt during a pass that is not a fit.
    #[error("{0}")]
    Interrupted(String),
}

/// Result with kdlab's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl Error {
    /// An I/O failure at a path, with a hint for a full disk or a missing permission.
    pub(crate) fn io(doing: &str, path: &Path, e: std::io::Error) -> Self {
        let hint = match e.kind() {
            std::io::ErrorKind::StorageFull => "; free some space or point KDLAB_CACHE / KDLAB_RUNS to another disk",
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                "; choose a folder you may write to (KDLAB_CACHE and KDLAB_RUNS name the lab's)"
            }
            std::io::ErrorKind::NotFound if doing == "writing" => "; choose a folder you may write to",
            std::io::ErrorKind::NotFound => "; check the path",
            std::io::ErrorKind::IsADirectory
            | std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::AlreadyExists => "; give the path of a file in a folder",
            _ => "",
        };
        Error::Io(format!("{doing} {}: {e}{hint}", path.display()))
    }
}

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        // libtorch appends a C++ stack trace; the first line holds the reason and the shapes.
        let text = e.to_string();
        let reason = text.lines().next().unwrap_or_default().trim();
        let reason = reason.strip_prefix("Internal torch error: ").unwrap_or(reason);
        Error::Torch(reason.to_owned() + &crate::gpu::advice(reason).unwrap_or_default())
    }
}

/// Locks a mutex whose value stays usable after a thread panicked while holding it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn a_full_disk_is_named_with_a_way_out() {
        let full = std::io::Error::from(ErrorKind::StorageFull);
        let text = Error::io("writing", Path::new("runs/x"), full).to_string();
        assert!(text.starts_with("writing runs/x: ") && text.contains("free some space"), "{text}");
    }

    #[test]
    fn a_path_that_leads_nowhere_is_named_with_a_way_out() {
        let error = |doing| Error::io(doing, Path::new("x"), ErrorKind::NotFound.into()).to_string();
        assert!(error("writing").ends_with("; choose a folder you may write to"));
        assert!(error("reading").starts_with("reading x: ") && error("reading").ends_with("; check the path"));
    }

    #[test]
    fn libtorch_errors_are_one_line() {
        let e = Error::from(tch::TchError::Torch("shape '[2]' is invalid\nframe #0: c10".into()));
        assert_eq!(format!("{e:?}"), "libtorch: shape '[2]' is invalid");
    }
}
