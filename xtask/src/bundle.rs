//! `cargo lab bundle` puts all that set-up fetches, and data, into one file; `cargo lab setup --bundle` unpacks it.
//! `bundle.py` writes and reads the file itself, because a bare machine has Python before it has this program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::files;
use crate::paths::{Flavour, Paths};
use crate::progress::{self, Clock};
use crate::setup::{self, compile, libtorch, python, weights};
use crate::steps::Step;
use crate::tools;

/// The Pythons that set-up accepts: a laptop may have any of them.
const PYTHONS: [&str; 5] = ["3.10", "3.11", "3.12", "3.13", "3.14"];

/// Writes the bundle to `file`, or to `kdlab-bundle.tar` in the current folder.
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
    files::remove(&fetched)?;
    let made = collect(paths, &fetched).and_then(|contents| pack(paths, &file, &contents));
    files::remove(&fetched)?;
    made?;
    let bytes = fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?.len();
    progress::line(&format!("{}: {}, in {clock}", file.display(), progress::size(bytes)));
    let name = file.file_name().unwrap_or_default().display();
    progress::line(&format!("on a machine without a network, in this repository: python3 xtask/bundle.py {name}"));
    Ok(())
}

/// Returns what goes into the bundle, as `PART/NAME=PATH`. Fetches into the folder `fetched` what is not on this
/// machine yet.
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
    for name in compile::SOURCES {
        add(&format!("kernel/sources/{name}"), &paths.root.join(name));
    }

    let step = Step { name: "bundle", what: String::new(), version: String::new(), paths };
    progress::line(&format!("[bundle] fetching wheels for Python {}", PYTHONS.join(", ")));
    let wheels = fetched.join("wheels");
    PYTHONS.iter().try_for_each(|python| python::fetch_wheels(&step, python, &wheels))?;
    add("wheels", &wheels);

    progress::line("[bundle] collecting crates");
    let crates = fetched.join("crates");
    let mut vendor = Command::new(tools::cargo());
    // With the source configuration of this machine: it may use mirrors, or have been set up from a bundle itself.
    vendor.args(["vendor", "--locked", "--versioned-dirs", "--respect-source-config"]).arg(&crates);
    // The kernel's rust-analyzer finds the types of a cell's variables only if it can read Rust's standard library.
    // It asks rustup for the library, and cargo for the crates of the library, whose manifest uses an unstable form.
    let library = rust_library(paths)?;
    vendor.arg("--sync").arg(library.join("Cargo.toml")).env("RUSTC_BOOTSTRAP", "1");
    add("rust-src/library", &library);
    step.command(tools::without_cargo_variables(&mut vendor).current_dir(&paths.root))?;
    add("crates", &crates);

    Ok(contents)
}

/// Returns the sources of Rust's standard library, as rustup installs them.
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
    let versions = json!({
        "venv": python::step(paths).version,
        "libtorch": libtorch::version(Flavour::Cpu),
        "weights": weights::SHA256,
    });
    let manifest = json!({ "commit": commit, "pythons": PYTHONS, "steps": versions });
    let mut pack = Command::new(paths.python());
    pack.arg(script(paths)).arg("--pack").args([&paths.root, file]).arg(manifest.to_string()).args(contents);
    run(&mut pack).with_context(|| format!("{} was not written", file.display()))
}

/// Unpacks `file` to where the steps of set-up look before they turn to the network.
pub fn unpack(paths: &Paths, file: &Path) -> Result<()> {
    let python = tools::python().context("no Python from 3.10 to 3.14 was found; `cargo lab doctor` says more")?;
    progress::line(&format!("[bundle] unpacking {}", file.display()));
    run(Command::new(python).arg(script(paths)).arg("--unpack").args([&paths.root, file]))
}

fn script(paths: &Paths) -> PathBuf {
    paths.root.join("xtask/bundle.py")
}

/// Runs `bundle.py`, whose output the user sees at once.
fn run(command: &mut Command) -> Result<()> {
    match tools::end_with_this_process(command).status().context("cannot start Python")? {
        status if status.success() => Ok(()),
        status => bail!("bundle.py ended with {status}; its message is above"),
    }
}
