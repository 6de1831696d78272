//! A sweep that is killed, and verdicts.

mod common;

use common::dataset;
use kdlab::study::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What is equal in two runs of the same: all but times.
fn results(report: &SweepReport) -> Vec<(String, u64, f64, f64, usize)> {
    report.runs.iter().map(|r| (r.setting.to_string(), r.seed, r.validation, r.test, r.best_epoch)).collect()
}

/// The program that `cargo lab sweep` starts, killed between two runs and in the middle of one.
#[test]
fn a_killed_sweep_goes_on_and_ends_as_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    dataset(&data, 0);
    let plan = r#"{"name": "try", "alphas": [0.5, 1.0], "epochs": 8, "batch_size": 8, "seeds": [0, 1]}"#;
    let start = |runs: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sweep"));
        command.arg(plan).env("KDLAB_DATA", &data).env("KDLAB_RUNS", runs).env("KDLAB_PROFILE", "smoke");
        // The last digits of the teacher depend on its threads, and those on what else computes.
        command.env("OMP_NUM_THREADS", "1").stdout(Stdio::null()).spawn().unwrap()
    };
    let report = |runs: &Path| SweepReport::load(runs.join("smoke/sweeps/try/sweep.json"));
    let (broken, whole) = (folder.path().join("broken"), folder.path().join("whole"));
    let mut seen = Vec::new();
    for runs_done in [1, 3] {
        let mut child = start(&broken);
        let begun = Instant::now();
        while report(&broken).map_or(0, |r| r.runs.len()) < runs_done {
            assert!(
                begun.elapsed().as_secs() < 300 && child.try_wait().unwrap().is_none(),
                "{runs_done} runs were never done"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        seen = report(&broken).unwrap().runs;
    }
    assert!(start(&broken).wait().unwrap().success());
    assert!(start(&whole).wait().unwrap().success());
    let (broken, whole) = (report(&broken).unwrap(), report(&whole).unwrap());
    assert!(seen.iter().all(|run| broken.runs.contains(run)), "what was done before the kill is done again");
    assert_eq!(results(&broken), results(&whole));
    assert_eq!(whole.runs.len(), 6);
}

/// Verdicts on simulated sweeps whose truth is known: accuracies with a common part of each seed, and a true gain.
fn simulate(gain: f64, spread: f64, seeds: usize, comparisons: usize) -> Vec<Verdict> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    // Twelve uniform numbers: normal enough, with variance 1.
    let mut normal = move || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
    let mut sweep = || {
        let pair = |_: usize| {
            let of_seed = 0.5 + 0.05 * normal();
            (of_seed, of_seed + gain + spread * normal())
        };
        let (alone, distilled): (Vec<_>, Vec<_>) = (0..seeds).map(pair).unzip();
        Verdict::new(&alone, &distilled, comparisons).unwrap()
    };
    (0..4000).map(|_| sweep()).collect()
}

fn share(verdicts: &[Verdict], of: impl Fn(&Verdict) -> bool) -> f64 {
    verdicts.iter().filter(|v| of(v)).count() as f64 / verdicts.len() as f64
}

#[test]
fn intervals_hold_the_truth_as_often_as_they_say() {
    for (gain, seeds, comparisons) in [(0.0, 3, 1), (0.02, 3, 1), (-0.01, 5, 1), (0.02, 8, 1), (0.0, 3, 10)] {
        let verdicts = simulate(gain, 0.01, seeds, comparisons);
        let held = share(&verdicts, |v| v.low <= gain && gain <= v.high);
        let wanted = 1.0 - 0.05 / comparisons as f64;
        // Three standard deviations of a share of 4,000.
        let tolerance = 3.0 * (wanted * (1.0 - wanted) / 4000.0).sqrt() + 1e-3;
        assert!((held - wanted).abs() < tolerance, "gain {gain}, {seeds} seeds: {held} instead of {wanted}");
    }
}

