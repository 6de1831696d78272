//! The program that trains a plan, as several processes: started one by one and by torchrun, and with one killed.

mod common;

use common::dataset;
use kdlab::Lab;
use kdlab::train::History;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// A folder with data and a plan. Its students are small, and each has so many epochs.
fn work(epochs: usize) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    dataset(&folder.path().join("data"), 0);
    let mut lab = Lab::open().unwrap();
    let p = &mut lab.profile;
    p.name = "test".into();
    p.arch = "efficientnet-lite0".parse().unwrap();
    (p.train_images, p.validation_images, p.test_images) = (None, Some(16), None);
    (p.teacher_size, p.student_size, p.batch_size) = (64, 16, 12);
    (p.teacher_epochs, p.student_epochs) = (3, epochs);
    lab.precision = Some(Default::default());
    let plan = folder.path().join("plan.toml");
    lab.write_plan(&plan).unwrap();
    (folder, plan)
}

fn environment<'a>(command: &'a mut Command, folder: &Path, runs: &str) -> &'a mut Command {
    command.env("KDLAB_DATA", folder.join("data")).env("KDLAB_RUNS", folder.join(runs)).env("OMP_NUM_THREADS", "1");
    command.stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// Starts the program as all ranks of a group; one of them alone is no group.
fn start(size: usize, folder: &Path, runs: &str) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rank = |rank: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        environment(command.arg(folder.join("plan.toml")), folder, runs);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string()).env("KDLAB_TIMEOUT", "30");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string()).spawn().unwrap()
    };
    (0..size).map(rank).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn finished(children: Vec<Child>) -> Vec<String> {
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    outputs.iter().for_each(|output| assert!(output.status.success(), "{}", said(output)));
    outputs.iter().map(said).collect()
}

fn of_student(folder: &Path, runs: &str, file: &str) -> PathBuf {
    folder.join(runs).join("test/student-distilled").join(file)
}

fn history(folder: &Path, runs: &str) -> Option<History> {
    History::load(of_student(folder, runs, "history.json")).ok()
}

fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed().as_secs() < 60, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn several_processes_train_the_same_teacher_and_student_as_one() {
    let (folder, _) = work(3);
    let alone = finished(start(1, folder.path(), "alone"));
    let two = finished(start(2, folder.path(), "two"));
    for part in ["teacher", "student-distilled  3/3", "on the test split"] {
        assert!(alone[0].contains(part) && two[0].contains(part), "{part}: {}", two[0]);
    }
    assert!(!two[1].contains("student-distilled"), "rank 1 reports, too: {}", two[1]);
    let [one, both] = ["alone", "two"].map(|runs| history(folder.path(), runs).unwrap());
    assert_eq!((one.records.len(), both.records.len()), (3, 3));
    for (a, b) in one.records.iter().zip(&both.records) {
        // f32, in which sums of other parts round otherwise.
        assert!((a.train.loss - b.train.loss).abs() < 1e-4 * a.train.loss, "{a:?} alone, {b:?} as two");
        assert_eq!(a.validation.accuracy, b.validation.accuracy);
    }
    let features = |runs: &str| -> Vec<Tensor> {
        let cache = std::fs::read_dir(folder.path().join(runs).join("test/cache")).unwrap();
        let mut files: Vec<PathBuf> = cache.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.to_string_lossy().contains("features-train"));
        files.iter().flat_map(|path| Tensor::read_safetensors(path).ok()).flatten().map(|(_, t)| t).collect()
    };
    let (one, both) = (features("alone"), features("two"));
    assert_eq!((one.len(), both.len()), (1, 1));
    assert!((&one[0] - &both[0]).abs().max().to_kind(Kind::Double).double_value(&[]) < 1e-4, "rows of other images");
}

