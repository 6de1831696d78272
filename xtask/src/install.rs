//! `cargo lab install`: an installation that all accounts of a machine share. It is a copy of the repository, set up at
//! its own place, with its own Rust and crates, which nobody writes afterwards. What users write is in folders of
//! their own ([`crate::installed`]).

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::paths::{self, Flavour, INSTALLED, INSTALLING, Paths};
use crate::progress::{self, Clock};
use crate::setup::{self, compile, jupyter, libtorch, weights};
use crate::{bundle, execute, files, tools};

/// What the kernel, the notebooks and set-up need of the repository.
const SOURCES: [&str; 16] = [
    ".cargo",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "board",
    "build.rs",
    "docs",
    "environment.md",
    "examples",
    "kernel",
    "notebooks",
    "prelude",
    "src",
];

/// The rest, which set-up itself needs.
const OF_SET_UP: &str = "xtask";

/// The notebook whose run computes what the course's notebooks have in common.
const COURSE: &str = r#"{"cells": [
{"cell_type": "code", "id": "a", "execution_count": null, "metadata": {}, "outputs": [],
"source": "let lab = Lab::open()?;\nlet data = lab.dataset()?;\nlet teacher = lab.teacher(&data)?;"},
{"cell_type": "code", "id": "b", "execution_count": null, "metadata": {}, "outputs": [],
"source": "for split in [&data.train, &data.validation, &data.test] { teacher.logits(split)?; }"}
], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
"#;

#[derive(Args)]
pub struct InstallArgs {
    /// The installation's folder, such as /opt/kdlab
    #[arg(long, value_name = "DIR")]
    prefix: PathBuf,
    /// Install libtorch for the CPU only, even if there is an NVIDIA driver
    #[arg(long)]
    cpu: bool,
    /// Install without a network, from a file that `cargo lab bundle` made
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Whose teacher to train beforehand: article, laptop or smoke [default: as `cargo lab run`]
    #[arg(long)]
    profile: Option<String>,
    /// Train no teacher: each account trains its own
    #[arg(long, conflicts_with = "profile")]
    no_course: bool,
}

/// Makes the installation, or brings it up to date.
pub fn run(source: &Paths, args: &InstallArgs) -> Result<()> {
    let clock = Clock::start();
    let root = std::path::absolute(&args.prefix).context("cannot find the current folder")?;
    let apart = |root: &Path| {
        if root.starts_with(&source.root) || source.root.starts_with(root) {
            bail!("{} and the repository must not lie within each other: choose another prefix", root.display());
        }
        Ok(())
    };
    apart(&root)?;
    files::create_dir(Some(&root))?;
    // The way to it may be a link.
    let root = root.canonicalize().with_context(|| format!("cannot open {}", root.display()))?;
    apart(&root)?;
    let foreign = fs::read_dir(&root).is_ok_and(|mut entries| entries.next().is_some());
    // A clone has changes of its own, which the copy would replace.
    if foreign && (!root.join(OF_SET_UP).is_dir() || root.join(".git").exists()) {
        bail!("{} holds other files: name a new or empty folder", root.display());
    }
    // SAFETY: there are no other threads yet.
    unsafe { env::set_var(INSTALLING, "1") };
    let paths = Paths::of(root);
    paths::check_root(&paths)?;
    // The folder itself is opened at the end.
    let everybody = paths.root.parent().is_none_or(is_passed);
    if !everybody {
        progress::line(&format!("note: other accounts cannot open {}", paths.root.display()));
    }

    progress::line(&format!("[install] copying the repository to {}", paths.root.display()));
    // What marks the folder as ours comes first, so that a copy that was interrupted goes on.
    for name in [&OF_SET_UP].into_iter().chain(&SOURCES) {
        files::copy(&source.root.join(name), &paths.root.join(name))?;
    }
    // The solutions.
    files::remove(&paths.root.join("notebooks/exercises/source"))?;
    files::create_dir(Some(&paths.kdlab))?;
    let bundle = [&paths, source].into_iter().any(|paths| paths.bundle().is_dir()) || args.bundle.is_some();
    rust(&paths, bundle)?;
    crates(source, &paths)?;
    seed(source, &paths)?;
    if let Some(file) = &args.bundle {
        bundle::unpack(&paths, file)?;
    }
    compile::install_from(&paths, source)?;
    environment(&paths, everybody)?;
    setup::set_up(&paths, args.cpu.then_some(Flavour::Cpu))?;
    jupyter::configure_venv(&paths)?;
    data(&paths)?;
    if !args.no_course {
        course(&paths, args.profile.as_deref())?;
    }
    let program = paths.root.join("bin/kdlab");
    files::create_dir(program.parent())?;
    files::remove(&program)?;
    symlink("../.kdlab/bin/lab", &program).with_context(|| format!("cannot make {}", program.display()))?;
    files::write(&paths.root.join(INSTALLED), "Kernels write nothing here, but to folders of their users.\n")?;
    allow_all(&paths.root).with_context(|| format!("cannot let others read {}", paths.root.display()))?;

    let size = progress::size(files::disk_usage(&paths.root));
    progress::line(&format!("installed in {clock}; {} holds {size}", paths.root.display()));
    progress::line(&format!("each account: {}, and `{0} doctor --user` checks it", program.display()));
    let spec = paths.venv().join("share/jupyter/kernels/kdlab");
    progress::line(&format!("in other Jupyters: jupyter kernelspec install --name kdlab {}", spec.display()));
    Ok(())
}

