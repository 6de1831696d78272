//! `cargo lab class`: a hub, two people, and what each loses when something is killed.

use std::path::Path;
use std::process::Command;

/// Not among the usual tests: it installs JupyterHub, and takes minutes. It needs a set-up checkout and npm.
#[test]
#[ignore = "installs JupyterHub: cargo test -p xtask --test class -- --ignored"]
fn two_people_work_in_a_class() {
    let lab = env!("CARGO_BIN_EXE_lab");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let installed = Command::new(lab).args(["class", "--install"]).current_dir(root).status().unwrap();
    assert!(installed.success());
    let folder = tempfile::tempdir().unwrap();
    let mut people = Command::new(root.join(".kdlab/hub/bin/python"));
    people.arg(root.join("xtask/tests/class.py")).arg(lab).arg(folder.path().join("class")).arg("18000");
    assert!(people.current_dir(root).status().unwrap().success());
}
