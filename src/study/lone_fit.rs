//! A fit of a sweep in a process of its own, on any machine that sees the sweep's folder. The process that runs the
//! sweep writes what such a fit needs; its teacher has judged all images already.

use super::one_fit::{FitMaker, TeacherOutputs, threads_of_fit};
use super::{Setting, Sweep, SweepRun};
use crate::data::{Dataset, DatasetFiles};
use crate::models::Layers;
use crate::store::atomic::wait_for;
use crate::train::{CachedFile, CachedTensor, Control, Event, Listener};
use crate::{Error, Result};
use kdlab_client::watch;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tch::{Device, nn};

/// Longest time between the end of the parent and the end of a fit.
const GRACE: Duration = Duration::from_secs(10);

/// What fits in processes of their own need: the file `work.json` of a sweep's folder.
#[derive(Serialize, Deserialize)]
pub(super) struct Work {
    pub sweep: Sweep,
    pub data: DatasetFiles,
    /// Variables that the processes get.
    pub environment: BTreeMap<String, String>,
    /// The CPU that made the earlier runs of a seed: the seed stays on this kind.
    pub cpus: BTreeMap<u64, String>,
    pub fits: Vec<FitWork>,
}

/// One fit that is to be made.
#[derive(Serialize, Deserialize)]
pub(super) struct FitWork {
    /// Its number among all runs of the sweep.
    pub place: usize,
    /// Its name, and that of its folder.
    pub name: String,
    pub setting: Setting,
    pub seed: u64,
    /// Digest of everything that it depends on.
    pub key: String,
    /// What its teacher says of the training images.
    pub train: Option<CachedFile>,
    /// Its teacher's logits of the validation images.
    pub validation: CachedFile,
}

/// Makes the fit with this number of a sweep's `work.json`, unless its folder holds the result. A fit that was cut
/// short elsewhere goes on after its last epoch. Writes a line of JSON to stdout for what happens: `begun` with the
/// epochs that were done, `progress`, and last `run` or `stopped`.
///
/// Two processes never make the same fit at once: the second one waits. `with_parent` ends the fit when stdin closes.
pub(crate) fn make_fit(file: &Path, place: usize, device: Device, with_parent: bool) -> Result<()> {
    let control = Control::default();
    if with_parent {
        end_with_parent(control.clone())?;
    }
    let signals = control.clone();
    let _watch = watch("a fit of a sweep", move |reason| signals.stop(reason));
    let text = std::fs::read(file).map_err(|e| Error::io("reading", file, e))?;
    let work: Work = serde_json::from_slice(&text)
        .map_err(|e| Error::Data(format!("{} is not a sweep's work: {e}; run the sweep again", file.display())))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let Some(wanted) = work.fits.iter().find(|fit| fit.place == place) else {
        let has: Vec<String> = work.fits.iter().map(|fit| fit.place.to_string()).collect();
        let (file, has) = (file.display(), has.join(", "));
        return Err(Error::Input(format!("{file} has no fit {place} to be made; it has {has}")));
    };
    let lock = folder.join(format!("{}.lock", wanted.name));
    let Some(_lock) = wait_for(&lock, &wanted.name, &|| control.stopping().is_some())? else {
        say(&json!({"stopped": control.stopping()}));
        return Ok(());
    };
    let own = folder.join(&wanted.name);
    let run = match SweepRun::load(&own).filter(|run| run.key == wanted.key) {
        Some(run) => run,
        None => match fit(&work, wanted, folder, device, control) {
            Err(Error::Interrupted(reason)) => {
                say(&json!({"stopped": reason}));
                return Ok(());
            }
            other => other?,
        },
    };
    run.save(&own)?;
    // Only an unfinished run needs its checkpoint. Whoever still waits for the lock finds the result.
    let _ = std::fs::remove_file(own.join("checkpoint.safetensors"));
    let _ = std::fs::remove_file(lock);
    say(&json!({"run": run}));
    Ok(())
}

fn fit(work: &Work, wanted: &FitWork, folder: &Path, device: Device, control: Control) -> Result<SweepRun> {
    if let Some(threads) = threads_of_fit(device) {
        tch::set_num_threads(threads);
    }
    let (sweep, data) = (&work.sweep, Dataset::open_shared(&work.data)?);
    let classes = data.classes.len() as i64;
    let student = |vs: &nn::Path| -> Layers { sweep.student.layers(vs, classes, sweep.size) };
    let maker = FitMaker::new(sweep, &data, device, &student)?;
    let open = |file: &CachedFile| CachedTensor::open_shared(file, &maker.views);
    let (train, validation) = (wanted.train.as_ref().map(open).transpose()?, open(&wanted.validation)?);
    let teacher = TeacherOutputs { train: train.as_ref(), online: None, validation: &validation };
    let mut fit = maker.make(&wanted.setting, wanted.seed, folder, Listener::new(tell), &teacher)?;
    if fit.key != wanted.key {
        return Err(Error::Data(format!(
            "{}: this machine would make another fit than the sweep asked for: its first weights differ, or its \
             program is of another version; run all on machines of one architecture, with one program",
            wanted.name
        )));
    }
    fit.options.control = control;
    fit.run()
}

/// Passes on when a fit begins and how far it is.
fn tell(event: &Event) {
    match event {
        Event::Started { history, .. } => say(&json!({"begun": history.records.len()})),
        Event::Progress(progress) => say(&json!({"progress": progress})),
        _ => (),
    }
}

/// Writes a line. Nobody may be left to read it.
fn say(what: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{what}").and_then(|()| out.flush());
}

/// Stops the fit when stdin closes: whoever holds the other end ended, or asks for it.
fn end_with_parent(control: Control) -> Result<()> {
    let wait = move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        control.stop("the process that asked for this fit has stopped it or ended");
        std::thread::sleep(GRACE);
        std::process::exit(1);
    };
    let thread = std::thread::Builder::new().name("kdlab-parent".into()).spawn(wait);
    thread.map(drop).map_err(|e| Error::Io(format!("starting a thread: {e}")))
}
