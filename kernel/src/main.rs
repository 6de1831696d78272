//! A live Jupyter kernel around evcxr_jupyter 0.22, which it uses unchanged.
//!
//! One program serves as several processes; `main` finds out which one it is. Three of them are the kernel, each the
//! parent of the next:
//! - front: speaks Jupyter's protocol with the front end ([`server`]) and sends cells to inner;
//! - inner: evcxr_jupyter, which compiles cells ([`launch::inner`]) and starts child;
//! - child: evcxr's runtime process, which loads compiled cells and runs them.
//!
//! Before evcxr's code takes over in the child, the child hands its stdin, stdout and stderr to the front
//! ([`cells::handover`]). So the front sees what cells print as they print it, with the lines by which evcxr's own code
//! reports to its parent ([`cells::output`]). Cells reach the front through a socket ([`server::link`]).
//!
//! Called as `cargo`, `rustup` or rustc's wrapper it stands between evcxr and the real ones ([`cells::compile`]). With
//! `install` it writes a kernelspec ([`launch::kernelspec`]).
//!
//! The modules in order: [`private`], [`processes`], [`config`], [`cells`], [`launch`], [`server`]. Each uses only
//! itself and those before it.

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
        // evcxr's own wrapper around rustc needs nothing of the kernel.
    } else if set(private::FOLDER) {
        inner::keep_lock();
        inner::end_with_parent();
    } else {
        let mut arguments = std::env::args_os().skip(1);
        match arguments.next() {
            // The inner process has this argument too, and FOLDER. Without FOLDER, Jupyter started the stock kernel.
            Some(name) if name == "--control_file" => {
                inner::keep_lock();
                for (name, value) in environment::prepare_alone()? {
                    // SAFETY: there are no other threads yet.
                    unsafe { std::env::set_var(name, value) };
                }
            }
            Some(name) if name == "install" => return kernelspec::install(arguments),
            Some(name) if name == "--help" => {
                println!("{USAGE}");
                return Ok(());
            }
            Some(name) if name.to_string_lossy().starts_with('-') => bail!("{USAGE}"),
            Some(connection_file) => return server::run(Path::new(&connection_file)),
            None => bail!("{USAGE}"),
        }
    }
    evcxr_jupyter::main()
}
