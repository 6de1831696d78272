//! A relay between the iopub socket and its readers. The socket sends each message to one reader after the other and
//! waits for each. So it sends to this relay, where messages wait for a slow or stopped reader without delaying the
//! others.

use std::path::Path;

use anyhow::{Context, Result};
use jupyter_protocol::ConnectionInfo;
use jupyter_protocol::connection_info::Transport;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

/// The relay disconnects a reader that is this many bytes behind. ZeroMQ connects it again by itself.
const BEHIND: usize = 64 << 20;

/// Listens at the address where readers expect iopub. Returns the address where the socket itself must listen.
pub async fn relay(info: &ConnectionInfo, folder: &Path) -> Result<ConnectionInfo> {
    // With the transport `ipc`, readers connect to a file that only the socket can make.
    if !matches!(info.transport, Transport::TCP) {
        return Ok(info.clone());
    }
    // ZeroMQ understands these names so.
    let ip = match info.ip.as_str() {
        "*" => "0.0.0.0",
        "localhost" => "127.0.0.1",
        ip => ip,
    };
    let listener = TcpListener::bind((ip, info.iopub_port)).await;
    let listener = listener.with_context(|| format!("cannot listen on {ip}:{}", info.iopub_port))?;
    let inside = folder.join("iopub");
    let place = ConnectionInfo {
        transport: Transport::IPC,
        ip: inside.to_string_lossy().into_owned(),
        iopub_port: 1,
        ..info.clone()
    };
    let socket = folder.join("iopub-1");
    tokio::spawn(async move {
        loop {
            // A failed connection must not end the relay.
            let Ok((reader, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let _ = reader.set_nodelay(true);
            if let Ok(publisher) = UnixStream::connect(&socket).await {
                tokio::spawn(pass_on(reader.into_split(), publisher.into_split(), BEHIND));
            }
        }
    });
    Ok(place)
}

type Ends<R, W> = (R, W);

/// Copies both ways until one side closes, or the reader is more than `behind` bytes behind.
async fn pass_on<R, W, P, Q>(reader: Ends<R, W>, publisher: Ends<P, Q>, behind: usize)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    P: AsyncRead + Unpin,
    Q: AsyncWrite + Unpin,
{
    let ((mut said, mut to_reader), (mut published, mut to_publisher)) = (reader, publisher);
    let mut waiting = std::collections::VecDeque::with_capacity(1 << 16);
    let (mut buffer, mut heard) = (vec![0; 1 << 16], vec![0; 1 << 10]);
    loop {
        let next = waiting.as_slices().0;
        let length = tokio::select! {
            written = to_reader.write(next), if !next.is_empty() => match written {
                Ok(written) if written > 0 => {
                    waiting.drain(..written);
                    continue;
                }
                _ => return,
            },
            length = published.read(&mut buffer) => length.unwrap_or(0),
            length = said.read(&mut heard) => match length {
                Ok(length) if length > 0 && to_publisher.write_all(&heard[..length]).await.is_ok() => continue,
                _ => return,
            },
        };
        if length == 0 {
            let (first, second) = waiting.as_slices();
            let _ = to_reader.write_all(first).await;
            let _ = to_reader.write_all(second).await;
            return;
        }
        waiting.extend(&buffer[..length]);
        if waiting.len() > behind {
            return eprintln!("kernel: disconnected a reader that was {} MB behind", behind >> 20);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_reader_has_not_taken_waits_for_it_up_to_a_bound() {
        let (mut reader, outside) = tokio::io::duplex(16);
        let (mut publisher, inside) = tokio::io::duplex(16);
        tokio::spawn(pass_on(tokio::io::split(outside), tokio::io::split(inside), 100));
        // Nobody reads, and the pipes hold far less, but the publisher does not have to wait.
        publisher.write_all(&[7; 100]).await.expect("it is taken");
        reader.write_all(b"subscribe").await.expect("it is taken");
        let mut heard = [0; 9];
        publisher.read_exact(&mut heard).await.expect("the other way stays open");
        assert_eq!(&heard, b"subscribe");
        let mut read = [0; 100];
        reader.read_exact(&mut read).await.expect("all of it waited");
        assert_eq!(read, [7; 100]);
        // This is more than may wait, so both connections end.
        let _ = publisher.write_all(&[8; 200]).await;
        let mut rest = vec![];
        reader.read_to_end(&mut rest).await.expect("it ends");
        assert!(rest.len() <= 100 + 16, "{}", rest.len());
    }
}
