//! A live Jupyter kernel around evcxr_jupyter 0.22, which it uses unchanged.
//!
//! One program serves as several processes; `main` finds out which one it is. Three of them are the kernel, and each
//! starts the next:
//! - the server speaks Jupyter's protocol ([`server`]) and sends cells to the interpreter;
//! - the interpreter is evcxr_jupyter, which compiles cells ([`launch::interpreter`]);
//! - the child is evcxr's runtime process, which loads compiled cells and runs them.
//!
//! Before evcxr's code takes over in the child, the child hands its stdin, stdout and stderr to the server
//! ([`cells::handover`]). So the server sees what cells print as they print it, with the lines by which evcxr's own
//! code reports to the interpreter ([`cells::output`]). Cells reach the server through a socket ([`server::link`]).
//!
//! Called as `cargo`, `rustup` or rustc's wrapper it stands between evcxr and the real ones ([`cells::compile`]). With
//! `install` it writes a kernelspec ([`launch::kernelspec`]).
//!
//! Words, as Jupyter's protocol uses them where it has one:
//! - frontend: the program in which the user works, such as JupyterLab; page: one notebook in it, with its own session;
//! - Jupyter server: the program that starts kernels, not a part of this one;
//! - request, reply: the two messages of an exchange, with a frontend, with evcxr_jupyter or on a link;
//! - parent: the request that another message belongs to; a process that started another is its parent process;
//! - link: a connection by which code in a cell reaches the server, through the client crate;
//! - note: advice that the kernel shows below a cell;
//! - dropped: said of a variable that evcxr forgets because its type was defined again;
//! - lost: said of one whose value ended with the child, or was moved away by a cell that failed;
//! - build directory: the folder in which evcxr's packages of cells are compiled (`EVCXR_TMPDIR`).
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
use launch::{environment, interpreter};

fn main() -> Result<()> {
    if cargo::is_named("cargo") {
        return cargo::run();
    }
    if cargo::is_named("rustup") {
        return cargo::rustup();
    }
    if let Some(path) = std::env::var_os(rustc::CALL_FILE) {
        return rustc::record_call(&path);
    }
    let set = |name| std::env::var_os(name).is_some();
    if set("EVCXR_IS_RUNTIME") {
        cargo::restore_home();
        interpreter::allow_huge_pages();
        handover::hand_over()?;
    } else if set("EVCXR_RUSTC_WRAPPER") {
        // evcxr's own wrapper around rustc needs nothing of the kernel.
    } else if set(private::FOLDER) {
        interpreter::keep_lock();
        interpreter::end_with_server();
    } else {
        let mut arguments = std::env::args_os().skip(1);
        match arguments.next() {
            // The interpreter has this argument and FOLDER. Without FOLDER, Jupyter started the stock kernel.
            Some(name) if name == "--control_file" => {
                interpreter::keep_lock();
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
