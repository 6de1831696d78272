//! Quick checks: three questions about a notebook, each with answers to choose from and a word on each answer.

use super::output::{emit_text, escape, lines_html};
use crate::error::lock;
use crate::{Error, Result};
use kdlab_client::{Bundle, Panel, Widget};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const LETTERS: [char; 3] = ['a', 'b', 'c'];

#[derive(Deserialize)]
struct Question {
    question: String,
    /// Each answer with its feedback.
    answers: [[String; 2]; 3],
    /// Index of the right answer.
    right: usize,
}

impl Question {
    fn list(&self) -> String {
        let answers = LETTERS.iter().zip(&self.answers).map(|(letter, [answer, _])| format!("\n   {letter}) {answer}"));
        format!("{}{}", self.question, answers.collect::<String>())
    }

    fn said(&self, answer: usize) -> String {
        format!("{} {}", if answer == self.right { "Right." } else { "Not quite." }, self.answers[answer][1])
    }
}

/// Questions about a notebook. The live kernel shows them with buttons, which work as long as this value exists.
pub struct QuickChecks {
    questions: Arc<Vec<Question>>,
    open: Mutex<Option<Open>>,
}

/// The buttons, which close when they are dropped.
struct Open(Panel, String);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close(&Bundle::text(self.1.as_str()).with("text/html", lines_html(&self.1)), &[]);
    }
}

/// Returns the questions of a notebook of the course, by its number.
///
/// # Errors
/// When no notebook of the course has this number.
pub fn quick_checks(notebook: usize) -> Result<QuickChecks> {
    let mut all: BTreeMap<usize, Vec<Question>> = serde_json::from_str(include_str!("quick_checks.json"))
        .map_err(|e| Error::Data(format!("quick_checks.json: {e}")))?;
    let last = all.keys().last().copied().unwrap_or(0);
    match all.remove(&notebook) {
        Some(questions) => Ok(QuickChecks { questions: Arc::new(questions), open: Mutex::new(None) }),
        None => Err(Error::Input(format!("notebook {notebook} has no quick checks; the course has 0 to {last}"))),
    }
}

impl QuickChecks {
    /// Returns what is to be said of an answer, `'a'`, `'b'` or `'c'`, to the question of this number, from 1.
    ///
    /// # Errors
    /// When there is no such question or answer.
    pub fn answer(&self, question: usize, answer: char) -> Result<String> {
        let found = question.checked_sub(1).and_then(|i| self.questions.get(i));
        match (found, LETTERS.iter().position(|&letter| letter == answer)) {
            (Some(question), Some(answer)) => Ok(question.said(answer)),
            _ => Err(Error::Input(format!(
                "there is no answer {answer:?} to question {question}; questions are 1 to {}, answers 'a', 'b' and 'c'",
                self.questions.len()
            ))),
        }
    }

    fn text(&self) -> String {
        let questions = (1..).zip(self.questions.iter()).map(|(i, question)| format!("{i}. {}", question.list()));
        questions.collect::<Vec<_>>().join("\n\n")
    }

    /// Opens the buttons; returns `None` without a live kernel.
    fn open(&self) -> Option<Open> {
        let mut parts = Vec::new();
        for (i, question) in (1..).zip(self.questions.iter()) {
            parts.push(Widget::html("", &lines_html(&format!("{i}. {}", question.list()))));
            let button = |(letter, [answer, _]): (&char, &[String; 2])| {
                let button = Widget::button(&format!("{i}{letter}")).with("description", letter.to_string());
                button.with("tooltip", format!("answer {letter} to question {i}: {answer}"))
            };
            parts.push(Widget::row(LETTERS.iter().zip(&question.answers).map(button)));
            parts.push(Widget::html(&i.to_string(), ""));
        }
        let questions = Arc::clone(&self.questions);
        let panel = Panel::open(Widget::column(parts), move |panel, name, _| {
            let (number, letter) = name.split_at(name.len() - 1);
            let question = number.parse::<usize>().ok().and_then(|number| questions.get(number.checked_sub(1)?));
            let answer = LETTERS.iter().position(|l| letter == l.to_string());
            if let (Some(question), Some(answer)) = (question, answer) {
                let sign = if answer == question.right { "✓" } else { "✗" };
                let said =
                    format!("<p style=\"margin:0 0 12px\">{sign} {letter}) {}</p>", escape(&question.said(answer)));
                panel.set(number, json!({ "value": said }));
            }
        });
        panel.link()?;
        panel.show(&self.text()).ok()?;
        Some(Open(panel, self.text()))
    }

    /// Shows the questions below the cell. Buttons that were shown before close.
    pub fn evcxr_display(&self) {
        let shown = self.open();
        if shown.is_none() {
            emit_text(&self.text());
        }
        *lock(&self.open) = shown;
    }
}
