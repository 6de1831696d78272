//! The user's Interrupt, for work that can stop by itself.

use crate::{Link, Push, lock};
use serde_json::json;
use std::sync::{Arc, Mutex, Weak};

/// A watch for Interrupt. While any watch lives, Interrupt asks the work behind each of them to stop. Without one, it
/// stops the loops of cells. A loop needs a watch where it has to finish its step.
#[must_use = "a watch that is dropped at once watches for nothing"]
pub struct Watch {
    link: Option<Link>,
    work: Arc<Work>,
}

/// What a watch and whoever asks its work to stop share.
struct Work {
    reason: Mutex<Option<String>>,
    on_stop: Mutex<OnStop>,
}

type OnStop = Box<dyn Fn(&str) + Send>;

impl Work {
    fn stop(&self, reason: &str) {
        *lock(&self.reason) = Some(reason.to_owned());
        lock(&self.on_stop)(reason);
    }
}

/// The work of all watches of this process.
static WATCHED: Mutex<Vec<Weak<Work>>> = Mutex::new(Vec::new());

/// Watches for the user's Interrupt while the work `name` runs, and calls `on_stop` with the reason.
///
/// `on_stop` runs on a thread of its own. Without the live kernel only [`interrupt`] asks for a stop.
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
    let work = Arc::new(Work { reason: Mutex::new(None), on_stop: Mutex::new(Box::new(on_stop)) });
    let asked = Arc::clone(&work);
    let link = Link::connect(move |push| {
        if let Push::Stop(why) = push {
            asked.stop(&why);
        }
    });
    let mut watched = lock(&WATCHED);
    watched.retain(|work| work.strong_count() > 0);
    watched.push(Arc::downgrade(&work));
    drop(watched);
    Watch { link: link.filter(|link| link.request(&json!({ "watch": name })).is_ok()), work }
}

/// Asks all work of this process that [`watch`]es to stop, as Interrupt does in a notebook: for a program that got a
/// signal. Returns whether there was any.
///
/// ```
/// let watch = kdlab_client::watch("my loop", |_| ());
/// assert!(kdlab_client::interrupt("Ctrl-C"));
/// assert_eq!(watch.reason().as_deref(), Some("Ctrl-C"));
/// ```
pub fn interrupt(reason: &str) -> bool {
    let all: Vec<Arc<Work>> = lock(&WATCHED).iter().filter_map(Weak::upgrade).collect();
    all.iter().for_each(|work| work.stop(reason));
    !all.is_empty()
}

impl Watch {
    /// Returns why the work should stop, or `None` while nobody asked for it.
    ///
    /// ```
    /// assert_eq!(kdlab_client::watch("my loop", |_| ()).reason(), None);
    /// ```
    pub fn reason(&self) -> Option<String> {
        lock(&self.work.reason).clone()
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
