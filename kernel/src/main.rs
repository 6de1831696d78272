//! A live Jupyter kernel around evcxr_jupyter 0.22, which is used as it is.
//!
//! One binary, three lives, each the parent of the next:
//! - front: the Jupyter server that the front end talks to ([`front`]). It relays cells to
//! - inner: `evcxr_jupyter::main()`, which compiles cells and starts
//! - child: evcxr's runtime process, which loads compiled cells and runs them.
//!
//! Before evcxr's code takes over in the child, its stdin, stdout and stderr are handed to the front ([`child`]), which
//! sees what cells print *as* they print it, together with the lines by which evcxr's own code talks to its parent
//! ([`output`]). Cells reach the front through a socket ([`link`]): displays that update, widgets, Interrupt.
//!
//! Under the names `cargo` and `rustup` it is these for evcxr and the rust-analyzer in it ([`cargo`]).
//!
//! `kdlab-kernel CONNECTION_FILE` is the live kernel; `kdlab-kernel --control_file CONNECTION_FILE` is evcxr_jupyter;
//! `kdlab-kernel --outline FROM TO` writes what its rust-analyzer is to see of Rust's library.

mod cells;
mod config;
mod launch;
mod private;
mod processes;
mod server;

use std::path::Path;

use anyhow::{Result, bail};

use cells::compile::{cargo, rustc};
use cells::handover;
use launch::kernelspec::{self, USAGE};
use launch::{environment, inner};

fn main() -> Result<()> {
    if cargo::is_named("cargo") {
        return cargo::run();
    }
    if cargo::is_named("rustup") {
        return cargo::rustup();
    }
    if let Some(path) = std::env::var_os(rustc::NOTE) {
        return rustc::note(&path);
    }
    let set = |name| std::env::var_os(name).is_some();
    if set("EVCXR_IS_RUNTIME") {
        cargo::restore_home();
        inner::allow_huge_pages();
        handover::hand_over()?;
    } else if set("EVCXR_RUSTC_WRAPPER") {
        // evcxr's wrapper around rustc: nothing of ours.
    } else if set(private::FOLDER) {
        inner::keep_lock();
        inner::end_with_parent();
    } else {
        let mut arguments = std::env::args_os().skip(1);
        match arguments.next() {
            Some(name) if name == "--control_file" => {
                inner::keep_lock();
                for (name, value) in environment::prepare_alone()? {
                    // SAFETY: there are no other threads yet.
                    unsafe { std::env::set_var(name, value) };
                }
            }
            Some(name) if name == "install" => return kernelspec::install(arguments),
            Some(name) if name.to_string_lossy().starts_with('-') => bail!("{USAGE}"),
            Some(connection_file) => return server::run(Path::new(&connection_file)),
            None => bail!("{USAGE}"),
        }
    }
    evcxr_jupyter::main()
}