/// Copies the toolchain, which rustup keeps in somebody's home. The system's own is used where it is. A `bundle` holds
/// the sources of Rust's library.
fn rust(paths: &Paths, bundle: bool) -> Result<()> {
    let found = tools::first_line(Command::new("rustc").args(["--print", "sysroot"]));
    let sysroot = PathBuf::from(found.context("no rustc in PATH: install Rust from https://rustup.rs")?);
    if sysroot == paths.rust() {
        return Ok(());
    }
    if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() && !bundle {
        bail!("{} holds no sources of Rust's library: run `rustup component add rust-src`", sysroot.display());
    }
    if !sysroot.join("lib/rustlib/components").is_file() {
        files::remove(&paths.rust())?;
        return symlink(&sysroot, paths.rust()).with_context(|| format!("cannot link to {}", sysroot.display()));
    }
    // Through a link to the system's own, the copy would replace what is there.
    if paths.rust().is_symlink() {
        files::remove(&paths.rust())?;
    }
    progress::line(&format!("[install] copying Rust from {}", sysroot.display()));
    ["bin/cargo", "bin/rustc", "lib", "libexec"].iter().filter(|name| sysroot.join(name).exists()).try_for_each(
        |name| {
            files::create_dir(paths.rust().join(name).parent())?;
            files::copy(&sysroot.join(name), &paths.rust().join(name))
        },
    )
}

/// Copies the crates that cargo has fetched for the repository, so that it need not fetch them again.
fn crates(source: &Paths, paths: &Paths) -> Result<()> {
    let home = || PathBuf::from(tools::variable("HOME").unwrap_or_default()).join(".cargo");
    let home = tools::variable("CARGO_HOME").map_or_else(home, PathBuf::from);
    let settings = home.join("config.toml");
    // Such as a mirror. Others are to read it.
    if fs::read_to_string(&settings).is_ok_and(|text| !text.contains("token")) {
        files::create_dir(Some(&paths.cargo_home()))?;
        files::copy(&settings, &paths.cargo_home().join("config.toml"))?;
    }
    let lock = fs::read_to_string(source.root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let named = |line: &str, key: &str| line.strip_prefix(key)?.strip_suffix('"').map(str::to_owned);
    let mut wanted = Vec::new();
    for line in lock.lines() {
        if let Some(name) = named(line, "name = \"") {
            wanted.push(name);
        } else if let (Some(version), Some(last)) = (named(line, "version = \""), wanted.last_mut()) {
            *last += &format!("-{version}.crate");
        }
    }
    for registry in fs::read_dir(home.join("registry/cache")).into_iter().flatten().flatten() {
        let target = paths.cargo_home().join("registry");
        files::create_dir(Some(&target.join("index")))?;
        let cache = target.join("cache").join(registry.file_name());
        files::create_dir(Some(&cache))?;
        for file in wanted.iter().filter(|name| registry.path().join(name).is_file()) {
            files::copy(&registry.path().join(file), &cache.join(file))?;
        }
        let index = home.join("registry/index").join(registry.file_name());
        if index.is_dir() {
            files::copy(&index, &target.join("index").join(registry.file_name()))?;
        }
    }
    Ok(())
}

/// Copies what the repository has fetched already: libtorch, data and weights, or all of a bundle.
fn seed(source: &Paths, paths: &Paths) -> Result<()> {
    let offline = source.kdlab.join("offline.toml");
    if let Ok(text) = fs::read_to_string(offline) {
        files::copy(&source.bundle(), &paths.bundle())?;
        let text = text.replace(&*source.root.to_string_lossy(), &paths.root.to_string_lossy());
        files::write(&paths.kdlab.join("offline.toml"), &text)?;
    }
    let (from, to) = (source.libtorch(), paths.libtorch());
    if from.is_dir() && !from.is_symlink() && libtorch::step(source, Flavour::Cpu).is_done(&source.libtorch_cpu()) {
        progress::line(&format!("[install] copying libtorch from {}", from.display()));
        files::copy(&from, &to)?;
        files::copy(&source.stamp("libtorch"), &make_room(&paths.stamp("libtorch"))?)?;
    }
    let cache = source.cache()?;
    let weights = format!("weights/{}", weights::FILE);
    let datasets = ["cifar-10-batches-bin", "fashion-mnist"].into_iter().filter(|_| source.data().is_none());
    for name in datasets.chain([&*weights]).filter(|name| cache.join(name).exists()) {
        files::copy(&cache.join(name), &make_room(&paths.shared_cache().join(name))?)?;
    }
    Ok(())
}

/// Makes the folder in which this path lies.
fn make_room(path: &Path) -> Result<PathBuf> {
    files::create_dir(path.parent())?;
    Ok(path.to_owned())
}

/// Lets everything that starts from here work in the installation, as its users will.
fn environment(paths: &Paths, everybody: bool) -> Result<()> {
    if let Some(data) = tools::variable("KDLAB_DATA").map(PathBuf::from) {
        let data = data.canonicalize().with_context(|| format!("cannot open KDLAB_DATA={}", data.display()))?;
        if everybody && !is_open(&data) {
            bail!("other accounts cannot read KDLAB_DATA={}: move it, or let them (`chmod -R a+rX`)", data.display());
        }
    }
    let python = python(everybody)?;
    // What would be noted as the environment of the compiled crates, and differs for users.
    let foreign = ["CARGO_", "CC", "CFLAGS", "CXX", "LDFLAGS", "PKG_CONFIG", "RUST"];
    let kept = |name: &str| name.starts_with("CARGO_HTTP_") || name.starts_with("CARGO_NET_");
    // SAFETY: there are no other threads yet.
    unsafe {
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if foreign.iter().any(|start| text.starts_with(start)) && !kept(&text) {
                env::remove_var(&name);
            }
        }
        env::set_var("CARGO_HOME", paths.cargo_home());
        env::set_var("KDLAB_CACHE", paths.shared_cache());
        env::set_var("KDLAB_RUNS", paths.shared_runs());
        env::set_var("KDLAB_PYTHON", python);
        // Users have no such library of their own.
        env::remove_var("LIBTORCH");
    }
    tools::use_rust(&paths.rust());
    Ok(())
}

