//! `cargo lab doctor`: what was found on this machine, and a fix for each problem.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::{self, Flavour, Paths};
use crate::progress;
use crate::setup::{self, libtorch, weights};
use crate::tools::{self, first_line};
use crate::{build_directories, files};

/// Bytes of disk that set-up and runs need besides what is installed.
const WANTED_DISK: u64 = 4_000_000_000;

struct Report {
    problems: usize,
}

impl Report {
    fn good(&self, what: &str, found: &str) {
        progress::line(&format!("  ok  {what:<14} {found}"));
    }

    /// Prints something to know that is no problem.
    fn note(&self, what: &str, found: &str) {
        progress::line(&format!("  --  {what:<14} {found}"));
    }

    fn bad(&mut self, what: &str, found: &str, fix: &str) {
        self.problems += 1;
        progress::line(&format!("  NO  {what:<14} {found}\n      {:<14} fix: {fix}", ""));
    }

    /// Prints what was found, or what is `missing` and how to fix it.
    fn found_or(&mut self, what: &str, found: Option<String>, missing: &str, fix: &str) {
        match found {
            Some(found) => self.good(what, &found),
            None => self.bad(what, missing, fix),
        }
    }
}

/// Prints the findings. `user`: those about the user's own folders, too.
///
/// # Errors
/// If something that is needed is missing.
pub fn examine(paths: &Paths, user: bool) -> Result<()> {
    let mut report = Report { problems: 0 };
    if let Err(error) = paths::check_root(paths) {
        let text = error.to_string();
        let (found, fix) = text.split_once("; ").unwrap_or((&text, "see above"));
        report.bad("path", found, fix);
    }
    if paths.installed
        && let Err(error) = crate::installed::prepare(paths)
    {
        report.bad("folders", &format!("{error:#}"), "see the lines below");
    }
    machine(&mut report);
    installed(paths, &mut report);
    data(paths, &mut report)?;
    if paths.installed {
        progress::line(&format!("  --  {:<14} {}", "installation", paths.root.display()));
    } else {
        disk(paths, &mut report);
    }
    if user || paths.installed {
        folders(paths, &mut report);
    }
    match report.problems {
        0 => {
            progress::line(if begun(paths) { "all is in place" } else { "ready for set-up" });
            Ok(())
        }
        1 => bail!("one problem; its fix is above"),
        n => bail!("{n} problems; their fixes are above"),
    }
}

fn machine(report: &mut Report) {
    let rust = first_line(Command::new("rustc").arg("--version"));
    report.found_or("Rust", rust, "not found", "install it from https://rustup.rs");
    let python = tools::python();
    let version = python.and_then(|python| first_line(Command::new(python).arg("--version")));
    let fix = tools::how_to_install_python();
    report.found_or("Python", version, "none from 3.10 to 3.14 with venv and ensurepip", &fix);
    let compiler = tools::compiler().and_then(|compiler| first_line(Command::new(compiler).arg("--version")));
    let fix = tools::how_to_install_compiler();
    report.found_or("C++ compiler", compiler, "not found", &fix);
}

/// Whether set-up has installed anything.
fn begun(paths: &Paths) -> bool {
    [paths.venv(), paths.libtorch(), paths.kernel()].iter().any(|part| part.exists())
}

