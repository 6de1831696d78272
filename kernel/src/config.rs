//! The configuration of a kernel: the file `kernel.toml` in the folder that holds evcxr's prelude.
//!
//! It names what the kernel cannot know of the crates in its notebooks. Without the file the kernel suits any notebook.
//! `kernel/README.md` describes the keys.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Name of the configuration file, beside `prelude.rs`.
pub const FILE: &str = "kernel.toml";

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What to do after variables were lost.
    pub after_loss: String,
    /// Beginnings of the names of environment variables that build scripts read.
    pub build_variables: Vec<String>,
    /// Crates in which the kernel need not look, or must not, by their names.
    pub crates: BTreeMap<String, Crate>,
    /// Advice on errors; the first one that fits is given.
    pub hints: Vec<Hint>,
    /// Texts before which the message of an error ends.
    pub message_ends: Vec<String>,
    /// Error types that hold nothing but a text. A failed `unwrap` is shown by that text alone.
    pub text_errors: Vec<String>,
    /// A statement that a kernel in reserve runs, so that rust-analyzer has read what it needs before the first cell.
    pub warm_up: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crate {
    /// The only dependencies whose types occur in the crate's interface. rust-analyzer is not shown the others.
    pub interface: Option<Vec<String>>,
    /// The crate is being edited: rust-analyzer is shown its `src` alone, and its compiled library may change.
    pub edited: bool,
    /// Types whose values cells keep in variables, by their paths.
    pub values: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hint {
    /// The advice fits an error that holds one of these.
    pub words: Vec<String>,
    pub hint: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            after_loss: "run the notebook again from its first cell".into(),
            build_variables: vec![],
            crates: BTreeMap::new(),
            hints: vec![],
            message_ends: vec![],
            text_errors: vec![],
            warm_up: "let warm_up = String::new();".into(),
        }
    }
}

impl Config {
    /// Reads the configuration from the folder that evcxr reads its own from.
    ///
    /// # Errors
    /// Where the file is there and cannot be understood.
    pub fn load() -> Result<Self> {
        evcxr::config_dir().map_or_else(|| Ok(Self::default()), |folder| Self::read(&folder.join(FILE)))
    }

    fn read(file: &Path) -> Result<Self> {
        match std::fs::read_to_string(file) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("cannot understand {}", file.display())),
            Err(_) => Ok(Self::default()),
        }
    }

    /// Returns the types of the crate, by its name in code, whose values cells keep in variables.
    pub fn values_of(&self, name: &str) -> &[String] {
        let found = self.crates.iter().find(|(own, _)| own.replace('-', "_") == name);
        found.map_or(&[], |(_, found)| found.values.as_slice())
    }

    /// Whether the library with this file name belongs to a crate that is being edited.
    pub fn is_edited(&self, library: &str) -> bool {
        let is_of = |name: &str| library.starts_with(&format!("lib{}-", name.replace('-', "_")));
        self.crates.iter().any(|(name, found)| found.edited && is_of(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_be_missing_and_must_not_be_misspelt() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join(FILE);
        assert_eq!(Config::read(&file).expect("defaults").hints.len(), 0);
        std::fs::write(&file, "after_loss = \"start over\"\n[crates.my-crate]\nedited = true\n").expect("written");
        let config = Config::read(&file).expect("it is understood");
        assert_eq!(config.after_loss, "start over");
        assert!(config.is_edited("libmy_crate-1.rlib") && !config.is_edited("libmy_crate_of_others-1.rlib"));
        std::fs::write(&file, "hint = []\n").expect("written");
        let error = format!("{:#}", Config::read(&file).expect_err("no such key"));
        assert!(error.contains("kernel.toml") && error.contains("hint"), "{error}");
    }

    /// The configuration that kdlab ships.
    #[test]
    fn every_configuration_of_this_repository_is_understood() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../prelude").join(FILE);
        assert!(file.is_file() && !Config::read(&file).expect("it is understood").hints.is_empty());
    }
}
