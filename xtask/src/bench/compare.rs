//! Our side beside the best PyTorch and the article's loop.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::side::{Ours, Side, take_turns};
use super::work::{Options, What};
use crate::paths;

/// Prints the head of the table.
pub fn heading() {
    println!("| what | side | seconds | ours is faster by | last loss | peak MB |\n|---|---|---|---|---|---|");
}

/// Measures, prints a row for each side, and returns all rounds.
pub fn compare(ours: &Ours, what: What, folder: &Path, options: &Options) -> Result<Value> {
    let task = ours.prepare(what.task(options.cuda), &folder.join(what.name()), options)?;
    let mut sides = vec![ours.start(&task)?];
    if !task["size"].is_null() {
        for (name, file) in [("PyTorch, best", "pytorch.py"), ("article", "article.py")] {
            let mut python = Command::new(ours.paths.python());
            python.arg(ours.paths.root.join("benches").join(file));
            if file == "pytorch.py" {
                python.env("GLIBC_TUNABLES", paths::ALLOCATOR);
            }
            sides.push(Side::start(name, &mut python, &task)?);
        }
    }
    take_turns(&what.name(), &mut sides, options.rounds)?;
    let epochs = task["epochs"].as_f64().unwrap_or(1.0);
    let base = sides[0].seconds(epochs).context("no round was measured")?;
    let rows = sides.iter().map(|side| {
        let last = side.rounds.last().unwrap_or(&Value::Null);
        let ratio = side.seconds(epochs).map(|seconds| seconds / base);
        let show = |value: Option<f64>, digits: usize| value.map_or(String::new(), |v| format!("{v:.digits$}"));
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            what.name(),
            side.name,
            show(side.seconds(epochs), 2),
            show(ratio, 2),
            show(last["loss"].as_f64(), 4),
            show(last["peak_mb"].as_f64(), 0)
        );
        json!({"side": side.name, "seconds": side.seconds(epochs), "ratio": ratio, "rounds": side.rounds})
    });
    Ok(json!({"what": what.name(), "rows": rows.collect::<Vec<_>>(), "task": task}))
}
