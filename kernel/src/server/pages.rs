//! Pages that are closed, reloaded or opened while a cell runs. A page that was opened later does not know the cell's
//! displays: it shows them as they were saved in the notebook, or not at all. It shows only the widgets in full.

use jupyter_protocol::JupyterMessage;

/// A cell that went on after its page was closed.
pub struct Unseen {
    pub count: u64,
    pub session: String,
    pub afterwards: Vec<String>,
}

impl Unseen {
    /// Returns the note that appears below the first cell of another page: where the results are.
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

/// Returns whether both messages come from the same page.
pub fn same_page(one: &JupyterMessage, other: &JupyterMessage) -> bool {
    one.header.session == other.header.session
}