/// Returns a Python that users of the installation can start.
fn python(everybody: bool) -> Result<PathBuf> {
    let base = |python: &Path| {
        let script = "import os, sys; print(os.path.realpath(sys._base_executable))";
        tools::first_line(Command::new(python).args(["-c", script])).map(PathBuf::from)
    };
    let all = tools::pythons().filter_map(|python| base(&python));
    all.into_iter().find(|base| !everybody || is_open(base)).with_context(|| {
        let how = tools::how_to_install_python();
        format!("no Python from 3.10 to 3.14 that other accounts can start was found: {how}, or set KDLAB_PYTHON")
    })
}

/// Makes a link to the user's own data, if there is some.
fn data(paths: &Paths) -> Result<()> {
    let Some(data) = tools::variable("KDLAB_DATA").map(PathBuf::from) else { return Ok(()) };
    let data = data.canonicalize().with_context(|| format!("cannot open {}", data.display()))?;
    files::remove(&paths.shared_data())?;
    let link = paths.shared_data().join(data.file_name().unwrap_or_default());
    symlink(&data, make_room(&link)?).with_context(|| format!("cannot link to {}", data.display()))
}

/// Trains the course's teacher and computes its features and logits.
fn course(paths: &Paths, profile: Option<&str>) -> Result<()> {
    let profile = paths.profile(profile)?;
    let clock = Clock::start();
    progress::line(&format!("[course] the teacher of the profile {profile}, with its features and logits"));
    let notebook = paths.kdlab.join("course.ipynb");
    files::write(&notebook, COURSE)?;
    let done = execute::execute(paths, &notebook, &notebook, &profile);
    files::remove(&notebook)?;
    done.context("the teacher was not trained; `--no-course` installs without it")?;
    progress::line(&format!("[course] done in {clock}"));
    Ok(())
}

/// Returns whether every account can read this file or folder.
fn is_open(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    mode(&path) & 0o004 != 0 && path.parent().is_none_or(is_passed)
}

/// Returns whether every account can reach what is in this folder.
fn is_passed(folder: &Path) -> bool {
    folder.ancestors().all(|folder| mode(folder) & 0o001 != 0)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0, |found| found.permissions().mode())
}

/// Lets everybody read all of it, and nobody else write.
fn allow_all(path: &Path) -> std::io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return Ok(());
    }
    let mode = found.permissions().mode();
    let open = if found.is_dir() || mode & 0o100 != 0 { 0o555 } else { 0o444 };
    let wanted = (mode | open) & !0o022;
    if mode != wanted {
        fs::set_permissions(path, fs::Permissions::from_mode(wanted))?;
    }
    if found.is_dir() { fs::read_dir(path)?.flatten().try_for_each(|entry| allow_all(&entry.path())) } else { Ok(()) }
}