#[test]
fn verdicts_follow_the_truth() {
    let decided = |verdicts: &[Verdict], decision| share(verdicts, |v| v.decision == decision);
    // No gain at all: it looks better in one of forty sweeps, half of 5 %.
    for seeds in [3, 5, 10] {
        let false_alarms = decided(&simulate(0.0, 0.01, seeds, 1), Decision::Better);
        assert!((0.015..0.035).contains(&false_alarms), "{seeds} seeds: {false_alarms}");
    }
    // A gain of ten standard deviations is seen with three seeds, one of two with five, mostly.
    assert!(decided(&simulate(0.05, 0.005, 3, 1), Decision::Better) > 0.97);
    assert!(decided(&simulate(0.02, 0.01, 5, 1), Decision::Better) > 0.8);
    // A loss is never better, and a large one is called worse.
    let losing = simulate(-0.05, 0.005, 3, 1);
    assert_eq!(decided(&losing, Decision::Better), 0.0);
    assert!(decided(&losing, Decision::Worse) > 0.97);
    // No gain, measured well: a gain worth having is ruled out, and a loss is seldom claimed.
    let none = simulate(0.0, 0.002, 10, 1);
    assert!(decided(&none, Decision::NoWorthwhileGain) > 0.9);
    assert!(decided(&none, Decision::Worse) < 0.035);
    // A gain that is lost in the spread of three seeds leaves the question open.
    assert!(decided(&simulate(0.01, 0.02, 3, 1), Decision::Undecided) > 0.8);
    // A gain worth having is seldom denied.
    assert!(decided(&simulate(0.01, 0.01, 5, 1), Decision::NoWorthwhileGain) < 0.03);
    // Of ten comparisons without any gain, fewer than one sweep in twenty has one that looks better.
    assert!(decided(&simulate(0.0, 0.01, 3, 10), Decision::Better) * 10.0 < 0.05);
}

#[test]
fn the_interval_is_student_s() {
    // scipy.stats.t.interval(0.95, 2, loc=0.03, scale=scipy.stats.sem([0.02, 0.03, 0.04]))
    let v = Verdict::new(&[0.5, 0.4, 0.6], &[0.52, 0.43, 0.64], 1).unwrap();
    assert!((v.low - 0.005158623).abs() < 1e-6 && (v.high - 0.054841377).abs() < 1e-6, "{v:?}");
    assert_eq!(v.decision, Decision::Better);
    assert_eq!(v.to_string(), "BETTER: +3.0 points on average over 3 seeds, +0.5 to +5.5 with 95.0 % confidence");
    // scipy.stats.t.ppf(0.9875, 4)
    assert!((t_quantile(0.975, 4).unwrap() - 3.495406).abs() < 1e-5);
    let says = |t: kdlab::Result<f64>| t.unwrap_err().to_string();
    assert!(says(t_quantile(1.0, 4)).contains("between 0 and 1, got 1"));
    assert!(says(t_quantile(0.95, 0)).contains("2 values or more"));
    let two = Verdict::new(&[0.5, 0.4], &[0.52], 1).unwrap_err().to_string();
    assert!(two.contains("1 runs against 2"), "{two}");
}

#[test]
fn a_plan_says_what_it_could_find() {
    let plan = |seeds: u64, temperatures: &[f64]| Sweep {
        seeds: (0..seeds).collect(),
        temperatures: temperatures.to_vec(),
        ..Sweep::default()
    };
    let said = plan(5, &[1.0, 4.0]).to_string();
    // (t(0.975, 4) + t(0.6, 4)) * 2 / sqrt(5), with 3.495 and 0.941
    assert!(said.starts_with("sweep: 2 settings with 5 seeds; finds differences of 4.0 points or more"), "{said}");
    assert!(plan(1, &[4.0]).to_string().contains("one seed gives no verdict"));
    // Simulated sweeps with the spread that the plan assumes find it about as often as they should.
    for (seeds, comparisons, gain) in [(5, 2, 0.0397), (3, 1, 0.0620)] {
        let found = share(&simulate(gain, 0.02, seeds, comparisons), |v| v.decision == Decision::Better);
        assert!((0.7..0.85).contains(&found), "{seeds} seeds: {found}");
    }
}
