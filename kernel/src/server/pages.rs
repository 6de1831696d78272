//! Pages that are closed, reloaded or opened while a cell runs. To a page that came later the cell's displays are
//! unknown: it shows them as the notebook was saved, or not at all. Widgets are the one thing that it gets whole.

use jupyter_protocol::JupyterMessage;

/// A cell that went on after the page that had asked for it was gone.
pub struct Unseen {
    pub count: u64,
    pub session: String,
    pub afterwards: Vec<String>,
}

impl Unseen {
    /// What the first cell of another page says of it: where its results are.
    pub fn note(&self) -> String {
        let look = match self.afterwards.as_slice() {
            [] => "Its variables are kept; run it again to see its output.\n".to_owned(),
            some => {
                let list: String = some.iter().map(|code| format!("    {code}\n")).collect();
                format!("Its results are kept. A cell that ends like this shows them:\n{list}")
            }
        };
        format!("note: this page was opened while cell [{}] ran and may lack its output.\n{look}", self.count)
    }
}

/// Whether both messages come from the same page.
pub fn same_page(one: &JupyterMessage, other: &JupyterMessage) -> bool {
    one.header.session == other.header.session
}
