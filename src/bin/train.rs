//! A plan's training without Jupyter: what `cargo lab train` starts, and what torchrun or srun start several times.

mod signals;

use kdlab::{Error, Lab, Result};
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
    let usage =
        || Error::Input("give one plan, the file that lab.write_plan(\"plan.toml\") writes: train plan.toml".into());
    let mut args = std::env::args().skip(1);
    let plan = args.next().filter(|_| args.len() == 0).ok_or_else(usage)?;
    signals::end_in_order()?;
    Lab::train_plan(plan).map(drop)
}
