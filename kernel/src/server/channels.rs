//! Connects ZeroMQ sockets with the server's one task: every incoming message becomes an event, and an outbox sends
//! messages in order.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jupyter_protocol::{JupyterMessage, JupyterMessageContent};
use jupyter_zmq_client::Connection;
use jupyter_zmq_client::connection::{KernelIoPubXPubConnection, SubscriptionEvent};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zeromq::{SocketRecv, SocketSend};

use crate::server::wire::{message, parent_id, read};

pub type Outbox = UnboundedSender<JupyterMessage>;

/// Draws 256 random bits, as hexadecimal text.
pub fn token() -> Result<String> {
    let mut bytes = [0; 32];
    let mut source = std::fs::File::open("/dev/urandom").context("cannot draw a random token")?;
    std::io::Read::read_exact(&mut source, &mut bytes).context("cannot draw a random token")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What was put into an outbox and not yet sent.
pub type Waiting = UnboundedReceiver<JupyterMessage>;

pub fn outbox<S: SocketSend + Send + 'static>(socket: Connection<S>) -> Outbox {
    let (sender, receiver) = unbounded_channel();
    send(receiver, socket);
    sender
}

/// Sends the messages of an outbox by `socket`.
pub fn send<S: SocketSend + Send + 'static>(mut receiver: Waiting, mut socket: Connection<S>) {
    tokio::spawn(async move {
        while let Some(message) = receiver.recv().await {
            // A failure means that the receiver has ended, and then nobody waits for the message.
            let _ = socket.send(message).await;
        }
    });
}

/// Text that follows other text within this time waits for more, so that several lines share a message.
const GATHER: Duration = Duration::from_millis(10);
/// Maximal length of the text in one message.
const FULL: usize = 1 << 20;

/// Starts the iopub channel. It welcomes every subscriber (JEP 65), so that none misses what follows. It joins
/// printed lines into few messages, because frontends choke on a hundred thousand.
pub fn publish(mut receiver: Waiting, mut socket: KernelIoPubXPubConnection) {
    tokio::spawn(async move {
        let (mut ahead, mut printed) = (None, Instant::now());
        loop {
            let mut message = match ahead.take() {
                Some(message) => message,
                None => tokio::select! {
                    message = receiver.recv() => {
                        let Some(message) = message else { return };
                        message
                    }
                    Ok(SubscriptionEvent::Subscribe(topic)) = socket.recv_subscription() => {
                        message("iopub_welcome", json!({"subscription": topic}), None)
                    }
                },
            };
            if message.header.msg_type == "stream" {
                if printed.elapsed() < 5 * GATHER {
                    tokio::time::sleep(GATHER).await;
                }
                while ahead.is_none()
                    && let Ok(next) = receiver.try_recv()
                {
                    ahead = join(&mut message, next);
                }
                printed = Instant::now();
            }
            let _ = socket.send(message).await;
        }
    });
}

/// Appends the text of `next` to `message`. Returns `next` where it is of another kind or does not fit.
fn join(message: &mut JupyterMessage, next: JupyterMessage) -> Option<JupyterMessage> {
    let same = next.header.msg_type == "stream" && parent_id(message) == parent_id(&next);
    if let (true, JupyterMessageContent::UnknownMessage(first), JupyterMessageContent::UnknownMessage(more)) =
        (same, &mut message.content, &next.content)
        && first.content["name"] == more.content["name"]
        && let (Value::String(text), Value::String(more)) = (&mut first.content["text"], &more.content["text"])
        && text.len() + more.len() <= FULL
    {
        text.push_str(more);
        return None;
    }
    Some(next)
}

/// Turns every message of `socket` into an event.
pub fn follow<S, E>(mut socket: Connection<S>, event: fn(JupyterMessage) -> E, events: UnboundedSender<E>)
where
    S: SocketRecv + Send + 'static,
    E: Send + 'static,
{
    tokio::spawn(async move {
        loop {
            match read(&mut socket).await.map(event) {
                Ok(event) => {
                    if events.send(event).is_err() {
                        return;
                    }
                }
                // The message is malformed or its signature forged, so it is ignored.
                Err(error) => {
                    eprintln!("kernel: ignored a message: {error}");
                    // A socket whose other side has ended may fail again and again, which must not keep a core busy.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    });
}

/// Turns the system's request to end into an event.
pub fn follow_signals<E: Send + 'static>(terminate: fn() -> E, events: UnboundedSender<E>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                // Jupyter sends Interrupt as a message. Ctrl-C in the server's terminal is not meant for kernels.
                _ = interrupts.recv() => {}
                _ = terminations.recv() => drop(events.send(terminate())),
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::wire::content;

    #[test]
    fn only_text_of_one_cell_and_stream_is_joined() {
        let cell = message("execute_request", json!({}), None);
        let print = |name: &str, text: &str, cell| message("stream", json!({"name": name, "text": text}), cell);
        let mut first = print("stdout", "a\n", Some(&cell));
        assert!(join(&mut first, print("stdout", "b\n", Some(&cell))).is_none());
        assert_eq!(content(&first), json!({"name": "stdout", "text": "a\nb\n"}));
        let others = [
            print("stderr", "c\n", Some(&cell)),
            print("stdout", "c\n", None),
            message("display_data", json!({"text": "c", "name": "stdout"}), Some(&cell)),
            print("stdout", &"x".repeat(FULL), Some(&cell)),
        ];
        for other in others {
            assert!(join(&mut first, other).is_some());
        }
        assert_eq!(content(&first)["text"], "a\nb\n");
    }
}