fn installed(paths: &Paths, report: &mut Report) {
    if !begun(paths) {
        report.note("set-up", "not yet: `cargo lab` begins with it, and `cargo lab setup` does only that");
        if tools::nvidia_driver().is_some() {
            report.note("CUDA", "set-up takes libtorch for CUDA, 5 GB; `cargo lab setup --cpu` takes the one without");
        }
        return;
    }
    let setup_fix = if paths.installed { "ask who installed kdlab" } else { "run `cargo lab setup`" };
    let jupyter = first_line(Command::new(paths.python()).args(["-m", "jupyterlab", "--version"]));
    report.found_or("JupyterLab", jupyter, "not installed", setup_fix);

    let flavour = paths.flavour();
    let libtorch = paths.libtorch_cpu().exists().then(|| {
        let version = ["build-version", "version.py"]
            .iter()
            .find_map(|file| fs::read_to_string(paths.libtorch().join(file)).ok());
        let version = version.as_deref().and_then(version_in).unwrap_or_else(|| format!("{}?", libtorch::TORCH));
        let flavour = flavour.map_or("of unknown flavour".to_owned(), |flavour| format!("for {flavour}"));
        format!("{version} {flavour}, {}", paths.libtorch().display())
    });
    report.found_or("libtorch", libtorch, "not installed", setup_fix);
    let headers = paths.libtorch().join("include/ATen/ATen.h").exists().then(|| "with libtorch".to_owned());
    let headers_fix = "remove .kdlab/libtorch, then run `cargo lab setup`";
    report.found_or("C++ headers", headers, "missing, and kdlab compiles against them", headers_fix);
    cuda(paths, flavour, report);

    let kernel = (paths.kernel().exists() && paths.jupyter().join("kernels/kdlab/kernel.json").exists())
        .then(|| "Rust (kdlab), live, around evcxr_jupyter 0.22".to_owned());
    report.found_or("kernel", kernel, "not installed", setup_fix);
    let (all, taken) = build_directories::count(paths);
    let warm = (all > 0 || paths.installed && paths.template().is_dir())
        .then(|| format!("{all} warm build directories, {taken} in use"));
    report.found_or("build dirs", warm, "no warm build directory", setup_fix);
    if let Some(first) = build_directories::damaged(&paths.template()).first() {
        report.bad(
            "build template",
            &format!("{first} is missing or damaged"),
            "run `cargo lab setup`: it compiles it again",
        );
    }
    for (number, first, taken) in build_directories::broken(paths) {
        let fix = if taken { "restart the kernel that uses it" } else { "run `cargo lab setup`, or start a kernel" };
        report.bad("build dirs", &format!("build directory {number}: {first} is missing or damaged"), fix);
    }
    let current = paths.installed || flavour.is_some_and(|flavour| setup::is_set_up(paths, flavour).unwrap_or(false));
    if all > 0 && !current {
        report
            .note("up to date", "no: sources or versions have changed; `cargo lab setup` or the next run updates them");
    }
}

fn cuda(paths: &Paths, flavour: Option<Flavour>, report: &mut Report) {
    let query = ["--query-gpu=name,memory.total", "--format=csv,noheader"];
    let gpus = Command::new("nvidia-smi").args(query).output().ok().filter(|output| output.status.success());
    let gpus: Vec<String> =
        gpus.map(|o| String::from_utf8_lossy(&o.stdout).lines().map(str::to_owned).collect()).unwrap_or_default();
    match (tools::nvidia_driver(), flavour) {
        (Some(driver), Some(Flavour::Cpu)) => {
            report.note(
                "CUDA",
                &format!("{driver}, but libtorch is for the CPU; `cargo lab setup --cuda` installs the one for CUDA"),
            );
        }
        (Some(driver), Some(Flavour::Cuda)) if sees_no_gpu(paths) => {
            let found = format!("{driver}, but libtorch sees no GPU: the CPU will be used");
            report.bad("CUDA", &found, "libtorch is for CUDA 13: update the driver to 580 or newer");
        }
        (Some(driver), _) => report.good("CUDA", &driver),
        (None, Some(Flavour::Cuda)) => {
            report.note("CUDA", "libtorch is for CUDA but there is no NVIDIA driver: the CPU will be used");
        }
        (None, _) => report.note("CUDA", "no NVIDIA driver; notebooks use the CPU"),
    }
    for gpu in gpus {
        report.good("GPU", &gpu);
    }
}

/// Asks Python's torch, if its libtorch is the crate's. If `CUDA_VISIBLE_DEVICES` is set, the user hid the GPUs on
/// purpose.
fn sees_no_gpu(paths: &Paths) -> bool {
    let whole = |path: &Path| path.canonicalize().ok();
    let same = whole(&paths.libtorch()).zip(whole(&paths.venv())).is_some_and(|(torch, venv)| torch.starts_with(venv));
    if !same || std::env::var_os("CUDA_VISIBLE_DEVICES").is_some() {
        return false;
    }
    let ask = "import torch; print(torch.cuda.is_available())";
    first_line(Command::new(paths.python()).args(["-c", ask])).is_some_and(|answer| answer == "False")
}

