//! The closing table of a run, from the `results.json` that the distillation notebook leaves.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::progress::{self, seconds};

const HEADINGS: [&str; 6] = ["model", "validation", "test", "parameters", "MACs", "time"];

/// Prints the table. A run of only some notebooks may have left no results.
pub fn print(path: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(path) else {
        progress::line(&format!("no table of results: notebook 4 writes {}", path.display()));
        return Ok(());
    };
    let results: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not JSON; remove it and run again", path.display()))?;
    let name = |key: &str| results[key].as_str().unwrap_or("?").to_owned();
    progress::line(&format!("\n{}, profile {}", name("dataset"), name("profile")));
    for line in lines(results["rows"].as_array().map(Vec::as_slice).unwrap_or_default()) {
        progress::line(&line);
    }
    progress::line("");
    Ok(())
}

fn lines(rows: &[Value]) -> Vec<String> {
    let mut cells = vec![HEADINGS.map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        let percent = |key: &str| row[key].as_f64().map_or("-".into(), |value| format!("{:.2} %", value * 100.0));
        let count = |key: &str| row[key].as_f64().map_or("-".into(), short);
        let took = row["seconds"].as_f64().map_or("-".into(), seconds);
        let model = row["model"].as_str().unwrap_or("?").to_owned();
        [model, percent("val_accuracy"), percent("test_accuracy"), count("parameters"), count("macs"), took]
    }));
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let format = |row: &[String; 6]| {
        let first = format!("{:<w$}", row[0], w = widths[0]);
        let rest = (1..row.len()).map(|column| format!("  {:>w$}", row[column], w = widths[column]));
        std::iter::once(first).chain(rest).collect::<String>()
    };
    cells.iter().map(format).collect()
}

/// Returns a count as `264,618`, `23.5 M` or `4.09 G`.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.2} G", v / 1e9),
        v if v >= 1e6 => format!("{:.1} M", v / 1e6),
        v if v >= 1e3 => format!("{},{:03}", (v / 1e3).trunc(), (v % 1e3).round()),
        v => format!("{v}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_line_up_and_gaps_are_dashes() {
        let rows = [
            json!({"model": "teacher", "val_accuracy": 0.9, "test_accuracy": 0.8925, "parameters": 23_528_522,
                "macs": 4.09e9, "seconds": 125.0}),
            json!({"model": "student alone", "val_accuracy": 0.7, "parameters": 264_618}),
        ];
        let lines = lines(&rows);
        assert_eq!(lines[1], "teacher           90.00 %  89.25 %      23.5 M  4.09 G  2 min 05 s");
        assert_eq!(lines[2], "student alone     70.00 %        -     264,618       -           -");
    }
}
