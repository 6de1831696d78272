//! The server's connections to evcxr_jupyter, and its end.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use jupyter_zmq_client::{ClientIoPubConnection, ClientShellConnection, Connection, peer_identity_for_session};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;
use zeromq::{DealerSocket, Socket, SocketOptions, SubSocket};

/// The session of the messages between the server and evcxr_jupyter.
const SESSION: &str = "kdlab-kernel-server";

pub struct Connections {
    pub shell: ClientShellConnection,
    pub stdin: ClientShellConnection,
    pub iopub: ClientIoPubConnection,
}

/// Connects to evcxr_jupyter once it listens.
pub async fn connect(folder: &Path, token: &str) -> Result<Connections> {
    let endpoint = |port: u16| format!("ipc://{}:{port}", folder.join("interpreter").display());
    while !(1..=5).all(|port| folder.join(format!("interpreter:{port}")).exists()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let dealer = async |port| {
        let mut options = SocketOptions::default();
        // evcxr_jupyter sends requests for input to the peer with the identity of the shell connection.
        options.peer_identity(peer_identity_for_session(SESSION)?);
        let mut socket = DealerSocket::with_options(options);
        socket.connect(&endpoint(port)).await?;
        anyhow::Ok(Connection::new(socket, token, SESSION))
    };
    let mut iopub = SubSocket::new();
    iopub.subscribe("").await?;
    iopub.connect(&endpoint(2)).await?;
    Ok(Connections { shell: dealer(1).await?, stdin: dealer(3).await?, iopub: Connection::new(iopub, token, SESSION) })
}

/// Waits until evcxr_jupyter ends. Returns the last lines of its output and its exit status.
pub async fn ended(mut process: Child) -> String {
    let out = tokio::spawn(last_lines(process.stdout.take()));
    let err = tokio::spawn(last_lines(process.stderr.take()));
    let status = process.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
    let mut said = out.await.unwrap_or_default();
    said.extend(err.await.unwrap_or_default());
    format!("{}\nevcxr_jupyter ended with {status}", said.join("\n"))
}

/// Copies a stream into the log of the Jupyter server. Returns its last lines.
async fn last_lines(stream: Option<impl AsyncRead + Unpin>) -> Vec<String> {
    let mut last = VecDeque::new();
    if let Some(stream) = stream {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // evcxr_jupyter looks for a file that this kernel does not use.
            if line.starts_with("No configuration file found") {
                continue;
            }
            eprintln!("evcxr: {line}");
            last.push_back(line);
            if last.len() > 200 {
                last.pop_front();
            }
        }
    }
    last.into()
}
