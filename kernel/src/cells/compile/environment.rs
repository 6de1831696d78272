//! The environment variables that decide how a cell is compiled.

use std::ffi::OsString;

use serde_json::{Map, Value};

/// How variables begin that are new for each kernel, terminal, login or command, and of no concern to compilers.
const OF_A_SESSION: &str = "_ COLORTERM DBUS_ DESKTOP_ DISPLAY EVCXR_EXECUTION_SO_PATH \
    GNOME_ INVOCATION_ID JOURNAL_STREAM JPY_ KDLAB_ LESS LS_COLORS MIMALLOC_ OLDPWD PWD RUST_RECURSION_COUNT \
    RUST_SRC_PATH SESSION_ SHLVL SSH_ STY SYSTEMD_ TERM TMUX VSCODE_ WAYLAND_ WINDOWID XDG_ \
    CARGO_RESOLVER_LOCKFILE_PATH"; // the last names a copy that rust-analyzer makes

/// Where programs and libraries are found, at which cargo does not look either: `RUSTC` names the compiler. What
/// started the kernel adds to these, `cargo lab` or another front end.
pub const OF_THE_WAY: &str = "LD_LIBRARY_PATH PATH RUSTUP_";

/// How variables begin that cargo, rustc, build scripts, compilers and linkers go by. All others, and so the secrets of
/// whoever started the kernel, are neither looked at nor written down.
const OF_COMPILERS: &str = "AR CARGO CC CFLAGS CPATH CPLUS CPP CXX C_INCLUDE DYLD_ HOME LDFLAGS LD_ LIBRARY_PATH LIBTORCH \
    MACOSX_ OUT_DIR PATH PKG_CONFIG RUST SDKROOT";

pub fn environment() -> Map<String, Value> {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let found = std::env::vars_os().filter_map(text).filter(|(name, _)| !begins(name, OF_A_SESSION));
    // A registry's token is of no use to a compilation.
    let found = found.filter(|(name, _)| begins(name, OF_COMPILERS) && !name.contains("TOKEN"));
    found.map(|(name, value)| (name, value.into())).collect()
}

pub fn begins(name: &str, with: &str) -> bool {
    with.split(' ').any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_compilers_go_by_is_noted() {
        let noted = |name: &str| begins(name, OF_COMPILERS) && !begins(name, OF_A_SESSION);
        assert!(["CARGO_HOME", "RUSTFLAGS", "LIBTORCH", "OUT_DIR", "CC"].into_iter().all(noted));
        assert!(!["AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "KDLAB_DATA", "DATABASE_URL"].into_iter().any(noted));
    }
}
