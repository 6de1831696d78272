//! `cargo lab train`: the training of a plan without Jupyter, by one process or several of this machine.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::paths::Paths;
use crate::{program, setup, tools};

#[derive(Args)]
pub struct TrainArgs {
    /// The plan: the file that `lab.write_plan("plan.toml")` writes in a notebook
    plan: PathBuf,
    /// Processes of this machine that train together, each on its part of every batch. With CUDA one for each GPU
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    ranks: u16,
}

/// Starts the ranks itself, with the variables that torchrun would set: set-up installs no Python torch, and on one
/// machine nothing else is needed.
pub fn run(paths: &Paths, args: &TrainArgs) -> Result<()> {
    setup::set_up(paths, None)?;
    let program = program::compiled(paths, "train", "trainings")?;
    let environment = paths.environment()?;
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.context("no free port on this machine")?.port();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = (cores / usize::from(args.ranks)).max(1);
    let rank = |number: u16| {
        let mut command = Command::new(&program);
        command.arg(&args.plan).envs(environment.iter().cloned());
        if args.ranks > 1 {
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            command.env("RANK", number.to_string()).env("LOCAL_RANK", number.to_string());
            // c10d warns with a stack trace when a rank ends; the program says it in a sentence.
            command.env("TORCH_CPP_LOG_LEVEL", "ERROR");
            command.env("WORLD_SIZE", args.ranks.to_string()).env("LOCAL_WORLD_SIZE", args.ranks.to_string());
            if tools::variable("OMP_NUM_THREADS").is_none() {
                command.env("OMP_NUM_THREADS", threads.to_string());
            }
        }
        command
    };
    for number in 1..args.ranks {
        tools::end_with_this_process(&mut rank(number)).spawn().context("cannot start the program for trainings")?;
    }
    // Rank 0 takes the place of this process. A signal to `cargo lab train` then ends rank 0, and the others end with
    // it, as they do when it fails.
    Err(rank(0).exec()).context("cannot start the program for trainings")
}
