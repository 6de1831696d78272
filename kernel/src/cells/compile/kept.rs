//! A cache of cargo's results: each is kept in a file, with all inputs that it depends on, and used until one of them
//! changes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use ra_ap_syntax::{AstNode, Edition, SourceFile};
use serde_json::{Value, json};

use crate::cells::compile::environment::{OF_THE_WAY, begins, environment};
use crate::cells::compile::level::without_level;
use crate::config::Config;

/// A file system may round the time of a change by as much, in nanoseconds.
const CLOCK: u128 = 20_000_000;

/// Stands for the build directory in kept files, so that they are valid in copies of it.
const BUILD_DIRECTORY: &str = "{cells}";

/// A result of cargo, kept in a file below the build directory, with everything that it depends on.
pub struct Kept {
    pub folder: PathBuf,
    pub file: PathBuf,
    settings: Value,
    begun: SystemTime,
}

impl Kept {
    /// Describes the result of `cargo ARGS` in `folder`, the build directory.
    pub fn of(folder: &Path, args: &[OsString], config: &Config) -> Self {
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        // evcxr writes dependencies in random order, so the lines are sorted.
        let (manifest, cargo) = (text("Cargo.toml"), text(".cargo/config.toml"));
        let manifest: BTreeSet<String> = manifest.lines().map(|line| without_level(line).to_owned()).collect();
        let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let mut environment = environment(config);
        environment.retain(|name, _| !begins(name, OF_THE_WAY));
        // Values may be secret, so only their hash is kept.
        let mut hasher = DefaultHasher::new();
        Value::Object(environment).to_string().replace(&*folder.to_string_lossy(), BUILD_DIRECTORY).hash(&mut hasher);
        let settings = json!([manifest, cargo, args, format!("{:016x}", hasher.finish())]);
        let mut hasher = DefaultHasher::new();
        settings.to_string().replace(&*folder.to_string_lossy(), BUILD_DIRECTORY).hash(&mut hasher);
        let file = folder.join(format!("target/kernel-kept/{:016x}.json", hasher.finish()));
        Self { folder: folder.to_owned(), file, settings, begun: SystemTime::now() }
    }

    pub fn find(&self) -> Option<Value> {
        let text = fs::read_to_string(&self.file).ok()?.replace(BUILD_DIRECTORY, &self.folder.to_string_lossy());
        let mut found: Value = serde_json::from_str(&text).ok()?;
        let same =
            |input: &Value| input[0].as_str().is_some_and(|path| input[1] == changed(Path::new(path)).to_string());
        let current = found["settings"] == self.settings && found["inputs"].as_array()?.iter().all(same);
        current.then(|| found["answer"].take())
    }

    /// Returns the path of the library that was, or may be, compiled from `code` in exactly these settings, and with
    /// the library `crates` of all crates. Returns `None` for a cell of the user's: only the prelude is worth keeping,
    /// because it comes again.
    pub fn library(&self, code: &str, crates: Option<&str>) -> Option<PathBuf> {
        // The second function that evcxr generates for code without statements is the prelude's.
        if !code.contains("run_user_code_1(\nmut x:") || code.contains("include") {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        fs::read(&self.file).ok()?.hash(&mut hasher);
        (items(code), crates).hash(&mut hasher);
        Some(self.file.with_extension(format!("{:016x}.so", hasher.finish())))
    }

    /// Keeps the library `made` from `code`. If that fails, the next kernel compiles it again.
    pub fn keep_library(&self, code: &str, crates: Option<&str>, made: &Path) {
        let _ = self.library(code, crates).map(|library| copy(made, &library));
    }

    /// Keeps `result` until one of the `inputs` changes.
    pub fn keep(&self, result: Value, inputs: BTreeSet<PathBuf>) -> Result<()> {
        let times: Vec<(PathBuf, u128)> = inputs.into_iter().map(|path| (path.clone(), changed(&path))).collect();
        let begun = self.begun.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        // cargo may have read an input before it changed. Libraries in the folder are new, because cargo has just
        // made them.
        let late = |time: u128| time + CLOCK >= begun;
        if times.iter().any(|(path, time)| late(*time) && !path.starts_with(&self.folder)) {
            return Ok(());
        }
        let times: Vec<_> = times.iter().map(|(path, time)| json!([path, time.to_string()])).collect();
        fs::create_dir_all(self.file.parent().unwrap_or(&self.file))?;
        let whole = json!({"settings": self.settings, "inputs": times, "answer": result}).to_string();
        write_private(&self.file, &whole.replace(&*self.folder.to_string_lossy(), BUILD_DIRECTORY))
            .with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// Returns whether a source on which the results in `folder` depend has changed after `since`.
pub fn has_changed(folder: &Path, since: SystemTime) -> bool {
    let since = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let kept = fs::read_dir(folder.join("target/kernel-kept")).into_iter().flatten().flatten();
    let kept = kept.filter_map(|file| serde_json::from_slice::<Value>(&fs::read(file.path()).ok()?).ok());
    let inputs = kept.flat_map(|kept| kept["inputs"].as_array().cloned().unwrap_or_default());
    let mut sources = inputs.filter_map(|input| input[0].as_str().map(str::to_owned));
    sources.any(|source| !source.starts_with(BUILD_DIRECTORY) && changed(Path::new(&source)) > since)
}

/// Writes a file that only the user can read.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    // The mode applies only to new files.
    let _ = fs::remove_file(path);
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// Returns a file's time of change in nanoseconds since 1970; 0 for a missing file.
fn changed(path: &Path) -> u128 {
    let time = fs::metadata(path).and_then(|found| found.modified()).ok();
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_nanos())
}

/// Replaces a file in one step. An earlier library may be loaded, so it must not be overwritten.
pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).and_then(|_| fs::rename(&beside, to))
}

