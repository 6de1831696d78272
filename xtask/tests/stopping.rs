//! `cargo lab` leaves nothing behind when it is ended. Needs a finished `cargo lab setup`.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

/// A variable in the environment of every process that a test starts.
const MARK: &str = "KDLAB_TEST_MARK";

fn start(folder: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(args)
        .env(MARK, folder)
        .env("KDLAB_RUNS", folder.join("runs"))
        .stdout(Stdio::null())
        .spawn()
        .expect("lab starts")
}

/// Returns the command lines of processes with the mark. Zombies have no environment, so they do not count.
fn marked(folder: &Path) -> Vec<String> {
    let mark = format!("{MARK}={}", folder.display());
    let line = |process: fs::DirEntry| {
        let read = |name: &str| fs::read(process.path().join(name)).ok();
        let environment = read("environ")?;
        let found = environment.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes());
        found.then(|| read("cmdline").map(|line| String::from_utf8_lossy(&line).replace('\0', " ")))?
    };
    fs::read_dir("/proc").expect("Linux").flatten().filter_map(line).collect()
}

fn wait_for(what: &str, seconds: u64, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed().as_secs() < seconds, "{what}: not within {seconds} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn terminate(mut lab: Child, folder: &Path) {
    let sent = Command::new("kill").args(["-TERM", &lab.id().to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()));
    assert!(!lab.wait().expect("it ends").success());
    let begun = Instant::now();
    while !marked(folder).is_empty() {
        assert!(begun.elapsed().as_secs() < 15, "left behind: {:?}", marked(folder));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_run_that_is_ended_leaves_no_process() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let begun = folder.path().join("begun");
    let source = format!("std::fs::write({begun:?}, \"\")?; loop {{ std::hint::black_box(0); }}");
    let cell = json!({"cell_type": "code", "id": "a", "execution_count": null, "metadata": {}, "outputs": [],
        "source": source});
    let notebook = folder.path().join("endless.ipynb");
    let text = json!({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).to_string();
    fs::write(&notebook, text).expect("it can be written");
    let lab = start(folder.path(), &["run", "--no-setup", "--profile", "smoke", notebook.to_str().expect("text")]);
    wait_for("the cell", 120, || begun.exists());
    assert!(marked(folder.path()).len() > 3, "lab, Python, kernel and the cells' process");
    terminate(lab, folder.path());
}

#[test]
fn a_sweep_that_is_ended_leaves_no_process() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let lab = start(folder.path(), &["sweep", "endless", "--profile", "smoke", "--epochs", "100000", "--seeds", "0,1"]);
    let trains = || folder.path().join("runs/smoke/sweeps/endless").exists();
    wait_for("the training", 600, trains);
    terminate(lab, folder.path());
}

/// What `lab.write_plan` writes, with an endless training.
const PLAN: &str = r#"
name = "endless"
method = "kd"
precision = "f32"

[profile]
name = "smoke"
arch = "efficientnet-lite0"
train_images = 300
validation_images = 100
test_images = 100
framing = "squeeze"
teacher_size = 64
student = "medium"
student_size = 8
batch_size = 64
teacher_epochs = 2
student_epochs = 100000
teacher_learning_rate = 0.001
student_learning_rate = 0.001
temperature = 1.0
alpha = 0.5
sweep_epochs = 1
sweep_size = 8
seed = 0
"#;

#[test]
fn a_training_of_several_ranks_that_is_ended_leaves_no_process_and_keeps_its_checkpoint() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plan = folder.path().join("plan.toml");
    fs::write(&plan, PLAN).expect("it can be written");
    let lab = start(folder.path(), &["train", plan.to_str().expect("text"), "--ranks", "2"]);
    let checkpoint = folder.path().join("runs/smoke/endless/checkpoint.safetensors");
    wait_for("the training", 600, || checkpoint.exists());
    assert_eq!(marked(folder.path()).len(), 2, "rank 0 in the place of lab, and rank 1");
    terminate(lab, folder.path());
    assert!(checkpoint.exists());
}
