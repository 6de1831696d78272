//! `cargo lab bundle`: all that set-up fetches, and data, in one file; and what set-up takes from such a file.
//! The file itself is written and read by `bundle.py`, for a bare machine has Python before it has this program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::paths::{self, Flavour, Paths};
use crate::progress::{self, Clock};
use crate::setup;
use crate::steps::{self, Step};

/// The Pythons that set-up accepts: nobody knows which one a laptop has.
const PYTHONS: [&str; 5] = ["3.10", "3.11", "3.12", "3.13", "3.14"];
/// What the kernel is compiled from, beside the crates.
const KERNEL_SOURCES: [&str; 3] = ["kernel/src", "kernel/Cargo.toml", "Cargo.lock"];

pub fn make(paths: &Paths, file: Option<&Path>) -> Result<()> {
    setup::set_up(paths, None)?;
    if paths.flavour() == Some(Flavour::Cuda) {
        bail!("a bundle holds libtorch for the CPU, and here it is for CUDA: run `cargo lab setup --cpu` first");
    }
    let clock = Clock::start();
    let file = file.unwrap_or(Path::new("kdlab-bundle.tar"));
    let file = std::path::absolute(file).with_context(|| format!("cannot make {} absolute", file.display()))?;
    let folder = file.parent().filter(|folder| folder.is_dir());
    if folder.is_none() || file.is_dir() {
        bail!("{} cannot be written: name a file in a folder that is there", file.display());
    }
    let fetched = paths.kdlab.join("bundle.fetched");
    steps::remove(&fetched)?;
    let made = collect(paths, &fetched).and_then(|contents| pack(paths, &file, &contents));
    steps::remove(&fetched)?;
    made?;
    let bytes = fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?.len();
    progress::line(&format!("{}: {}, in {clock}", file.display(), progress::size(bytes)));
    let name = file.file_name().unwrap_or_default().display();
    progress::line(&format!("on a machine without a network, in this repository: python3 xtask/bundle.py {name}"));
    Ok(())
}

/// What goes into the bundle, as `PART/NAME=PATH`; what is not on this machine yet is put into the folder `fetched`.
fn collect(paths: &Paths, fetched: &Path) -> Result<Vec<String>> {
    let mut contents = Vec::new();
    let mut add = |place: &str, path: &Path| contents.push(format!("{place}={}", path.display()));
    let cache = paths.cache()?;
    let datasets: Vec<(String, PathBuf)> = match paths.data() {
        Some(data) => {
            let name = data.file_name().map_or("own".into(), |name| name.to_string_lossy().replace('=', "_"));
            vec![(format!("data/{name}"), data)]
        }
        None => ["cifar-10-batches-bin", "fashion-mnist"]
            .map(|name| (format!("cache/{name}"), cache.join(name)))
            .into_iter()
            .filter(|(_, path)| path.is_dir())
            .collect(),
    };
    if datasets.is_empty() {
        bail!("no data in {}: `cargo lab run 1` fetches some; or set KDLAB_DATA to your own", cache.display());
    }
    for (place, path) in &datasets {
        progress::line(&format!("[bundle] data: {}", path.display()));
        add(place, path);
    }
    add("cache/weights", &cache.join("weights"));
    add("libtorch", &paths.libtorch());
    add("kernel/kdlab-kernel", &paths.kernel());
    for name in KERNEL_SOURCES {
        add(&format!("kernel/sources/{name}"), &paths.root.join(name));
    }

    let step = Step { name: "bundle", what: String::new(), version: String::new(), paths };
    progress::line(&format!("[bundle] fetching wheels for Python {}", PYTHONS.join(", ")));
    let wheels = fetched.join("wheels");
    PYTHONS.iter().try_for_each(|python| setup::fetch_wheels(&step, python, &wheels))?;
    add("wheels", &wheels);

    progress::line("[bundle] collecting crates");
    let crates = fetched.join("crates");
    let mut vendor = Command::new(paths::cargo());
    // By the source configuration of this machine: it may have mirrors, or have been set up from a bundle itself.
    vendor.args(["vendor", "--locked", "--versioned-dirs", "--respect-source-config"]).arg(&crates);
    // The kernel's rust-analyzer tells the types of a cell's variables only where it can read Rust's own library, for which
    // it asks rustup, and has cargo find the crates of that library, whose manifest is of unstable form.
    let library = rust_library(paths)?;
    vendor.arg("--sync").arg(library.join("Cargo.toml")).env("RUSTC_BOOTSTRAP", "1");
    add("rust-src/library", &library);
    step.command(paths::as_without_cargo(&mut vendor).current_dir(&paths.root))?;
    add("crates", &crates);

    Ok(contents)
}

