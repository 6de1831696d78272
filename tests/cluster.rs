//! Sweeps on Dask's workers: the results are those of one process, and nothing is left behind, whoever is killed.
//! Needs Dask, from `cargo lab setup --tests`, or `KDLAB_DASK`.
#![cfg(target_os = "linux")]

mod common;

use common::dataset;
use kdlab::study::SweepReport;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A variable in the environment of every process that a test starts.
const MARK: &str = "KDLAB_TEST_MARK";
/// Fits of a second.
const PLAN: &str = r#"{"name": "try", "alphas": [0.5, 1.0], "epochs": 12, "batch_size": 8, "seeds": [0, 1]}"#;

/// A folder for data and results, and the processes that work in it.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        dataset(&folder.path().join("data"), 0);
        Self(folder)
    }

    fn runs(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn sweep(&self, runs: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sweep"));
        command.args(arguments).env(MARK, self.0.path()).env("KDLAB_DATA", self.runs("data"));
        command.env("KDLAB_RUNS", self.runs(runs)).env("KDLAB_PROFILE", "smoke").env("KDLAB_DEVICE", "cpu");
        // The last digits of the teacher depend on its threads, and those on what else computes.
        command.env("OMP_NUM_THREADS", "1");
        if std::env::var_os("KDLAB_ROOT").is_none() {
            command.env("KDLAB_ROOT", env!("CARGO_MANIFEST_DIR"));
        }
        command.stdout(Stdio::null());
        command
    }

    /// Starts a sweep, whose output goes to a file.
    fn start(&self, runs: &str, on: &str) -> Child {
        let output = std::fs::File::create(self.0.path().join(format!("{runs}.txt"))).unwrap();
        self.sweep(runs, &[PLAN, "--on", on]).stdout(output).spawn().unwrap()
    }

    fn folder(&self, runs: &str) -> PathBuf {
        self.runs(runs).join("smoke/sweeps/try")
    }

    fn report(&self, runs: &str) -> kdlab::Result<SweepReport> {
        SweepReport::load(self.folder(runs).join("sweep.json"))
    }

    /// Ids and command lines of the processes with the mark. Zombies have no environment, so they do not count.
    fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("{MARK}={}", self.0.path().display());
        let read = |process: std::fs::DirEntry| {
            let read = |name: &str| std::fs::read(process.path().join(name)).ok();
            let environment = read("environ")?;
            let marked = environment.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes());
            let id = process.file_name().to_string_lossy().parse().ok().filter(|_| marked)?;
            Some((id, String::from_utf8_lossy(&read("cmdline")?).replace('\0', " ")))
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(read).collect()
    }

    fn nothing_is_left(&self) {
        wait_for("the end of all processes", 30, || self.processes().is_empty());
    }

    /// Waits until a fit has done so many epochs, and returns its process and its place among the runs.
    fn fit_at(&self, runs: &str, epochs: usize) -> (i32, usize) {
        let mut found = None;
        wait_for("a fit in the middle", 120, || {
            let work = std::fs::read(self.folder(runs).join("work.json")).unwrap_or_default();
            let work: Value = serde_json::from_slice(&work).unwrap_or_default();
            let fits = work["fits"].as_array().cloned().unwrap_or_default();
            found = self.processes().into_iter().find_map(|(id, line)| {
                let place = line.split("--fit ").nth(1)?.split(' ').nth(1)?.parse::<u64>().ok()?;
                let fit = fits.iter().find(|fit| fit["place"].as_u64() == Some(place))?;
                let history = self.folder(runs).join(fit["name"].as_str()?).join("history.json");
                let history: Value = serde_json::from_slice(&std::fs::read(history).ok()?).ok()?;
                (history["records"].as_array()?.len() >= epochs).then_some((id, place as usize))
            });
            found.is_some()
        });
        found.unwrap()
    }
}

