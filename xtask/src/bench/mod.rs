//! `cargo lab bench`: our side and two in Python (PyTorch at its best, and the article's loop) do the same work on the
//! same data, in alternating rounds.

mod compare;
mod crowd;
mod growth;
mod levers;
mod side;
mod work;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use crate::paths::{Flavour, Paths};
use crate::setup::{self, libtorch, python};
use crate::{files, sweep, tools};
use side::Ours;
use work::{Options, What};

#[derive(Args)]
pub struct BenchArgs {
    /// What to measure [default: all but crowd, devices, sweep, levers, growth and million]
    #[arg(value_enum)]
    what: Vec<What>,
    /// Rounds of each side, which alternate; the table shows their medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(3..))]
    rounds: u64,
    /// Threads of every side [default: as many as there are cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Measure on the first CUDA GPU, with more images
    #[arg(long)]
    cuda: bool,
    /// Leave `torch.compile` out on the Python side
    #[arg(long)]
    no_compile: bool,
    /// Compute in f32 even where bf16 is the default, to compare losses and seconds
    #[arg(long)]
    f32: bool,
    /// The file for the numbers [default: <runs>/bench/bench.json]
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs `cargo lab bench`.
pub fn run(paths: &Paths, args: &BenchArgs) -> Result<()> {
    setup::set_up(paths, args.cuda.then_some(Flavour::Cuda))?;
    python::install_for_tests(paths)?;
    let ours = Ours::compile(paths)?;
    let what = if args.what.is_empty() { What::USUAL.to_vec() } else { args.what.clone() };
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let options = Options { rounds: args.rounds, threads, cuda: args.cuda, compile: !args.no_compile, f32: args.f32 };
    let folder = paths.runs()?.join("bench");
    let mut results = vec![];
    if what.contains(&What::Growth) {
        results.push(growth::growth(&ours, &folder, &options)?);
    }
    if what.contains(&What::Levers) {
        results.push(levers::levers(&ours, &folder, &options)?);
    }
    if what.contains(&What::Crowd) {
        results.push(crowd::crowd(&ours, &folder, &options)?);
    }
    let apart = [What::Cells, What::Tweak, What::Devices, What::Sweep, What::Growth, What::Levers, What::Crowd];
    let beside: Vec<_> = what.iter().filter(|what| !apart.contains(what)).collect();
    if !beside.is_empty() {
        compare::heading();
    }
    for what in beside {
        results.push(compare::compare(&ours, *what, &folder, &options)?);
    }
    let report = json!({"machine": machine(), "system": said("uname", &["-srm"]), "threads": threads,
        "commit": commit(paths), "torch": libtorch::TORCH, "rustc": said("rustc", &["-V"]), "results": results});
    let file = args.json.clone().unwrap_or_else(|| folder.join("bench.json"));
    files::write(&file, &serde_json::to_string_pretty(&report)?)?;
    println!("\n{}, {threads} threads; {}", machine(), file.display());
    let scripts = [What::Cells, What::Tweak, What::Devices, What::Sweep];
    for one in scripts.into_iter().filter(|one| what.contains(one)) {
        let mut script = Command::new(paths.python());
        script.arg(paths.root.join("benches").join(one.name()).with_extension("py")).current_dir(&paths.root);
        if one == What::Devices {
            let folder = folder.join("devices");
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            script.arg(std::env::current_exe()?).arg(&ours.program).arg(folder).envs(paths.environment()?);
        }
        if one == What::Sweep {
            sweep::prepare_for_clusters(paths)?;
            script.arg(&ours.program).args(["--rounds", &args.rounds.to_string()]).envs(paths.environment()?);
        }
        if !tools::end_with_this_process(&mut script).status().context("cannot start Python")?.success() {
            bail!("the bench {} failed; its reason stands above", one.name());
        }
    }
    Ok(())
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(std::env::consts::ARCH);
    let bf16 = if info.contains("avx512_bf16") || info.contains("amx_bf16") { "with bf16" } else { "without bf16" };
    format!("{} ({bf16})", model.trim_start_matches([':', '\t', ' ']))
}

fn commit(paths: &Paths) -> String {
    let root = paths.root.to_string_lossy();
    said("git", &["-C", &root, "describe", "--always", "--dirty"])
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
