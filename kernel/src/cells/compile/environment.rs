//! The environment variables that decide how a cell is compiled.

use std::ffi::OsString;

use serde_json::{Map, Value};

use crate::config::Config;

/// Variables that differ with each command, rust-analyzer or user, and that compilers do not read.
const OF_A_COMMAND: &str = "CARGO_RESOLVER_LOCKFILE_PATH RUST_BACKTRACE RUST_RECURSION_COUNT RUST_SRC_PATH";

/// Search paths of programs and libraries, which differ between frontends. cargo does not compare them either,
/// because `RUSTC` names the compiler.
pub const OF_THE_WAY: &str = "LD_LIBRARY_PATH PATH RUSTUP_";

/// Beginnings of the variables that cargo, rustc, build scripts, compilers and linkers read. All others, such as the
/// user's secrets, are neither compared nor written down. Nor is `HOME`, because `CARGO_HOME` is always set, and users
/// of an installation have the same compiled crates.
const OF_COMPILERS: &str = "AR CARGO CC CFLAGS CPATH CPLUS CPP CXX C_INCLUDE DYLD_ LDFLAGS LD_ LIBRARY_PATH MACOSX_ \
    OUT_DIR PATH PKG_CONFIG RUST SDKROOT";

pub fn environment(config: &Config) -> Map<String, Value> {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let found = std::env::vars_os().filter_map(text).filter(|(name, _)| !begins(name, OF_A_COMMAND));
    // A compilation does not need the token of a registry.
    let found = found.filter(|(name, _)| concerns_compilers(name, config) && !name.contains("TOKEN"));
    found.map(|(name, value)| (name, value.into())).collect()
}

fn concerns_compilers(name: &str, config: &Config) -> bool {
    begins(name, OF_COMPILERS) || config.build_variables.iter().any(|start| name.starts_with(start))
}

pub fn begins(name: &str, with: &str) -> bool {
    with.split(' ').any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_compilers_go_by_is_recorded() {
        let config = Config { build_variables: vec!["LIBTORCH".into()], ..Config::default() };
        let recorded = |name: &str| concerns_compilers(name, &config) && !begins(name, OF_A_COMMAND);
        assert!(["CARGO_HOME", "RUSTFLAGS", "LIBTORCH", "OUT_DIR", "CC"].into_iter().all(recorded));
        let others =
            ["AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "GITHUB_TOKEN", "HOME", "RUST_BACKTRACE", "RUST_SRC_PATH"];
        assert!(!others.into_iter().any(recorded));
        assert!(!concerns_compilers("LIBTORCH", &Config::default()));
    }
}