fn wait_for(what: &str, seconds: u64, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed().as_secs() < seconds, "{what}: not within {seconds} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn kill(signal: &str, process: i32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

fn parent(process: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

/// The Python that has Dask.
fn python() -> PathBuf {
    let installed = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".kdlab/dask/bin/python");
    let python = std::env::var_os("KDLAB_DASK").map_or_else(installed, PathBuf::from);
    assert!(python.exists(), "{} is missing: run cargo lab setup --tests first", python.display());
    python
}

/// What is equal in two runs of the same: all but times, and where a fit went on.
fn results(report: &SweepReport) -> Vec<Value> {
    let of = |run: &Value| {
        let mut run = run.clone();
        ["seconds", "images_per_second", "resumed_at"].iter().for_each(|field| run[field] = Value::Null);
        run
    };
    serde_json::to_value(report).unwrap()["runs"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn killed_workers_and_drivers_cost_no_result_and_leave_no_process() {
    let bench = Bench::new();
    assert!(bench.sweep("here", &[PLAN]).status().unwrap().success());
    let here = bench.report("here").unwrap();
    assert_eq!(here.runs.len(), 6);

    // The driver is ended in the middle of a fit.
    let mut driver = bench.start("there", "local:2");
    bench.fit_at("there", 2);
    kill("-TERM", driver.id() as i32);
    assert!(!driver.wait().unwrap().success());
    bench.nothing_is_left();

    // It goes on. The only worker is killed while its fit is in the middle, and the fit's process ends with it.
    let mut driver = bench.start("there", "local:1");
    let (fit, place) = bench.fit_at("there", 4);
    kill("-KILL", parent(fit));
    wait_for("the end of the fit", 15, || bench.processes().iter().all(|(id, _)| *id != fit));
    wait_for("two runs", 120, || bench.report("there").is_ok_and(|report| report.runs.len() > 1));
    // Then the program that hands out the fits is killed.
    let processes = bench.processes();
    let hands_out = |(id, line): &&(i32, String)| line.contains("local:1") && *id != driver.id() as i32;
    kill("-KILL", processes.iter().find(hands_out).unwrap().0);
    assert!(!driver.wait().unwrap().success());
    bench.nothing_is_left();
    let said = std::fs::read_to_string(bench.runs("there.txt")).unwrap();
    for line in ["Dask's dashboard: http://127.0.0.1:", "goes on after epoch", "of 6 runs done; ", " epoch "] {
        assert!(said.contains(line), "{line} is missing in\n{said}");
    }

    // At last it may finish: no run is made twice, and all are what one process makes.
    let done = bench.report("there").unwrap().runs;
    assert!(bench.start("there", "local:2").wait().unwrap().success());
    bench.nothing_is_left();
    let report = bench.report("there").unwrap();
    assert!(done.iter().all(|run| report.runs.contains(run)), "a finished run was made again");
    assert_eq!(results(&report), results(&here));
    let runs = serde_json::to_value(&report).unwrap()["runs"].as_array().unwrap().clone();
    assert!(runs[place]["resumed_at"].as_u64().unwrap() >= 4, "{}", runs[place]);
    assert!(runs.iter().all(|run| run["threads"] == 1 && run["cpu"].as_str().is_some_and(|cpu| !cpu.is_empty())));
    assert!(!bench.folder("there").join("alone-seed0/checkpoint.safetensors").exists());

    // In one process everything is found.
    assert!(bench.sweep("there", &[PLAN]).status().unwrap().success());
    assert_eq!(bench.report("there").unwrap().runs, report.runs);
}

#[test]
fn jobs_of_pbs_are_submitted_and_cancelled_and_a_refusal_is_told() {
    let bench = Bench::new();
    let plan = r#"{"name": "try", "alphas": [0.5], "epochs": 2, "batch_size": 8, "seeds": [0, 1]}"#;
    // In the place of PBS: what runs the script here, in a session of its own.
    let tools = bench.runs("tools");
    let tool = |name: &str, script: &str| {
        std::fs::create_dir_all(&tools).unwrap();
        std::fs::write(tools.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(tools.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let run = || bench.sweep("pbs", &[plan, "--on", "pbs:1"]).env("PATH", &path).output().unwrap();

    tool("qsub", "echo 'qsub: Unknown queue' >&2; exit 170");
    let output = run();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("qsub took no job: qsub: Unknown queue; call it"), "{said}");
    bench.nothing_is_left();

    // Dask removes the script as soon as it is taken.
    tool("qsub", "cp \"$1\" \"$0.job\"; setsid bash \"$0.job\" > /dev/null 2>&1 < /dev/null & echo $!.box");
    tool("qdel", "kill -TERM -- -\"$1\"; echo \"$1\" >> \"$0.jobs\"");
    let output = run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bench.nothing_is_left();
    assert_eq!(std::fs::read_to_string(tools.join("qdel.jobs")).unwrap().lines().count(), 1);
    assert!(bench.sweep("here", &[plan]).status().unwrap().success());
    assert_eq!(results(&bench.report("pbs").unwrap()), results(&bench.report("here").unwrap()));
}

#[test]
fn an_array_needs_no_dask_and_is_collected_afterwards() {
    let bench = Bench::new();
    let plan = r#"{"name": "try", "epochs": 2, "seeds": [0, 1], "teachers": ["all", "student"], "labelled": [0.5]}"#;
    let output = bench.sweep("array", &[plan, "--on", "slurm-array"]).stdout(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("sbatch --array=0-5 "), "{said}");
    let work = bench.folder("array").join("work.json");
    let fit = |number: &str| bench.sweep("array", &["--fit", work.to_str().unwrap(), number]).output().unwrap();
    for number in 0..6 {
        let output = fit(&number.to_string());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for number in ["6", "-1", "all"] {
        let output = fit(number);
        assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("fit"), "{output:?}");
    }
    assert!(bench.sweep("array", &[plan]).status().unwrap().success());
    assert!(bench.sweep("here", &[plan]).status().unwrap().success());
    assert_eq!(results(&bench.report("array").unwrap()), results(&bench.report("here").unwrap()));
    let again = bench.sweep("array", &[plan, "--on", "slurm-array"]).stdout(Stdio::piped()).output().unwrap();
    assert!(!String::from_utf8_lossy(&again.stdout).contains("sbatch"), "nothing is left to be made");
}

#[test]
fn a_cluster_that_strangers_could_use_is_refused() {
    let bench = Bench::new();
    let refused = |on: &str| {
        let output = bench.sweep("refused", &[PLAN, "--on", on]).output().unwrap();
        assert!(!output.status.success(), "{on}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused("tcp://0.0.0.0:8786").contains("whoever reaches that port"));
    assert!(refused("local:two").contains("such as local:2"));
    assert!(!bench.runs("refused").join("smoke/teacher").exists(), "before anything is trained");
    // It listens for all and is reached by the loopback address.
    let open = "import sys, asyncio\nfrom distributed import Scheduler\nasync def main():\n  async with \
                Scheduler(port=0, dashboard_address='127.0.0.1:0') as scheduler:\n    print(scheduler.port, \
                flush=True)\n    await asyncio.to_thread(sys.stdin.read)\nasyncio.run(main())";
    let mut scheduler =
        Command::new(python()).args(["-c", open]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(scheduler.stdout.take().unwrap()), &mut port).unwrap();
    let text = refused(&format!("tcp://127.0.0.1:{}", port.trim()));
    drop(scheduler.stdin.take());
    scheduler.wait().unwrap();
    assert!(text.contains("listens for other machines without TLS"), "{text}");
    assert!(refused("tls://127.0.0.1:1").contains("TLS needs certificates"));
    bench.nothing_is_left();
}

#[test]
fn fits_are_shared_among_kinds_of_cpu() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dispatcher.py");
    let output = Command::new(python()).arg(script).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("Ran 3 tests"), "{said}");
}
