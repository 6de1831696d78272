//! An ablation: our side alone, as it is and with one thing changed at a time. A lever is such a thing, which makes it
//! faster or slower.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::side::{Ours, Side, take_turns};
use super::work::{Options, What};
use crate::paths::ALLOCATOR;

/// Measures, prints a table, and returns its rows.
pub fn levers(ours: &Ours, folder: &Path, options: &Options) -> Result<Value> {
    let huge_pages = format!("{ALLOCATOR}:glibc.malloc.hugetlb=1");
    let changes = [
        ("as it is", json!({}), ALLOCATOR),
        ("in f32", json!({"f32": true}), ALLOCATOR),
        ("glibc's allocator as it comes", json!({}), ""),
        ("huge pages on top", json!({}), &huge_pages),
        ("weights laid out channels first", json!({"channels_first": true}), ALLOCATOR),
        ("one thread", json!({"threads": 1}), ALLOCATOR),
    ];
    let other = |name, change: Value| (name, change, ALLOCATOR);
    let one_by_one = [other("layers one by one, whole batches", json!({"one_by_one": true}))];
    let parts = [other("the batches alone", json!({"workload": "batches"}))];
    let rows = [
        other("features kept as f32: reading them for ten epochs", json!({"workload": "rows"})),
        other("the same as f16", json!({"workload": "rows", "f16": true})),
    ];
    let mut results = vec![];
    println!("| what | changed | seconds | as it is / changed | peak MB |\n|---|---|---|---|---|");
    for (name, what, changes) in [
        ("student32", What::Student32, [&changes[..], &parts].concat()),
        ("features-resnet50", What::FeaturesResnet50, [&changes[..], &one_by_one].concat()),
        ("features-lite0", What::FeaturesLite0, [&changes[..1], &one_by_one].concat()),
        ("rows", What::Student32, rows.to_vec()),
    ] {
        let task = ours.prepare(what.task(options.cuda), &folder.join("levers"), options)?;
        let mut sides = vec![];
        for (changed, change, allocator) in changes {
            let mut task = task.clone();
            for (key, value) in change.as_object().into_iter().flatten() {
                task[key] = value.clone();
            }
            let mut command = ours.command("measure")?;
            sides.push(Side::start(changed, command.env("GLIBC_TUNABLES", allocator), &task)?);
        }
        take_turns(name, &mut sides, options.rounds)?;
        let median = |side: &Side, field: &str| side.median(field).unwrap_or(f64::NAN);
        let base = median(&sides[0], "seconds");
        for side in &sides {
            let (seconds, peak) = (median(side, "seconds"), median(side, "peak_mb"));
            println!("| {name} | {} | {seconds:.3} | {:.2} | {peak:.0} |", side.name, base / seconds);
            results.push(json!({"what": name, "changed": side.name, "seconds": seconds, "peak_mb": peak}));
        }
    }
    Ok(json!({"what": "levers", "rows": results}))
}
