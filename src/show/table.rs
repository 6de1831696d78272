//! Small tables that read well as text and as HTML.

use std::fmt;

/// Longer texts may break into lines.
const LONG: usize = 30;

/// Rows under a header. A column whose cells all look like numbers is set to the right.
#[derive(Clone, Default, PartialEq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|&h| h.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells stay empty, surplus ones are dropped.
    pub fn row(mut self, cells: &[String]) -> Self {
        let mut cells = cells.to_vec();
        cells.resize(self.header.len(), String::new());
        self.rows.push(cells);
        self
    }

    pub fn html(&self) -> String {
        let numeric = self.numeric();
        let line = |cells: &[String], tag: &str| {
            let cell = |(cell, &right): (&String, &bool)| {
                // A value stays in its line: `+1.0 to +2.0` in two looks like two. Headings and long names may break,
                // or the last column, which has the verdict, is out of sight.
                let wrap = if tag == "td" && cell.chars().count() <= LONG { "nowrap" } else { "normal" };
                let align = if right { "right" } else { "left" };
                format!(
                    "<{tag} style=\"text-align:{align};padding:2px 10px;white-space:{wrap}\">{}</{tag}>",
                    escape(cell)
                )
            };
            format!("<tr>{}</tr>", cells.iter().zip(&numeric).map(cell).collect::<String>())
        };
        let body: String = self.rows.iter().map(|r| line(r, "td")).collect();
        format!(
            "<div style=\"overflow-x:auto\"><table><thead>{}</thead><tbody>{body}</tbody></table></div>",
            line(&self.header, "th")
        )
    }

    fn numeric(&self) -> Vec<bool> {
        let number = |cell: &str| cell.chars().next().is_none_or(|c| c.is_ascii_digit() || c == '-' || c == '+');
        (0..self.header.len()).map(|c| !self.rows.is_empty() && self.rows.iter().all(|r| number(&r[c]))).collect()
    }
}

/// As [`fmt::Display`], for a cell that shows a value only by `{:?}`.
impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numeric = self.numeric();
        let width =
            |c: usize| std::iter::once(&self.header).chain(&self.rows).map(|r| r[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            let cells = row
                .iter()
                .zip(&widths)
                .zip(&numeric)
                .map(|((cell, &w), &right)| if right { format!("{cell:>w$}") } else { format!("{cell:<w$}") });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
