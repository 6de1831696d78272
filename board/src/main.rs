//! The class's board, which `cargo lab board` starts: a server that collects paired runs in an SQLite file, and a page
//! that shows them as they come.

mod post;
mod server;
mod store;
mod view;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use store::Store;

/// What `cargo lab board` hands over, as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Where posts are kept.
    file: PathBuf,
    host: IpAddr,
    port: u16,
    /// The profiles whose posts are taken.
    profiles: Vec<String>,
    /// A name to take off the board, instead of starting it.
    remove: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let given = std::env::args().nth(1).context("`cargo lab board` starts this program")?;
    let Arguments { file, host, port, profiles, remove } = serde_json::from_str(&given).context("the arguments")?;
    let store = Store::open(&file)?;
    if let Some(name) = remove {
        let removed = store.remove(&name)?;
        if removed == 0 {
            bail!("nobody on the board of {} is called {name:?}; the page shows the names", file.display());
        }
        println!("{name} and all pairs and bets under this name are off the board");
        return Ok(());
    }
    raise_limit_of_files();
    tokio::runtime::Runtime::new().context("cannot start threads")?.block_on(async {
        let listener = tokio::net::TcpListener::bind((host, port)).await.with_context(|| {
            format!("cannot listen at {host}:{port}; another board may run there: take another with --port")
        })?;
        announce(listener.local_addr()?, &store, &file);
        server::serve(listener, store, &file, profiles).await
    })
}

/// Says how the class gets to the board.
fn announce(here: SocketAddr, store: &Store, file: &std::path::Path) {
    let reached = if here.ip().is_unspecified() { address_in_the_room().unwrap_or(here.ip()) } else { here.ip() };
    let (address, code) = (format!("http://{}", SocketAddr::new(reached, here.port())), store.code());
    println!("The class's board: {address}/#{code}   (for the projector; all posts are in {})", file.display());
    println!("In a notebook:     lab.join(\"{address}\", \"{code}\")?");
    if here.ip().is_loopback() {
        println!("Only programs of this machine reach it. For a room of laptops: cargo lab board --host");
    } else {
        println!(
            "Everybody on the network can read the page, its names included; everybody with the code \
             can post. Nothing is encrypted, and nothing that is sent is executed."
        );
    }
    println!("Ctrl-C ends it; started again, it goes on with the same posts and the same code.");
}

/// The address by which the network reaches this machine: the one from which a packet to it would leave. None is sent.
fn address_in_the_room() -> Option<IpAddr> {
    let leaves = |to: &str| {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
    };
    ["192.0.2.1", "192.168.0.1", "192.168.1.1", "10.0.0.1", "172.16.0.1"].into_iter().find_map(leaves)
}

/// A connection is an open file, and a room with a flood in it may need more than the usual 1024.
fn raise_limit_of_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
