//! A sweep without Jupyter: what `cargo lab sweep` starts, with the fields of [`kdlab::study::Sweep`] that were
//! given, as a JSON object.

use kdlab::study::{Measure, Sweep};
use kdlab::{Error, Lab, Result};
use serde_json::Value;
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
    let given = std::env::args().nth(1).unwrap_or_default();
    let wrong = |e| Error::Input(format!("the settings of this sweep: {e}; `cargo lab sweep --help` lists them"));
    let given: serde_json::Map<String, Value> = serde_json::from_str(&given).map_err(wrong)?;
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
    let report = lab.sweep(&plan, &data)?;
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
        Some(why) => Err(Error::Interrupted(format!("stopped: {why}; run it again and it goes on"))),
        None => Ok(()),
    }
}
