//! The user's Interrupt, for work that can stop by itself.

use crate::{Link, Push, lock};
use serde_json::json;
use std::sync::{Arc, Mutex};

/// A watch for Interrupt. While any watch lives, Interrupt asks the work behind each of them to stop. Without one, it
/// stops the loops of cells. A loop needs a watch where it has to finish its step.
#[must_use = "a watch that is dropped at once watches for nothing"]
pub struct Watch {
    link: Option<Link>,
    reason: Arc<Mutex<Option<String>>>,
}

/// Watches for the user's Interrupt while the work `name` runs, and calls `on_stop` with the reason.
///
/// `on_stop` runs on a thread of its own. Without the live kernel it is never called, and the reason stays `None`.
///
/// ```
/// let watch = kdlab_client::watch("my loop", |reason| eprintln!("{reason}: I finish this step"));
/// for step in 0..1000 {
///     if watch.reason().is_some() {
///         break;
///     }
/// }
/// ```
pub fn watch(name: &str, on_stop: impl Fn(&str) + Send + 'static) -> Watch {
    let reason = Arc::new(Mutex::new(None));
    let given = Arc::clone(&reason);
    let link = Link::connect(move |push| {
        if let Push::Stop(why) = push {
            *lock(&given) = Some(why.clone());
            on_stop(&why);
        }
    });
    Watch { link: link.filter(|link| link.request(&json!({ "watch": name })).is_ok()), reason }
}

impl Watch {
    /// Returns why the work should stop, or `None` while nobody asked for it.
    ///
    /// ```
    /// assert_eq!(kdlab_client::watch("my loop", |_| ()).reason(), None);
    /// ```
    pub fn reason(&self) -> Option<String> {
        lock(&self.reason).clone()
    }

    /// Names code that shows the result, for a page that was opened while the work ran: the kernel offers it there.
    ///
    /// ```
    /// kdlab_client::watch("my loop", |_| ()).afterwards("results.table()");
    /// ```
    pub fn afterwards(&self, code: &str) {
        if let Some(link) = &self.link {
            // A hint, which an older kernel may not know.
            let _ = link.request(&json!({ "afterwards": code }));
        }
    }
}

impl Drop for Watch {
    /// Ends the watch. After an Interrupt the kernel then stops a loop around the work, so this waits for its reply.
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            let _ = link.request(&json!({ "unwatch": {} }));
        }
    }
}