/// The sources of Rust's own library, as rustup installs them.
fn rust_library(paths: &Paths) -> Result<PathBuf> {
    if let Some(library) = paths.rust_library() {
        return Ok(library);
    }
    let found = Command::new("rustc").args(["--print", "sysroot"]).output().context("cannot start rustc")?;
    let library = Path::new(String::from_utf8_lossy(&found.stdout).trim()).join("lib/rustlib/src/rust/library");
    if !library.join("Cargo.lock").is_file() {
        bail!("{} holds no sources of Rust's library: run `rustup component add rust-src`", library.display());
    }
    Ok(library)
}

fn pack(paths: &Paths, file: &Path, contents: &[String]) -> Result<()> {
    progress::line("[bundle] packing");
    let git = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(&paths.root).output().ok();
    let commit = git.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let manifest = json!({ "commit": commit, "pythons": PYTHONS, "steps": setup::bundled_versions(paths) });
    let mut pack = Command::new(paths.python());
    pack.arg(script(paths)).arg("--pack").args([&paths.root, file]).arg(manifest.to_string()).args(contents);
    run(&mut pack).with_context(|| format!("{} was not written", file.display()))
}

/// Unpacks `file` to where the steps of set-up look before they turn to the network.
pub fn unpack(paths: &Paths, file: &Path) -> Result<()> {
    let python = setup::find_python().context("no Python from 3.10 to 3.14 was found; `cargo lab doctor` says more")?;
    progress::line(&format!("[bundle] unpacking {}", file.display()));
    run(Command::new(python).arg(script(paths)).arg("--unpack").args([&paths.root, file]))
}

fn script(paths: &Paths) -> PathBuf {
    paths.root.join("xtask/bundle.py")
}

/// Its output is seen as it comes.
fn run(command: &mut Command) -> Result<()> {
    match crate::steps::ends_with_us(command).status().context("cannot start Python")? {
        status if status.success() => Ok(()),
        status => bail!("bundle.py ended with {status}; its message is above"),
    }
}

/// Where steps look first, for people.
pub fn source(paths: &Paths) -> &'static str {
    if paths.bundle().is_dir() { "the bundle" } else { "PyPI" }
}

/// A part of the bundle, where there is one that holds what `step` wants.
pub fn part(step: &Step, name: &str) -> Option<PathBuf> {
    let dir = step.paths.bundle().join(name);
    let manifest = fs::read_to_string(step.paths.bundle().join("manifest.json")).ok()?;
    let manifest: Value = serde_json::from_str(&manifest).ok()?;
    let found = manifest["steps"][step.name].as_str()?;
    if found != step.version {
        let wanted = &step.version;
        progress::line(&format!("[{}] the bundle holds {found}, but this is wanted: {wanted}; fetching it", step.name));
        return None;
    }
    dir.is_dir().then_some(dir)
}

