//! The exercises as a course of nbgrader: it grades right answers and the usual mistakes.

use std::path::Path;
use std::process::Command;

/// Not among the usual tests: it installs nbgrader, and takes many minutes. It needs a set-up checkout.
#[test]
#[ignore = "installs nbgrader: cargo test -p xtask --test nbgrader -- --ignored"]
fn nbgrader_grades_answers_and_names_the_usual_mistakes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (course, environment) = (folder.path().join("course"), folder.path().join("environment"));
    let run = |command: &mut Command| assert!(command.current_dir(root).status().unwrap().success(), "{command:?}");
    run(Command::new(env!("CARGO_BIN_EXE_lab")).args(["exercises", "--nbgrader"]).arg(&course));
    run(Command::new(root.join(".kdlab/venv/bin/python")).args(["-m", "venv"]).arg(&environment));
    let bin = environment.join("bin");
    run(Command::new(bin.join("pip")).args(["install", "--quiet", "nbgrader==0.9.6"]));
    let mut grade = Command::new(bin.join("python"));
    grade.arg(root.join("xtask/tests/nbgrader.py")).arg(bin.join("nbgrader")).arg(&course);
    grade.arg(root.join("notebooks/exercises/source"));
    run(grade.env("JUPYTER_PATH", root.join(".kdlab/jupyter")).env("KDLAB_PROFILE", "smoke"));
}
