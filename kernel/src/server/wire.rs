//! Jupyter messages with their contents as plain JSON.

use anyhow::Result;
use jupyter_protocol::{Header, JupyterMessage, JupyterMessageContent, UnknownMessage};
use jupyter_zmq_client::{Connection, RawMessage};
use serde_json::{Value, json};
use zeromq::SocketRecv;

/// Receives the next message and checks its signature. Its content is not checked against a schema, because frontends
/// leave out fields that have a default.
pub async fn read<S: SocketRecv>(connection: &mut Connection<S>) -> Result<JupyterMessage> {
    let raw = RawMessage::from_multipart(connection.socket.recv().await?, &connection.mac)?;
    let header: Header = serde_json::from_slice(&raw.jparts[0])?;
    let content =
        UnknownMessage { msg_type: header.msg_type.clone(), content: serde_json::from_slice(&raw.jparts[3])? };
    Ok(JupyterMessage {
        zmq_identities: raw.zmq_identities,
        header,
        parent_header: serde_json::from_slice(&raw.jparts[1]).ok(),
        metadata: serde_json::from_slice(&raw.jparts[2])?,
        content: JupyterMessageContent::UnknownMessage(content),
        buffers: raw.jparts[4..].to_vec(),
        channel: None,
    })
}

/// Makes a message of this type and content that belongs to the request `parent`.
pub fn message(kind: &str, content: Value, parent: Option<&JupyterMessage>) -> JupyterMessage {
    let content = JupyterMessageContent::UnknownMessage(UnknownMessage { msg_type: kind.to_owned(), content });
    JupyterMessage::new(content, parent)
}

/// Returns the content of a message of any type.
pub fn content(message: &JupyterMessage) -> Value {
    serde_json::to_value(&message.content).unwrap_or_default()
}

/// Returns the id of the parent of `message`.
pub fn parent_id(message: &JupyterMessage) -> &str {
    message.parent_header.as_ref().map_or("", |header| header.msg_id.as_str())
}

/// Returns the reply to `kernel_info_request`. It describes the language as evcxr_jupyter does, so that notebooks are
/// the same on both.
/// `rust` is the version of rustc.
pub fn kernel_info(rust: &str) -> Value {
    json!({
        "status": "ok",
        "protocol_version": "5.3",
        "implementation": "kdlab-kernel",
        "implementation_version": env!("CARGO_PKG_VERSION"),
        "language_info": {
            "name": "Rust", "version": rust, "mimetype": "text/rust", "file_extension": ".rs",
            "pygments_lexer": "rust", "codemirror_mode": "rust",
        },
        "banner": "Rust by evcxr, live",
        "help_links": [{"text": "Rust std docs", "url": "https://doc.rust-lang.org/stable/std/"}],
        "debugger": false,
    })
}
