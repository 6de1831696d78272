//! Where kdlab keeps data and weights.

use std::path::PathBuf;

/// A set and non-empty environment variable that holds a path.
pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// Where kdlab keeps data and weights: `KDLAB_CACHE`, else `kdlab` in the user's cache folder, else in the
/// system's folder for temporary files.
pub fn cache_folder() -> PathBuf {
    cache_folder_on(std::env::consts::OS, &variable)
}

fn cache_folder_on(os: &str, variable: &dyn Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let user = || match os {
        "macos" => variable("HOME").map(|h| h.join("Library/Caches")),
        "windows" => variable("LOCALAPPDATA"),
        // The XDG specification has relative paths ignored.
        _ => variable("XDG_CACHE_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| variable("HOME").map(|h| h.join(".cache"))),
    };
    variable("KDLAB_CACHE").unwrap_or_else(|| user().unwrap_or_else(std::env::temp_dir).join("kdlab"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_cache_is_where_the_system_wants_it() {
        let place = |os: &str, set: &[(&str, &str)]| {
            cache_folder_on(os, &|name| set.iter().find(|s| s.0 == name).map(|s| PathBuf::from(s.1)))
        };
        let (home, xdg) = (("HOME", "/h"), ("XDG_CACHE_HOME", "/x"));
        assert_eq!(place("linux", &[home]), Path::new("/h/.cache/kdlab"));
        assert_eq!(place("linux", &[home, xdg]), Path::new("/x/kdlab"));
        assert_eq!(place("linux", &[home, ("XDG_CACHE_HOME", "x")]), Path::new("/h/.cache/kdlab"));
        assert_eq!(place("macos", &[home, xdg]), Path::new("/h/Library/Caches/kdlab"));
        assert_eq!(place("macos", &[home, ("KDLAB_CACHE", "/k")]), Path::new("/k"));
        assert_eq!(place("linux", &[]), std::env::temp_dir().join("kdlab"));
    }
}