/// torchrun starts all ranks again when one was killed, and they go on after the last epoch, to the same bits.
/// It also ends rank 0, often before that meets the loss of rank 1: what it then says, the next test has.
#[cfg(target_os = "linux")]
#[test]
fn a_killed_rank_is_started_again_by_torchrun_and_nothing_is_lost() {
    let torchrun = Path::new(env!("CARGO_MANIFEST_DIR")).join(".kdlab/venv/bin/torchrun");
    assert!(torchrun.exists(), "{} is missing: run `cargo lab test`, which sets it up", torchrun.display());
    let (folder, plan) = work(40);
    let mut command = Command::new(torchrun);
    command.args(["--standalone", "--no-python", "--nproc-per-node=2", "--max-restarts=1"]);
    command.arg(env!("CARGO_BIN_EXE_train")).arg(&plan).env_remove("LD_LIBRARY_PATH");
    let run = environment(&mut command, folder.path(), "broken").spawn().unwrap();
    let epochs = || history(folder.path(), "broken").map_or(0, |history| history.records.len());
    wait_until("the second epoch", || epochs() >= 1);
    let mark = format!("KDLAB_RUNS={}", folder.path().join("broken").display());
    let is_rank_1 = |environment: Vec<u8>| {
        let has = |wanted: &str| environment.split(|byte| *byte == 0).any(|pair| pair == wanted.as_bytes());
        has(&mark) && has("RANK=1")
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut ranks = processes.filter(|process| std::fs::read(process.path().join("environ")).is_ok_and(is_rank_1));
    let rank = ranks.next().expect("rank 1 runs").file_name();
    assert!(Command::new("kill").arg("-KILL").arg(rank).status().unwrap().success());
    let output = run.wait_with_output().unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("student-distilled: going on after epoch"), "{text}");
    finished(start(2, folder.path(), "whole"));
    assert_eq!(epochs(), 40);
    for file in ["best.safetensors", "checkpoint.safetensors"] {
        let of = |runs| {
            let mut tensors = Tensor::read_safetensors(of_student(folder.path(), runs, file)).unwrap();
            tensors.sort_by(|a, b| a.0.cmp(&b.0));
            tensors
        };
        for ((name, broken), (_, whole)) in of("broken").iter().zip(&of("whole")) {
            assert!(broken == whole, "{name} of {file} differs from an unbroken run");
        }
    }
}

/// The others stop after the same batch, and no batch is trained twice.
#[test]
fn sigterm_to_one_rank_stops_all_in_order() {
    let (folder, _) = work(16);
    let mut ranks = start(2, folder.path(), "broken");
    wait_until("an epoch", || history(folder.path(), "broken").is_some());
    signal("-TERM", ranks[1].id());
    let begun = Instant::now();
    let outputs: Vec<String> = ranks.drain(..).map(|rank| said(&rank.wait_with_output().unwrap())).collect();
    assert!(begun.elapsed() < Duration::from_secs(5), "{outputs:?}");
    assert!(outputs[1].contains("student-distilled: ended by SIGTERM after"), "{outputs:?}");
    assert!(outputs[0].contains("another process of its group was stopped after"), "{outputs:?}");
    assert!(outputs[0].contains("of 16 epochs; run it again and it goes on from there"), "{outputs:?}");
    let stopped = history(folder.path(), "broken").unwrap();
    assert!(stopped.stopped.is_some() && stopped.records.len() < 16);
    finished(start(2, folder.path(), "broken"));
    finished(start(2, folder.path(), "whole"));
    let best = |runs: &str| {
        let mut tensors = Tensor::read_safetensors(of_student(folder.path(), runs, "best.safetensors")).unwrap();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    assert!(best("broken") == best("whole"), "other weights than those of an unbroken run");
}

#[test]
fn a_rank_that_dies_ends_the_others_and_the_checkpoint_stays() {
    let (folder, _) = work(1000);
    let mut ranks = start(2, folder.path(), "runs");
    wait_until("an epoch", || history(folder.path(), "runs").is_some());
    let rank_1 = ranks.pop().unwrap();
    signal("-KILL", rank_1.id());
    let begun = Instant::now();
    let output = ranks.pop().unwrap().wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5) && !output.status.success());
    assert!(said(&output).contains("error: rank 0 of 2 lost the others"), "{}", said(&output));
    assert!(!rank_1.wait_with_output().unwrap().status.success());
    assert!(of_student(folder.path(), "runs", "checkpoint.safetensors").exists());
}

#[test]
fn a_file_that_is_no_plan_and_a_missing_variable_are_named() {
    let (folder, plan) = work(1);
    let text = std::fs::read_to_string(&plan).unwrap();
    let fails = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        environment(command.arg(&plan), folder.path(), "runs").envs(variables.iter().copied());
        let output = command.output().unwrap();
        assert!(!output.status.success());
        said(&output)
    };
    let alone = fails(&[("RANK", "1"), ("WORLD_SIZE", "2")]);
    assert!(alone.contains("error: MASTER_ADDR and MASTER_PORT must say where rank 0 is"), "{alone}");
    std::fs::write(&plan, text.replace("student_epochs", "students_epochs")).unwrap();
    let wrong = fails(&[]);
    assert!(wrong.contains("is no plan") && wrong.contains("students_epochs"), "{wrong}");
    std::fs::write(&plan, text.replace("alpha = 0.5", "alpha = 2.0")).unwrap();
    let wrong = fails(&[]);
    assert!(wrong.contains("alpha must be in [0, 1], got 2"), "{wrong}");
}
