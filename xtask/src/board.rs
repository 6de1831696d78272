//! `cargo lab board`: the class's board, a server for a room of laptops or for a hub.

use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use crate::paths::Paths;
use crate::{program, setup};

#[derive(Args)]
pub struct BoardArgs {
    /// Let the network reach the board, at this address of the machine or at all of them [default: only this machine
    /// reaches it]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_value = "127.0.0.1", hide_default_value = true,
        default_missing_value = "0.0.0.0")]
    host: IpAddr,
    /// The port at which it listens
    #[arg(long, default_value_t = 8765)]
    port: u16,
    /// Where posts are kept, a file for each class; a board that is started again goes on with it [default:
    /// board.sqlite in the folder of runs]
    #[arg(long)]
    file: Option<PathBuf>,
    /// The profiles whose runs it takes
    #[arg(long, value_delimiter = ',', default_value = "laptop,article", value_parser = ["article", "laptop", "smoke"])]
    profile: Vec<String>,
    /// Instead of starting the board, take everything under this name off it; the board may run meanwhile
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
}

/// Compiles the crate's own program for it, because this one does not use tch.
pub fn run(paths: &Paths, args: &BoardArgs) -> Result<()> {
    setup::set_up(paths, None)?;
    let program = program::compiled(paths, "board", "the class's board")?;
    let file = args.file.clone().map_or_else(|| Ok(paths.runs()?.join("board.sqlite")), anyhow::Ok)?;
    // SQLite gives names such as `:memory:` another meaning.
    let file = std::path::absolute(file).context("cannot find the current folder")?;
    let file =
        file.to_str().with_context(|| format!("{} is not a path in UTF-8; name another file", file.display()))?;
    let arguments = json!({
        "file": file, "host": args.host, "port": args.port, "profiles": args.profile,
        "remove": args.remove,
    });
    // In place of this process, so that Ctrl-C and kill reach the board.
    let error = Command::new(program).arg(arguments.to_string()).envs(paths.environment()?).exec();
    Err(error).context("cannot start the program for the class's board")
}
