//! The private folder of a running kernel, and the environment variables by which the kernel's processes find each
//! other.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Names the private folder with the sockets; set in the interpreter and its children.
pub const FOLDER: &str = "LIVE_KERNEL_FOLDER";

/// Names the file descriptor of the lock of the build directory; set in the process that builds there.
pub const LOCK: &str = "LIVE_KERNEL_LOCK";

/// Holds the user's own `CARGO_HOME`, because the kernel's points to a folder with links to this program.
pub const CARGO_HOME: &str = "LIVE_KERNEL_CARGO_HOME";

/// The path of the socket for links, and the token that a link sends first.
pub const SOCKET: &str = "LIVE_KERNEL_SOCKET";
pub const TOKEN: &str = "LIVE_KERNEL_TOKEN";

/// Maximal length of the folder's path. The path of a socket has at most 103 bytes on macOS, 107 on Linux.
const LONGEST: usize = 85;

/// Makes the folder among the user's temporary files, or in `/tmp` where the path would be too long for a socket.
pub fn make() -> Result<tempfile::TempDir> {
    let temporary = std::env::temp_dir();
    let fits = temporary.as_os_str().len() + "/kdlab-123456".len() <= LONGEST;
    let place = if fits { temporary } else { PathBuf::from("/tmp") };
    let made = tempfile::Builder::new().prefix("kdlab-").tempdir_in(&place);
    made.with_context(|| {
        format!("cannot make a folder for sockets in {}; set TMPDIR to a folder of yours", place.display())
    })
}

/// Returns the socket for links.
pub fn link_socket(folder: &Path) -> PathBuf {
    folder.join("cells")
}

/// Returns the socket at which each new child hands over its streams.
pub fn child_socket(folder: &Path) -> PathBuf {
    folder.join("child")
}

/// Returns the library of Rust that rust-analyzer reads: a link.
pub fn shown_library(folder: &Path) -> PathBuf {
    folder.join("library")
}

/// Returns a link to the library that the shown one is to be.
pub fn hidden_library(folder: &Path) -> PathBuf {
    folder.join("library.hidden")
}

/// Shows the hidden library.
pub fn show_library(folder: &Path) {
    // Always but the first time, there is none.
    let _ = std::fs::rename(hidden_library(folder), shown_library(folder));
}