/// The bundle's kernel, if it is of these sources and starts on this machine.
pub fn kernel(paths: &Paths) -> Option<PathBuf> {
    let dir = paths.bundle().join("kernel");
    let kernel = dir.join("kdlab-kernel");
    // Without a file to read, the kernel ends with an error of its own. The loader's, of a C library that is too old, has
    // another form.
    let output = Command::new(&kernel).arg("no-such-file").output().ok()?;
    let why = if !output.stderr.starts_with(b"Error:") {
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    } else if KERNEL_SOURCES.iter().any(|name| files(&dir.join("sources").join(name)) != files(&paths.root.join(name)))
    {
        "its sources have changed since".into()
    } else {
        return Some(kernel);
    };
    progress::line(&format!("[kernel] the bundle's kernel cannot be used: {why}"));
    None
}

/// All files at or below a path, by their names.
fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(path: &Path, name: PathBuf, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            walk(&entry.path(), name.join(entry.file_name()), found);
        }
        if let Ok(bytes) = fs::read(path) {
            found.insert(name, bytes);
        }
    }
    let mut found = BTreeMap::new();
    walk(path, PathBuf::new(), &mut found);
    found
}

/// Puts the bundle's data and weights where the crate looks for them, unless there are some.
pub fn fill_cache(paths: &Paths) -> Result<()> {
    let bundled = paths.bundle().join("cache");
    for folder in fs::read_dir(&bundled).into_iter().flatten().flatten() {
        let target = paths.cache()?.join(folder.file_name());
        steps::create_dir(Some(&target))?;
        for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            place(&file.path(), &target.join(file.file_name()))?;
        }
    }
    Ok(())
}

/// One file, whole or not at all; a second name for it where the file system allows.
fn place(from: &Path, to: &Path) -> Result<()> {
    if to.exists() || fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let beside = to.with_extension(format!("{}.part", std::process::id()));
    let copied = fs::copy(from, &beside).and_then(|_| fs::rename(&beside, to));
    copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A repository set up from a bundle whose kernel says this when it starts.
    fn scene(says: &str) -> (tempfile::TempDir, Paths) {
        let folder = tempfile::tempdir().expect("the temporary folder can be written");
        let root = folder.path().to_path_buf();
        let paths = Paths { kdlab: root.join(".kdlab"), root };
        for base in [paths.root.clone(), paths.bundle().join("kernel/sources")] {
            fs::create_dir_all(base.join("kernel/src/deep")).expect("it can be made");
            for name in ["kernel/src/deep/a.rs", "kernel/Cargo.toml", "Cargo.lock"] {
                fs::write(base.join(name), name).expect("it can be written");
            }
        }
        let kernel = paths.bundle().join("kernel/kdlab-kernel");
        fs::write(&kernel, format!("#!/bin/sh\necho \"{says}\" >&2\nexit 1\n")).expect("it can be written");
        fs::set_permissions(&kernel, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
        fs::write(paths.bundle().join("manifest.json"), r#"{"steps": {"venv": "1"}}"#).expect("it can be written");
        (folder, paths)
    }

    #[test]
    fn the_kernel_is_taken_where_it_starts_and_is_of_these_sources() {
        let (_folder, paths) = scene("Error: cannot read no-such-file");
        assert!(kernel(&paths).is_some());
        fs::write(paths.root.join("kernel/src/deep/a.rs"), "changed").expect("it can be written");
        assert_eq!(kernel(&paths), None);
        let (_folder, paths) = scene("kdlab-kernel: version GLIBC_9.99 not found");
        assert_eq!(kernel(&paths), None);
        fs::remove_dir_all(paths.bundle()).expect("it is there");
        assert_eq!(kernel(&paths), None);
    }

    #[test]
    fn a_part_is_taken_for_the_versions_it_was_made_for() {
        let (_folder, paths) = scene("");
        fs::create_dir_all(paths.bundle().join("wheels")).expect("it can be made");
        let step = |version: &str| Step { name: "venv", what: String::new(), version: version.into(), paths: &paths };
        assert!(part(&step("1"), "wheels").is_some());
        assert_eq!(part(&step("2"), "wheels"), None);
        assert_eq!(part(&step("1"), "libtorch"), None);
    }
}