fn data(paths: &Paths, report: &mut Report) -> Result<()> {
    match paths.data() {
        Some(dir) if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) => {
            let batches = (1..=5).filter(|i| dir.join(format!("data_batch_{i}.bin")).is_file()).count();
            let some = if (1..5).contains(&batches) {
                format!(", {batches} of CIFAR-10's 5 training batches")
            } else {
                String::new()
            };
            report.good("data", &format!("KDLAB_DATA={}{some}", dir.display()))
        }
        Some(dir) => {
            let found = format!("KDLAB_DATA={} is no folder with files in it", dir.display());
            report.bad("data", &found, "correct it, or unset it to have CIFAR-10 downloaded");
        }
        None => {
            let cache = paths.cache()?;
            let there = |name: &str| cache.join(name).is_dir();
            let found = match (there("cifar-10-batches-bin"), there("fashion-mnist")) {
                (true, _) => "CIFAR-10 is there",
                (false, true) => {
                    "no CIFAR-10, which notebooks try to fetch; else they use Fashion-MNIST, which is there"
                }
                (false, false) => "no data yet; the first notebook fetches it",
            };
            report.note("data", &format!("{}: {found}", cache.display()));
        }
    }
    let weights = paths.cache()?.join("weights");
    let names: Vec<_> = (fs::read_dir(&weights).into_iter().flatten().flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".pth") || name.ends_with(".safetensors"))
        .collect();
    let found = (!names.is_empty()).then(|| format!("{}: {}", weights.display(), names.join(", ")));
    if found.is_none() && !begun(paths) {
        report.note("weights", "none yet; set-up fetches them");
        return Ok(());
    }
    let fix = format!("run `cargo lab setup`, or put {} there", weights::FILE);
    report.found_or("weights", found, &format!("none in {}", weights.display()), &fix);
    Ok(())
}

fn disk(paths: &Paths, report: &mut Report) {
    let used = progress::size(files::disk_usage(&paths.kdlab));
    let Ok(found) = rustix::fs::statvfs(&paths.root) else {
        report.note("disk", &format!("{used} in .kdlab; free space unknown"));
        return;
    };
    let free = found.f_bavail * found.f_frsize;
    let found = format!("{used} in .kdlab, {} free", progress::size(free));
    if free >= WANTED_DISK || paths.template().is_dir() && free >= WANTED_DISK / 4 {
        report.good("disk", &found);
    } else {
        report.bad("disk", &found, "set-up needs about 4 GB while it runs: free some, or move the repository");
    }
}

/// Looks at what a kernel of this user will write.
fn folders(paths: &Paths, report: &mut Report) {
    let owner = |dir: &Path| fs::metadata(dir).map(|found| found.uid()).ok();
    let home = std::path::PathBuf::from(tools::variable("HOME").unwrap_or_default());
    match owner(&home) {
        Some(owner) if owner == rustix::process::geteuid().as_raw() => report.good("HOME", &home.display().to_string()),
        _ => report.bad("HOME", &format!("{} is not yours", home.display()), "set HOME to a folder of yours"),
    }
    for (what, dir) in [("cells", paths.build_directories()), ("runs", paths.runs()), ("downloads", paths.cache())] {
        let found = dir.and_then(|dir| {
            files::create_dir(Some(&dir))?;
            let probe = dir.join(".doctor");
            let file = fs::File::create(&probe).with_context(|| format!("cannot write in {}", dir.display()))?;
            let locked = file.try_lock().with_context(|| format!("no locks in {}", dir.display()));
            files::remove(&probe)?;
            locked.map(|()| format!("{}, {}", dir.display(), progress::size(files::disk_usage(&dir))))
        });
        match found {
            Ok(found) => report.good(what, &found),
            Err(error) => report.bad(
                what,
                &format!("{error:#}"),
                "set XDG_CACHE_HOME and XDG_STATE_HOME to folders on a local disk",
            ),
        }
    }
}

/// Finds `2.13.0` in `2.13.0\n` or in torch's `version.py`.
fn version_in(text: &str) -> Option<String> {
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '+'));
    words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn versions_are_found_in_both_files() {
        assert_eq!(version_in("2.13.0\n").as_deref(), Some("2.13.0"));
        assert_eq!(
            version_in("from typing import Optional\n__version__ = '2.13.0+cu130'\n").as_deref(),
            Some("2.13.0+cu130")
        );
        assert_eq!(version_in("nothing"), None);
    }
}
