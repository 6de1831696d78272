//! The `user_expressions` of a request: Rust expressions that a frontend wants evaluated after the cell.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use crate::cells::failures::Failure;
use crate::server::cell::Cell;

/// A cell that has ended, whose reply waits for the values of expressions.
pub struct Expressions {
    pub cell: Cell,
    /// Names and code of the expressions that are not evaluated yet.
    pub left: VecDeque<(String, String)>,
    pub values: Map<String, Value>,
}

impl Expressions {
    /// Makes the list of what the request of `cell` has asked for.
    pub fn of(cell: Cell, asked: &Value) -> Self {
        let asked = asked.as_object().into_iter().flatten();
        let left = asked.map(|(name, code)| (name.clone(), code.as_str().unwrap_or_default().to_owned())).collect();
        Self { cell, left, values: Map::new() }
    }

    /// Adds the value of an expression, or why there is none.
    pub fn add(&mut self, name: String, value: Option<(Value, Value)>, failure: Option<Failure>) {
        let entry = match failure {
            Some(failure) => {
                let mut entry = failure.content();
                entry["status"] = json!("error");
                entry
            }
            None => {
                let (data, metadata) = value.unwrap_or_else(|| (json!({}), json!({})));
                json!({"status": "ok", "data": data, "metadata": metadata})
            }
        };
        self.values.insert(name, entry);
    }
}
