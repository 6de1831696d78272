//! The folder where kdlab keeps data and weights.

use std::path::PathBuf;

/// The path in an environment variable; `None` if it is unset or empty.
pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The folder where kdlab keeps data and weights: `KDLAB_CACHE`; without it, `kdlab` in the user's cache folder
/// (`dirs::cache_dir`), or in the folder for temporary files.
pub(crate) fn cache_folder() -> PathBuf {
    variable("KDLAB_CACHE").unwrap_or_else(|| dirs::cache_dir().unwrap_or_else(std::env::temp_dir).join("kdlab"))
}
