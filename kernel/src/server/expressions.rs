//! The `user_expressions` of a request: Rust expressions that a front end wants evaluated after the cell.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use crate::cells::failures::Failure;
use crate::cells::syntax;
use crate::server::cell::Cell;
use crate::server::front::Front;

/// A cell that has ended, whose reply waits for the values of expressions.
pub struct Expressions {
    pub cell: Cell,
    /// Names and code.
    left: VecDeque<(String, String)>,
    values: Map<String, Value>,
}

impl Expressions {
    /// Makes the list of what the request of `cell` has asked for.
    pub fn of(cell: Cell, asked: &Value) -> Self {
        let asked = asked.as_object().into_iter().flatten();
        let left = asked.map(|(name, code)| (name.clone(), code.as_str().unwrap_or_default().to_owned())).collect();
        Self { cell, left, values: Map::new() }
    }

    /// Notes the value of an expression, or why there is none.
    pub fn note(&mut self, name: String, value: Option<(Value, Value)>, failure: Option<Failure>) {
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

impl Front {
    /// Evaluates the next expression. After the last one, replies to the cell and goes on to the next.
    pub fn next_expression(&mut self) {
        let Some(expressions) = &mut self.expressions else { return };
        while let Some((name, code)) = expressions.left.pop_front() {
            if !syntax::is_expression(&code) {
                let failure = Failure::new("error", &format!("this is no expression of Rust: {code}"), &[]);
                expressions.note(name, None, Some(failure));
            } else if !self.asks && syntax::ends_by_question_mark(&code) {
                expressions.left.push_front((name, code));
                return self.ask_first();
            } else {
                self.run_own(&code);
                if let Some(cell) = &mut self.cell {
                    cell.expression = Some(name);
                }
                return;
            }
        }
        let Some(Expressions { cell, values, .. }) = self.expressions.take() else { return };
        let payload: Vec<&Value> = cell.next_input.iter().collect();
        let reply = json!({
            "status": "ok", "execution_count": cell.count, "user_expressions": values, "payload": payload,
        });
        self.answer(&cell.request, reply);
        self.start_next();
    }
}
