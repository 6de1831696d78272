//! A sweep without Jupyter: what `cargo lab sweep` starts, with the fields of [`kdlab::study::Sweep`] that were
//! given, as a JSON object. `--on PLACE` after it names a cluster. `--fit WORK NUMBER` instead makes one fit of a sweep
//! that was prepared for a cluster; `--with-parent` after that ends the fit when stdin closes.

mod signals;

use kdlab::study::{Measure, Sweep};
use kdlab::{Error, Lab, Result};
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    signals::end_in_order()?;
    match arguments[..] {
        [plan] => sweep(plan, None),
        [plan, "--on", place] => sweep(plan, Some(place)),
        ["--fit", work, number] => fit(work, number, false),
        ["--fit", work, number, "--with-parent"] => fit(work, number, true),
        _ => Err(Error::Input("arguments: PLAN [--on PLACE], or --fit WORK NUMBER [--with-parent]".into())),
    }
}

fn fit(work: &str, number: &str, with_parent: bool) -> Result<()> {
    let number = number.parse().map_err(|_| Error::Input(format!("{number:?} is not the number of a fit")))?;
    Lab::open()?.fit_of_sweep(Path::new(work), number, with_parent)
}

fn sweep(given: &str, on: Option<&str>) -> Result<()> {
    let wrong = |e| Error::Input(format!("the settings of this sweep: {e}; `cargo lab sweep --help` lists them"));
    let given: serde_json::Map<String, Value> = serde_json::from_str(given).map_err(wrong)?;
    let mut lab = Lab::open()?;
    let name = given.get("name").and_then(Value::as_str).unwrap_or("sweep");
    if let Some(size) = given.get("size").and_then(Value::as_i64) {
        lab.profile.sweep_size = size; // which the precision is chosen for
    }
    let mut plan = serde_json::to_value(lab.sweep_plan(name)).map_err(wrong)?;
    for (field, value) in given {
        plan[field] = value;
    }
    let plan: Sweep = serde_json::from_value(plan).map_err(wrong)?;
    // What the lab's lines say of the student is said of these.
    (lab.profile.student_size, lab.profile.student_epochs, lab.profile.batch_size) =
        (plan.size, plan.epochs, plan.batch_size);
    println!("{lab}");
    let data = lab.dataset()?;
    println!("{data}");
    let report = match on {
        None => lab.sweep(&plan, &data)?,
        Some(place) => lab.sweep_on(&plan, &data, place)?,
    };
    println!("\n{report}");
    let mut measures = vec![Measure::Validation, Measure::Test];
    if plan.omitted.is_some() {
        measures.extend([Measure::OmittedRecall, Measure::CorrectedRecall, Measure::CorrectedTest]);
    }
    if report.compare(Measure::Test)?.is_empty() {
        println!("no verdict: no setting has two seeds or more; 3 are the least that is of use, such as --seeds 0,1,2");
    } else {
        for measure in measures {
            println!("{}", report.table(measure)?);
        }
    }
    match report.stopped {
        // The fits are in another's hands, as was asked for.
        Some(_) if on == Some("slurm-array") => Ok(()),
        Some(why) => Err(Error::Interrupted(format!("stopped: {why}; run it again and it goes on"))),
        None => Ok(()),
    }
}
