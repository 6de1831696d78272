//! Pages that are closed, reloaded or opened while a cell runs. To a page that came later the cell's displays are
//! unknown: it shows them as the notebook was saved, or not at all. Widgets are the one thing that it gets whole.

use jupyter_protocol::JupyterMessage;
use serde_json::json;

use super::Front;
use super::cells::Cell;

/// A cell that went on after the page that had asked for it was gone.
pub struct Unseen {
    count: u64,
    session: String,
    afterwards: Vec<String>,
}

impl Front {
    /// Tells the connections that another page now shows their widgets, so that they show more in them.
    pub(super) fn page_opened(&self, request: &JupyterMessage) {
        let elsewhere =
            |parent: &Option<JupyterMessage>| parent.as_ref().is_some_and(|parent| !same_page(parent, request));
        for client in self.clients.values().filter(|client| elsewhere(&client.parent)) {
            let _ = client.sender.send(json!({"opened": true}));
        }
    }

    /// Every page asks what kernel this is before anything else.
    pub(super) fn somebody_came(&mut self, request: &JupyterMessage) {
        if let Some(cell) = self.cell.as_mut().filter(|cell| !same_page(&cell.request, request)) {
            cell.joined = true;
        }
    }

    pub(super) fn remember_unseen(&mut self, cell: &Cell) {
        if cell.joined {
            let session = cell.request.header.session.clone();
            self.unseen = Some(Unseen { count: cell.count, session, afterwards: cell.afterwards.clone() });
        }
    }

    /// Says at the first cell of another page where the results of the earlier cell are.
    pub(super) fn tell_unseen(&mut self, request: &JupyterMessage) {
        let Some(unseen) = self.unseen.take() else { return };
        if unseen.session == request.header.session {
            return;
        }
        let look = match unseen.afterwards.as_slice() {
            [] => "Its variables are kept; run it again to see its output.\n".to_owned(),
            some => {
                let list: String = some.iter().map(|code| format!("    {code}\n")).collect();
                format!("Its results are kept. A cell that ends like this shows them:\n{list}")
            }
        };
        let text =
            format!("note: this page was opened while cell [{}] ran and may lack its output.\n{look}", unseen.count);
        self.stream("stderr", &text);
    }
}

fn same_page(one: &JupyterMessage, other: &JupyterMessage) -> bool {
    one.header.session == other.header.session
}
