//! What the programs do at Ctrl-C (SIGINT) and SIGTERM.

use kdlab::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, signal_name};

/// From now on the first of these signals ends the work in order, as Interrupt does in a notebook. A second one, or one
/// that finds no such work, ends the program at once.
pub fn end_in_order() -> Result<()> {
    let io = |e| Error::Io(format!("waiting for signals: {e}"));
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(io)?;
    let wait = move || {
        let mut asked = false;
        for signal in signals.forever() {
            let reason = format!("ended by {}", signal_name(signal).unwrap_or("a signal"));
            if asked || !kdlab_client::interrupt(&reason) {
                let _ = emulate_default_handler(signal);
            }
            asked = true;
        }
    };
    std::thread::Builder::new().name("kdlab-signals".into()).spawn(wait).map(drop).map_err(io)
}
