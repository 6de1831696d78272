//! How the student's epoch grows: our side alone, with one quantity changed at a time.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::side::Ours;
use super::work::{Options, What};

/// One measurement.
struct Point {
    axis: &'static str,
    value: f64,
    seconds: f64,
    peak_mb: f64,
}

/// Measures, prints a table with fitted lines, and returns the points.
pub fn growth(ours: &Ours, folder: &Path, options: &Options) -> Result<Value> {
    let axes: [(&str, &[u64]); 4] = [
        ("train", &[256, 512, 1024, 2048]),
        ("size", &[16, 32, 64, 128]),
        ("batch", &[16, 64, 256]),
        ("classes", &[10, 100, 1000]),
    ];
    println!("| images | size | batch | classes | seconds | peak MB |\n|---|---|---|---|---|---|");
    let mut points = vec![];
    for (axis, values) in axes {
        for &value in values {
            let mut task = What::Student32.task(options.cuda);
            (task["train"], task["validation"], task["classes"]) = (json!(512), json!(64), json!(10));
            task[axis] = json!(value);
            let task = ours.prepare(task, &folder.join("growth"), options)?;
            let mut side = ours.start(&task)?;
            side.round()?;
            for _ in 0..options.rounds {
                let answer = side.round()?;
                side.rounds.push(answer);
            }
            let [seconds, peak_mb] = ["seconds", "peak_mb"].map(|field| side.median(field).unwrap_or(f64::NAN));
            let [images, size, batch, classes] = ["train", "size", "batch", "classes"].map(|name| &task[name]);
            println!("| {images} | {size} | {batch} | {classes} | {seconds:.2} | {peak_mb:.0} |");
            points.push(Point { axis, value: value as f64, seconds, peak_mb });
        }
    }
    let along = |axis: &str, of: &dyn Fn(&Point) -> (f64, f64)| -> Vec<(f64, f64)> {
        points.iter().filter(|point| point.axis == axis).map(of).collect()
    };
    let (fixed, each) = line(&along("train", &|p| (p.value, 1e3 * p.seconds)));
    println!("\nseconds of an epoch = {:.3} + {each:.3} ms x images", fixed / 1e3);
    let exponent = line(&along("size", &|p| (p.value.ln(), p.seconds.ln()))).1;
    println!("seconds ~ size ^ {exponent:.2}");
    let (fixed, each) = line(&along("batch", &|p| (p.value, p.peak_mb)));
    println!("MB = {fixed:.0} + {each:.2} x batch size\n");
    let json_of = |p: &Point| json!({"axis": p.axis, "value": p.value, "seconds": p.seconds, "peak_mb": p.peak_mb});
    Ok(json!({"what": "growth", "points": points.iter().map(json_of).collect::<Vec<_>>()}))
}

/// Returns `a` and `b` of the least-squares line `y = a + b x`.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let mean = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
    let b = mean(&|p| (p.0 - x) * (p.1 - y)) / mean(&|p| (p.0 - x).powi(2));
    (y - b * x, b)
}
