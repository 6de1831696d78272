//! `cargo build` and `cargo check` of a cell, by rustc alone where only the cell changed.
//!
//! To see that nothing else changed, cargo looks at a hundred crates, which takes longer than compiling the cell. So
//! the first compilation goes through cargo, and the kernel keeps the call of rustc. While nothing changes that cargo
//! would look at, later cells are compiled by the same call.

use std::ffi::OsString;
use std::fs;
use std::iter::once;
use std::path::Path;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};

use crate::cells::compile::crate_library::crate_library;
use crate::cells::compile::damaged::remove_damaged;
use crate::cells::compile::kept::Kept;
use crate::cells::compile::level::level_of_cells;
use crate::cells::compile::notice;
use crate::cells::compile::rustc::{CALL_FILE, cell_library, cell_source, inputs, read_call, repeat};
use crate::cells::compile::stops;
use crate::cells::replaced;
use crate::config::Config;
use crate::private;

/// Builds the package in `folder`, the current one, as `cargo build` would. Returns the exit status.
pub fn build(folder: &Path, cargo: &mut Command, args: &[OsString], config: &Config) -> Result<i32> {
    if let Some(private) = std::env::var_os(private::FOLDER) {
        // At the latest now, rust-analyzer has analysed evcxr's own first cell.
        private::show_library(Path::new(&private));
    }
    if std::env::var_os("RUSTC_WRAPPER").is_some() {
        return Ok(cargo.status().context("cannot start cargo")?.code().unwrap_or(1));
    }
    if let Some(private) = std::env::var_os(private::FOLDER) {
        // If this fails, a failing cell loses more variables than necessary, which is better than not running it.
        let _ = replaced::leave_in_store(Path::new(&private), &folder.join("src/lib.rs"));
    }
    let _ = flush_at_end(&folder.join("src/lib.rs"));
    let level = level_of_cells(folder);
    let kept = Kept::of(folder, args, config);
    if let Some(status) = kept.find().map(|call| repeat(&kept, &call, level.as_deref(), config)).transpose()?.flatten()
    {
        return Ok(status);
    }
    let call_file = folder.join("target/kernel-call");
    let _ = fs::remove_file(&call_file);
    let (status, said) =
        through_cargo(folder, cargo.env(CALL_FILE, &call_file).env("RUSTC_WRAPPER", std::env::current_exe()?), config)?;
    if status.success()
        && let Some(call) = read_call(&call_file)
        && let Some(inputs) = inputs(folder, &call)
        && let Some((rustc, args)) = call["args"].as_array().and_then(|args| args.split_first())
        && let Some(made) = cell_library(args)
    {
        let crates = crate_library(rustc.as_str().unwrap_or_default(), args, config).map(|crates| crates.name);
        // On a full disk, the cell runs all the same, and the next one goes through cargo.
        if kept.keep(call.clone(), inputs).is_ok() {
            kept.keep_library(&cell_source(folder), crates.as_deref(), &made);
            // cargo has compiled the cell without the checks for Interrupt.
            if stops::add(&cell_source(folder), &Default::default()).is_some()
                && let Some(status) =
                    kept.find().map(|call| repeat(&kept, &call, level.as_deref(), config)).transpose()?.flatten()
            {
                return Ok(status);
            }
        }
    }
    print!("{said}");
    Ok(status.code().unwrap_or(1))
}

/// Reports the errors of the cell in `folder`. evcxr runs `cargo check` where it cannot name a variable's type, such
/// as that of a closure. cargo would first check all dependencies, which takes a minute. Returns `None` where no
/// compilation is kept.
pub fn check(folder: &Path, args: &[OsString], config: &Config) -> Result<Option<i32>> {
    let args: Vec<OsString> = once("build".into()).chain(args.iter().skip(1).cloned()).collect();
    let kept = Kept::of(folder, &args, config);
    Ok(kept.find().map(|call| repeat(&kept, &call, None, config)).transpose()?.flatten())
}

/// Runs `cargo build`. Returns its status and its stdout. cargo does not notice damaged libraries, so those that
/// rustc cannot read are removed, and cargo makes them again.
fn through_cargo(folder: &Path, cargo: &mut Command, config: &Config) -> Result<(ExitStatus, String)> {
    for _ in 0..4 {
        let (status, said) = notice::run(cargo)?;
        let removed = if status.success() { 0 } else { remove_damaged(folder, &said, config) };
        if removed == 0 {
            return Ok((status, said));
        }
        eprintln!("kernel: {removed} compiled files in {} were damaged; cargo makes them again", folder.display());
    }
    notice::run(cargo)
}

/// Lets a cell that writes to stdout itself flush it at the end. Otherwise a last line without an end would never
/// appear.
fn flush_at_end(source: &Path) -> std::io::Result<()> {
    let text = fs::read_to_string(source)?;
    const END: &str = "\nevcxr_variable_store\n}";
    match text.rfind(END).filter(|_| text.contains("stdout()")) {
        Some(at) => {
            let flush = "\nlet _ = ::std::io::Write::flush(&mut ::std::io::stdout()); evcxr_variable_store\n}";
            fs::write(source, format!("{}{flush}{}", &text[..at], &text[at + END.len()..]))
        }
        None => Ok(()),
    }
}
