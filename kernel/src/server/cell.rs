//! A cell from the moment it is handed to evcxr until it is answered.

use std::time::Instant;

use jupyter_protocol::JupyterMessage;
use serde_json::Value;

use crate::cells::failures::Failure;

/// What the front knows of the cell that evcxr has.
pub struct Cell {
    pub request: JupyterMessage,
    /// It is the front's own: nothing of it is shown.
    pub own: bool,
    pub code: String,
    pub count: u64,
    /// evcxr's own count, which its messages name.
    pub inner_count: u64,
    pub failure: Option<Failure>,
    /// `error` messages of evcxr.
    pub errors: Vec<Value>,
    pub reply: Option<Value>,
    /// evcxr has nothing more to say about it.
    pub idle: bool,
    /// When those who watch were last told to stop.
    pub told: Option<Instant>,
    /// Interrupt came before it ran.
    pub skip: bool,
    pub killed: bool,
    pub awaits_input: bool,
    /// Its stdin has ended, and it says so only once.
    pub met_end: bool,
    /// Another page came while it ran.
    pub joined: bool,
    /// Code that shows afterwards what it made.
    pub afterwards: Vec<String>,
    /// Variables that evcxr dropped, for their types were defined again.
    pub dropped: Vec<String>,
}

impl Cell {
    pub fn new(request: JupyterMessage, code: String, count: u64) -> Self {
        Self {
            request,
            own: false,
            code,
            count,
            inner_count: 0,
            failure: None,
            errors: vec![],
            reply: None,
            idle: false,
            told: None,
            skip: false,
            killed: false,
            awaits_input: false,
            met_end: false,
            joined: false,
            afterwards: vec![],
            dropped: vec![],
        }
    }
}
