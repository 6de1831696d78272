//! The kernel as a frontend sees it: the files of Python tests in this folder, against the kernelspec that
//! `cargo lab setup` installed. By hand, with the same environment: `python -m unittest -v test_live` in this folder.

use std::path::Path;
use std::process::Command;
use std::sync::{PoisonError, RwLock};

/// Held for writing by what measures how soon answers come, or finds its own build directory again; for reading by
/// the rest.
static MACHINE: RwLock<()> = RwLock::new(());

fn passes_alone(module: &str) {
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    run(module);
}

fn passes(module: &str) {
    let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    run(module);
}

fn run(module: &str) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.parent().expect("the package lies in the repository");
    let jupyter = root.join(".kdlab/jupyter");
    let python = root.join(".kdlab/venv/bin/python");
    assert!(python.exists(), "{} is missing: run cargo lab setup first", python.display());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new(python)
        .args(["-m", "unittest", "-v", module])
        .current_dir(package.join("tests"))
        .env("KDLAB_ROOT", root)
        .env("JUPYTER_PATH", &jupyter)
        .env("JUPYTER_DATA_DIR", &jupyter)
        .env("JUPYTER_CONFIG_DIR", folder.path().join("config"))
        .env("JUPYTER_RUNTIME_DIR", folder.path().join("runtime"))
        .env("IPYTHONDIR", folder.path().join("ipython"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // The live kernel is what is tested, whatever the shell asks for.
        .env_remove("KDLAB_KERNEL")
        .output()
        .expect("Python starts");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{module} failed:\n{said}");
    // A file without tests would pass as well.
    assert!(!said.contains("Ran 0 tests"), "{module} ran no test:\n{said}");
    println!("{said}");
}

#[test]
fn conformance() {
    passes("test_conformance");
}

#[test]
fn compile() {
    passes("test_compile");
}

#[test]
fn reserve() {
    passes_alone("test_reserve");
}

#[test]
fn output() {
    passes_alone("test_output");
}

#[test]
fn errors() {
    passes("test_errors");
}

#[test]
fn live_link() {
    passes_alone("test_live");
}

#[test]
fn programs() {
    passes("test_programs");
}

#[test]
fn interrupt() {
    passes_alone("test_interrupt");
}

#[test]
fn life() {
    passes("test_life");
}

#[test]
fn slots() {
    passes_alone("test_slots");
}

#[test]
fn browser() {
    passes_alone("test_browser");
}

#[test]
fn elsewhere() {
    passes("test_elsewhere");
}

#[test]
fn cells() {
    passes_alone("test_cells");
}
