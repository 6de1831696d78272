//! One cell, from the moment the server sends it to evcxr until the server replies.

use std::time::Instant;

use jupyter_protocol::JupyterMessage;
use serde_json::Value;

use crate::cells::failures::Failure;

/// Who asked the user to type a line.
#[derive(Clone, Copy, PartialEq)]
pub enum Asker {
    /// evcxr, for code that uses the crate evcxr_input.
    Evcxr,
    /// The server, for code that reads its stdin.
    Stdin,
}

/// What the server knows of the running cell.
pub struct Cell {
    pub request: JupyterMessage,
    /// The server runs this cell for itself and shows nothing of it.
    pub internal: bool,
    pub code: String,
    pub count: u64,
    /// The number that evcxr gives the cell; evcxr's messages name it.
    pub evcxr_count: u64,
    pub failure: Option<Failure>,
    /// The contents of evcxr's `error` messages.
    pub errors: Vec<Value>,
    pub reply: Option<Value>,
    /// evcxr has sent its last message about this cell.
    pub idle: bool,
    /// When the user last pressed Interrupt, or read the note on what a second Interrupt costs.
    pub interrupted: Option<Instant>,
    /// Interrupt found work that watches for it.
    pub watched: bool,
    /// The cell went on after Interrupt, and the note on that was shown.
    pub warned: bool,
    /// The user interrupted the cell before it ran.
    pub skip: bool,
    pub killed: bool,
    /// Who waits for the user to type a line.
    pub awaits_input: Option<Asker>,
    /// Interrupt has ended a wait for input.
    pub input_ended: bool,
    /// The cell read the end of its stdin, and the note about that was shown.
    pub met_end: bool,
    /// Another page was opened while the cell ran.
    pub page_opened: bool,
    /// Code that shows the cell's results afterwards.
    pub afterwards: Vec<String>,
    /// Text for the next cell of the notebook, as a payload of the reply.
    pub next_input: Option<Value>,
    /// The name of the user's expression that this internal cell evaluates.
    pub expression: Option<String>,
    /// The value of that expression: its forms, and their metadata.
    pub value: Option<(Value, Value)>,
    /// evcxr has compiled code of this cell, and the child has run it.
    pub ran: bool,
    /// Variables that evcxr dropped because the cell defined their types again.
    pub dropped: Vec<String>,
}

impl Cell {
    pub fn new(request: JupyterMessage, code: String, count: u64) -> Self {
        Self {
            request,
            internal: false,
            code,
            count,
            evcxr_count: 0,
            failure: None,
            errors: vec![],
            reply: None,
            idle: false,
            interrupted: None,
            watched: false,
            warned: false,
            skip: false,
            killed: false,
            awaits_input: None,
            input_ended: false,
            met_end: false,
            page_opened: false,
            afterwards: vec![],
            next_input: None,
            expression: None,
            value: None,
            ran: false,
            dropped: vec![],
        }
    }
}
