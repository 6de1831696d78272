//! Small tables that read well as text and as HTML.

use super::output::{emit, escape};
use kdlab_client::Bundle;
use std::fmt;

/// Texts of more letters may wrap.
const LONG: usize = 30;

/// Rows under a header. A column whose cells all look like numbers is aligned to the right.
///
/// ```
/// use kdlab::show::Table;
/// let table = Table::new(&["run", "acc %"]).row(&["alone".into(), "41.0".into()]);
/// assert_eq!(table.to_string(), "run    acc %\nalone   41.0\n");
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes a table without rows.
    pub fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|&h| h.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row. Missing cells stay empty, surplus ones are dropped.
    pub fn row(mut self, cells: &[String]) -> Self {
        let mut cells = cells.to_vec();
        cells.resize(self.header.len(), String::new());
        self.rows.push(cells);
        self
    }

    /// The table as HTML, with all texts escaped.
    pub(super) fn html(&self) -> String {
        let numeric = self.numeric();
        let line = |cells: &[String], tag: &str| {
            let cell = |(cell, &right): (&String, &bool)| {
                // A value does not wrap, because `+1.0 to +2.0` on two lines looks like two values. Headings and long
                // names wrap, so that the last column, which has the verdict, stays in sight.
                let wrap = if tag == "td" && cell.chars().count() <= LONG { "nowrap" } else { "normal" };
                let align = if right { "right" } else { "left" };
                let style = format!("text-align:{align};padding:2px 10px;white-space:{wrap}");
                format!("<{tag} style=\"{style}\">{}</{tag}>", escape(cell))
            };
            format!("<tr>{}</tr>", cells.iter().zip(&numeric).map(cell).collect::<String>())
        };
        let (head, body) = (line(&self.header, "th"), self.rows.iter().map(|r| line(r, "td")).collect::<String>());
        format!("<div style=\"overflow-x:auto\"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>")
    }

    /// The table for a cell or a display.
    pub(super) fn bundle(&self) -> Bundle {
        Bundle::text(self.to_string().trim_end()).with("text/html", self.html())
    }

    /// Shows the table below the cell.
    pub fn evcxr_display(&self) {
        emit(&self.bundle());
    }

    fn numeric(&self) -> Vec<bool> {
        let number = |cell: &str| cell.chars().next().is_none_or(|c| c.is_ascii_digit() || c == '-' || c == '+');
        (0..self.header.len()).map(|c| !self.rows.is_empty() && self.rows.iter().all(|r| number(&r[c]))).collect()
    }
}

/// What a display of `kdlab_client` shows, as for a figure.
impl From<&Table> for Bundle {
    fn from(table: &Table) -> Self {
        table.bundle()
    }
}

/// The text of `Display`, for a cell that shows a value by `{:?}`.
impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numeric = self.numeric();
        let rows = || std::iter::once(&self.header).chain(&self.rows);
        let width = |c: usize| rows().map(|r| r[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        for row in rows() {
            let cells = row.iter().zip(&widths).zip(&numeric);
            let cells = cells.map(|((c, &w), &right)| if right { format!("{c:>w$}") } else { format!("{c:<w$}") });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}
