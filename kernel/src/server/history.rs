//! The inputs since the kernel started, which frontends can recall. Earlier ones are not stored.

use regex::Regex;
use serde_json::{Value, json};

#[derive(Default)]
pub struct History(Vec<(u64, String)>);

impl History {
    pub fn push(&mut self, count: u64, code: &str) {
        self.0.push((count, code.to_owned()));
    }

    /// Returns `history` of the reply to a `history_request`.
    pub fn recall(&self, asked: &Value) -> Value {
        let number = |name: &str| asked[name].as_u64();
        let mut found: Vec<&(u64, String)> = self.0.iter().collect();
        match asked["hist_access_type"].as_str() {
            Some("range") => {
                let (start, stop) = (number("start").unwrap_or(0), number("stop").unwrap_or(u64::MAX));
                found.retain(|(count, _)| (start..stop).contains(count));
            }
            Some("search") => {
                let pattern = regex::escape(asked["pattern"].as_str().unwrap_or("*"));
                let wanted = format!("(?s)^{}$", pattern.replace(r"\*", ".*").replace(r"\?", "."));
                found.retain(|(_, code)| Regex::new(&wanted).is_ok_and(|wanted| wanted.is_match(code)));
                if asked["unique"] == true {
                    // Keep the last one of equal inputs.
                    let last = |count, code| self.0.iter().rfind(|(_, c)| c == code).is_some_and(|(n, _)| *n == count);
                    found.retain(|(count, code)| last(*count, code));
                }
            }
            _ => {}
        }
        if let Some(n) = number("n") {
            found.drain(..found.len().saturating_sub(n as usize));
        }
        let entry = |(count, code): &(u64, String)| match asked["output"] == true {
            true => json!([1, count, [code, ""]]),
            false => json!([1, count, code]),
        };
        found.into_iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_found_by_place_and_by_pattern() {
        let mut history = History::default();
        for (count, code) in (1..).zip(["6*7", "let a = 1;", "6*7", "b"]) {
            history.push(count, code);
        }
        let ask = |asked: Value| history.recall(&asked);
        assert_eq!(ask(json!({"hist_access_type": "tail", "n": 2})), json!([[1, 3, "6*7"], [1, 4, "b"]]));
        assert_eq!(ask(json!({"hist_access_type": "range", "start": 2, "stop": 3})), json!([[1, 2, "let a = 1;"]]));
        let search = json!({"hist_access_type": "search", "pattern": "6*", "unique": true, "output": true});
        assert_eq!(ask(search), json!([[1, 3, ["6*7", ""]]]));
        assert_eq!(ask(json!({"hist_access_type": "search", "pattern": "?", "n": 5})), json!([[1, 4, "b"]]));
    }
}
