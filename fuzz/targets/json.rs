//! Reports of fits and sweeps, and what can be made of them.
#![no_main]

use kdlab::study::{Measure, Sweep, SweepReport, SweepRun};
use kdlab::train::{Change, History, Method};
use kdlab_fuzz::write;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let path = write("report.json", text);
    if let Ok(history) = History::load(&path) {
        let _ = (history.best(), history.seconds());
        let _ = kdlab::show::curves(&[&history]);
    }
    if let Ok(report) = SweepReport::load(&path) {
        for measure in [
            Measure::Validation,
            Measure::Test,
            Measure::OmittedRecall,
            Measure::CorrectedRecall,
            Measure::CorrectedTest,
        ] {
            let _ = report.compare(measure);
            // As many cells as the file has temperatures and alphas.
            let _ = report.map(measure);
        }
    }
    let _ = serde_json::from_slice::<Sweep>(text).map(|sweep| sweep.settings().iter().map(|s| s.to_string()).count());
    let _ = serde_json::from_slice::<SweepRun>(text);
    let _ = serde_json::from_slice::<Change>(text);
    let _ = serde_json::from_slice::<Method>(text);
});
