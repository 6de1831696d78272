//! The private folder of a running kernel: its sockets, and the variables by which the kernel's processes find them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Names the private folder of the sockets; set in the inner process and its children.
pub const FOLDER: &str = "LIVE_KERNEL_FOLDER";

/// Names the file descriptor of the lock of the build directory, for the process that builds there.
pub const LOCK: &str = "LIVE_KERNEL_LOCK";

/// The user's own `CARGO_HOME`: the kernel's points to a folder with links to this program.
pub const CARGO_HOME: &str = "LIVE_KERNEL_CARGO_HOME";

/// Variables by which cells find their socket, and what they have to say there first.
pub const ADDRESS: &str = "KDLAB_LIVE";
pub const TOKEN: &str = "KDLAB_LIVE_TOKEN";

/// How long the path of the sockets' folder may be: that of a socket has at most 103 bytes on macOS, 107 on Linux.
const LONGEST: usize = 85;

/// In the user's folder for temporary files, or in `/tmp` where that one's path is too long for a socket.
pub fn make() -> Result<tempfile::TempDir> {
    let temporary = std::env::temp_dir();
    let fits = temporary.as_os_str().len() + "/kdlab-123456".len() <= LONGEST;
    let place = if fits { temporary } else { PathBuf::from("/tmp") };
    let made = tempfile::Builder::new().prefix("kdlab-").tempdir_in(&place);
    made.with_context(|| {
        format!("cannot make a folder for sockets in {}; set TMPDIR to a folder of yours", place.display())
    })
}

/// Where children that run cells report.
pub fn child_socket(folder: &Path) -> PathBuf {
    folder.join("child")
}
