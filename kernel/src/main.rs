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
//! `kdlab-kernel CONNECTION_FILE` is the live kernel; `kdlab-kernel --control_file CONNECTION_FILE` is evcxr_jupyter.

mod cargo;
mod channels;
mod child;
mod comms;
mod compile;
mod failure;
mod front;
mod history;
mod inner;
mod link;
mod output;
mod streams;
mod syntax;
mod wire;

use std::path::Path;

use anyhow::Result;

fn main() -> Result<()> {
    if cargo::is_named("cargo") {
        return cargo::run();
    }
    if cargo::is_named("rustup") {
        return cargo::rustup();
    }
    if let Some(path) = std::env::var_os(compile::NOTE) {
        return compile::note(&path);
    }
    let set = |name| std::env::var_os(name).is_some();
    if set("EVCXR_IS_RUNTIME") {
        cargo::restore_home();
        child::hand_over()?;
    } else if set("EVCXR_RUSTC_WRAPPER") {
        // evcxr's wrapper around rustc: nothing of ours.
    } else if set(inner::FOLDER) {
        inner::end_with_parent();
    } else {
        let argument = std::env::args_os().nth(1).filter(|name| name.to_string_lossy() != "--control_file");
        if let Some(connection_file) = argument {
            return front::run(Path::new(&connection_file));
        }
    }
    evcxr_jupyter::main()
}