/// Returns the items of a file in sorted order, because evcxr writes imports and macros in random order.
fn items(code: &str) -> BTreeSet<String> {
    let file = SourceFile::parse(code, Edition::CURRENT).tree();
    file.syntax().children().map(|item| item.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::compile::level::level_of_cells;

    #[test]
    fn opt_concerns_cells_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let manifest = folder.path().join("Cargo.toml");
        let write = |level: &str| fs::write(&manifest, format!("[profile.dev]\nopt-level = {level}\ndebug = false\n"));
        let file = || Kept::of(folder.path(), &[], &Config::default()).file;
        write("2").expect("it can be written");
        assert_eq!(level_of_cells(folder.path()), None);
        let before = file();
        write("3").expect("it can be written");
        for _ in 0..2 {
            assert_eq!(level_of_cells(folder.path()).as_deref(), Some("3"));
            let text = fs::read_to_string(&manifest).expect("it is there");
            assert!(text.contains("\nopt-level = 2 #") && text.ends_with("\ndebug = false\n"), "{text}");
            assert_eq!(file(), before, "what was kept serves at each level");
        }
    }

    #[test]
    fn what_was_kept_serves_in_a_copy_of_the_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dirs = ["template", "1"].map(|name| folder.path().join(name));
        let result = |dir: &Path| json!({"args": ["--out-dir", dir.join("deps")]});
        Kept::of(&dirs[0], &[], &Config::default()).keep(result(&dirs[0]), BTreeSet::new()).expect("it can be kept");
        fs::create_dir_all(&dirs[1]).expect("it can be made");
        fs::rename(dirs[0].join("target"), dirs[1].join("target")).expect("it can be moved");
        assert_eq!(Kept::of(&dirs[1], &[], &Config::default()).find(), Some(result(&dirs[1])));
    }

    #[test]
    fn the_prelude_s_library_is_kept_whatever_the_order_of_its_items() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let made = folder.path().join("libctx.so");
        let loaded = folder.path().join("libcode_1.so");
        fs::write(&made, "library").expect("it can be written");
        let kept = Kept::of(folder.path(), &[], &Config::default());
        let piece = |items: &str, number: u8, body: &str| format!("{items}\nfn run_user_code_{number}(\n{body}) {{}}");
        let prelude = |items: &str| piece(items, 1, "mut x: *mut u8");
        let found = |code: &str| kept.library(code, None).is_some_and(|library| library.is_file());
        kept.keep_library(&prelude("use a::b;\nuse c;"), None, &made);
        assert!(!found(&prelude("use a::b;\nuse c;")), "what it depends on is not known");
        kept.keep("result".into(), BTreeSet::new()).expect("it can be kept");
        let cells = [
            piece("use a;", 2, "mut x: *mut u8"),
            piece("use a;", 1, "y: *mut u8"),
            prelude("const A: &str = include_str!(b);"),
        ];
        for code in cells.iter().chain([&prelude("use a::b;\nuse c;")]) {
            kept.keep_library(code, None, &made);
        }
        assert!(found(&prelude("use c;\nuse a::b;")));
        assert!(!found(&prelude("use c;\nuse a;")));
        assert!(!cells.iter().any(|code| found(code)), "cells of the user's");
        fs::hard_link(&made, &loaded).expect("it can be linked");
        fs::write(&made, "an older library").expect("it can be written");
        copy(&kept.library(&prelude("use a::b;\nuse c;"), None).expect("it is kept"), &made).expect("it can be copied");
        assert_eq!(fs::read_to_string(&loaded).expect("it is there"), "an older library");
        kept.keep("another".into(), BTreeSet::new()).expect("it can be kept");
        assert!(!found(&prelude("use a::b;\nuse c;")), "compiled otherwise");
    }

    #[test]
    fn what_was_kept_holds_until_something_changes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("lib.rs");
        let write = |path: &Path, text: &str| fs::write(path, text).expect("it can be written");
        write(&folder.path().join("Cargo.toml"), "[package]");
        write(&source, "one");
        let dir = folder.path().join("cells");
        fs::create_dir_all(&dir).expect("it can be made");
        let of =
            |args: &[&str]| Kept::of(&dir, &args.iter().map(OsString::from).collect::<Vec<_>>(), &Config::default());
        std::thread::sleep(std::time::Duration::from_millis(50));
        let kept = of(&["build"]);
        assert!(kept.find().is_none());
        kept.keep("result".into(), [source.clone()].into()).expect("it can be kept");
        assert_eq!(of(&["build"]).find(), Some("result".into()));
        assert!(of(&["build", "--release"]).find().is_none());
        write(&source, "two");
        assert!(of(&["build"]).find().is_none(), "a source was edited");
        assert!(has_changed(&dir, SystemTime::UNIX_EPOCH) && !has_changed(&dir, SystemTime::now()));
        // The source changed after cargo was started, so the result may be about the old one.
        kept.keep("late".into(), [source.clone()].into()).expect("nothing fails");
        assert!(of(&["build"]).find().is_none());
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::remove_file(&source).expect("it is there");
        of(&["build"]).keep("without".into(), [source.clone()].into()).expect("it can be kept");
        assert_eq!(of(&["build"]).find(), Some("without".into()));
        write(&dir.join("Cargo.toml"), "[dependencies]");
        assert!(of(&["build"]).find().is_none(), "another dependency");
    }
}
