//! Several fits at once, and a fit beside busy programs: what each reaches of its fair share of the machine.

use std::hint::spin_loop;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::side::{Ours, Side};
use super::work::{Options, What};
use crate::progress;

/// Seconds for which each of them is measured, from the first step of the fits on.
const SECONDS: u64 = 12;

/// Measures, prints a table, and returns its rows.
pub fn crowd(ours: &Ours, folder: &Path, options: &Options) -> Result<Value> {
    let mut task = What::Student32.task(options.cuda);
    (task["size"], task["train"], task["validation"]) = (json!(16), json!(128), json!(32));
    let mut task = ours.prepare(task, &folder.join("crowd"), options)?;
    // Each round is an epoch of the same fit.
    task["rounds"] = json!(1_000_000);
    let cores = options.threads;
    println!(
        "| fits | busy programs | threads of a fit | images/s of each | share of a fair part |\n|---|---|---|---|---|"
    );
    let (mut alone, mut rows) = (None, vec![]);
    for (fits, busy) in [(1, 0), (cores, 0), (1, cores)] {
        for agreed in [false, true] {
            let speeds = speeds(ours, &task, fits, busy, agreed)?;
            // The slowest counts.
            let slowest = speeds.iter().copied().fold(f64::INFINITY, f64::min);
            let alone = *alone.get_or_insert(slowest);
            let share = slowest / (alone / (fits + busy) as f64);
            let threads = if agreed { "agreed on".to_owned() } else { cores.to_string() };
            let each: Vec<String> = speeds.iter().map(|speed| format!("{speed:.0}")).collect();
            println!("| {fits} | {busy} | {threads} | {} | {share:.2} |", each.join(", "));
            rows.push(json!({"fits": fits, "busy": busy, "agreed": agreed, "speeds": speeds, "share": share}));
        }
    }
    Ok(json!({"what": "crowd", "rows": rows}))
}

/// Returns the images per second of each fit.
fn speeds(ours: &Ours, task: &Value, fits: usize, busy: usize, agreed: bool) -> Result<Vec<f64>> {
    progress::line(&format!("crowd: {fits} fits, {busy} busy programs"));
    let start = |_| {
        let mut command = ours.command("measure")?;
        if agreed {
            command.env_remove("OMP_NUM_THREADS");
        }
        Side::start("kdlab", &mut command, task)
    };
    let mut sides = (0..fits).map(start).collect::<Result<Vec<_>>>()?;
    let done = AtomicBool::new(false);
    let images = task["train"].as_f64().unwrap_or_default();
    std::thread::scope(|scope| {
        for _ in 0..busy {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
        }
        let speed = |side: &mut Side| {
            let (begin, mut epochs) = (Instant::now(), 0.0);
            while begin.elapsed() < Duration::from_secs(SECONDS) {
                side.round()?;
                epochs += 1.0;
            }
            Ok(images * epochs / begin.elapsed().as_secs_f64())
        };
        let measured: Vec<_> = sides.iter_mut().map(|side| scope.spawn(move || speed(side))).collect();
        let speeds =
            measured.into_iter().map(|side| side.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let speeds = speeds.collect();
        done.store(true, Ordering::Relaxed);
        speeds
    })
}
