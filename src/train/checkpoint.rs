//! Checkpoints: one file per fit, with all that a resumed run needs. The fit replaces it after every epoch, so a kill
//! costs at most the running epoch, and when it is stopped, which costs no batch.

use super::hyperparameters::Overrides;
use super::record::UnfinishedEpoch;
use super::{FitOptions, History, Optimizer};
use crate::models::Model;
use crate::native::lerp;
use crate::store::atomic::{PAUSE, holder, make_room, try_lock, write_json};
use crate::store::tensors::{load_tensors, save_tensors};
use crate::{Error, Result};
use serde_json::json;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use tch::{Tensor, no_grad};

/// Contents of a checkpoint beside the weights and the optimizer's state.
pub(super) struct Resumed {
    pub history: History,
    pub best: Snapshot,
    /// Moving average of the weights, where the recipe has one.
    pub average: Option<Snapshot>,
    pub unfinished: Option<UnfinishedEpoch>,
    pub overrides: Overrides,
}

/// The right to write to a fit's folder, until it is dropped or the process ends, even if it is killed. In a group
/// rank 0 alone has a lock, because it alone writes.
pub(super) struct Claim {
    _lock: Option<File>,
    /// Whether another fit had it before.
    pub waited: bool,
}

impl Claim {
    /// Waits until no other process or thread trains in the fit's folder. Returns `None` when the fit is stopped
    /// meanwhile.
    pub(super) fn take(options: &FitOptions) -> Result<Option<Self>> {
        let folder = options.folder.as_ref().filter(|_| options.rank() == 0);
        let beside = |folder: &PathBuf| {
            // The folder itself may be renamed.
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            folder.with_file_name(format!(".{name}.lock"))
        };
        let (path, mut waited) = (folder.map(beside), false);
        loop {
            let lock = path.as_deref().map(try_lock).transpose()?;
            let busy = f64::from(matches!(lock, Some(None)));
            if options.group.as_ref().map_or(Ok(busy), |group| group.sum_value(busy))? == 0.0 {
                return Ok(Some(Self { _lock: lock.flatten(), waited }));
            }
            if options.agreed()?.0 {
                return Ok(None);
            }
            if let (Some(path), Some(folder), false) = (&path, folder, waited) {
                eprintln!(
                    "{}: {} trains in {} and is waited for; to train beside it, stop this fit and give it another name",
                    options.name,
                    holder(path),
                    folder.display()
                );
            }
            waited = true;
            std::thread::sleep(PAUSE);
        }
    }
}

pub(super) struct Checkpoint {
    folder: PathBuf,
    /// Digest of everything that the fit depends on; a checkpoint with another one is not continued.
    fingerprint: String,
    /// Values that network and loss compute. They change with the code of the two, which the fingerprint does not
    /// cover.
    probe: Vec<f64>,
}

impl Checkpoint {
    pub(super) fn new(folder: &Path, fingerprint: String, probe: Vec<f64>) -> Self {
        Self { folder: folder.to_owned(), fingerprint, probe }
    }

    /// Whether the same fit made a checkpoint with this metadata. Probes differ in their last digits with the number of
    /// threads.
    fn is_ours(&self, metadata: &HashMap<String, String>) -> bool {
        let near = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-4 * (1.0 + a.abs());
        let probe = metadata.get("probe").and_then(|text| serde_json::from_str::<Vec<Option<f64>>>(text).ok());
        // JSON has no NaN and no infinity: serde_json writes both as null. Older checkpoints have no probe.
        let same = probe.is_none_or(|found| {
            found.len() == self.probe.len()
                && found.iter().zip(&self.probe).all(|(a, b)| a.map_or(!b.is_finite(), |a| near(a, *b)))
        });
        same && metadata.get("fingerprint") == Some(&self.fingerprint)
    }

    fn file(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    /// Renames the folder of an earlier run of other settings, so that it is not lost; returns its new place.
    pub(super) fn set_aside_other(&self) -> Result<Option<PathBuf>> {
        let Ok((_, metadata)) = load_tensors(&self.file()) else { return Ok(None) };
        if self.is_ours(&metadata) {
            return Ok(None);
        }
        make_room(&self.folder).map(Some)
    }

    fn history(&self) -> PathBuf {
        self.folder.join("history.json")
    }

    /// Whether the folder holds a finished run. Its weights and history stay until the new run is finished too.
    fn is_finished(&self) -> bool {
        History::load(self.history()).is_ok_and(|history| history.is_complete())
    }

    /// Writes weights, their average, best weights and optimizer state as one atomic file, the history also as
    /// `history.json`, and the best weights alone as `best.safetensors`. `unfinished` is the epoch after the last one
    /// of the history, if it was stopped.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn save(
        &self,
        model: &Model,
        best: &Snapshot,
        average: Option<&Snapshot>,
        projection: &[(String, Tensor)],
        optimizer: &Optimizer,
        history: &History,
        unfinished: Option<&UnfinishedEpoch>,
        overrides: Overrides,
    ) -> Result<()> {
        let (moments, steps) = optimizer.state();
        let mut tensors = moments;
        tensors.extend(model.state().into_iter().map(|(name, t)| (format!("weights/{name}"), t)));
        tensors.extend(projection.iter().map(|(name, t)| (name.clone(), t.shallow_clone())));
        for (part, snapshot) in [("best", Some(best)), ("average", average)] {
            let all = snapshot.iter().flat_map(|snapshot| &snapshot.0);
            tensors.extend(all.map(|(name, t)| (format!("{part}/{name}"), t.shallow_clone())));
        }
        let metadata = HashMap::from([
            ("fingerprint".to_owned(), self.fingerprint.clone()),
            ("history".to_owned(), json!(history).to_string()),
            ("steps".to_owned(), steps.to_string()),
            ("live".to_owned(), json!(overrides).to_string()),
            // Older files hold trained epochs alone.
            ("unmeasured".to_owned(), json!(unfinished).to_string()),
            ("probe".to_owned(), json!(self.probe).to_string()),
        ]);
        // Before the first validation there are no best weights.
        if history.records.is_empty() || !history.is_over() && self.is_finished() {
            return save_tensors(&self.file(), &tensors, metadata);
        }
        // The history comes last, so the weights of every epoch in it are on disk.
        save_tensors(&self.folder.join("best.safetensors"), &best.0, HashMap::new())?;
        save_tensors(&self.file(), &tensors, metadata)?;
        write_json(&self.history(), history)
    }

    /// Writes the history of a stopped run, whose weights are on disk already. A run that was stopped before its first
    /// epoch leaves the history of an earlier one alone.
    pub(super) fn save_stop(&self, history: &History) -> Result<()> {
        let path = self.history();
        if history.records.is_empty() && path.exists() || self.is_finished() {
            return Ok(());
        }
        write_json(&path, history)
    }

    /// Loads an unfinished run of the same fit into model, optimizer and projection; returns `None` when there is none.
    /// With `finished`, it may be finished.
    pub(super) fn resume(
        &self,
        finished: bool,
        model: &Model,
        optimizer: &mut Optimizer,
        projection: &[(String, Tensor)],
    ) -> Result<Option<Resumed>> {
        // Without a file, or with one that can't be read, the fit starts anew.
        let Ok((tensors, metadata)) = load_tensors(&self.file()) else {
            return Ok(None);
        };
        let text = |key: &str| metadata.get(key).map(String::as_str).unwrap_or_default();
        let parsed = serde_json::from_str::<History>(text("history")).ok().zip(text("steps").parse().ok());
        let Some((history, steps)) = parsed else {
            return Ok(None);
        };
        if !self.is_ours(&metadata) || history.is_over() && !finished {
            return Ok(None);
        }
        let snapshot = |prefix: &str| {
            let of = |(name, t): (String, Tensor)| {
                let saved = tensors.get(&format!("{prefix}/{name}")).filter(|s| s.size() == t.size());
                let saved = saved.ok_or_else(|| {
                    Error::Data(format!("{} lacks {prefix}/{name}; delete it and fit again", self.file().display()))
                })?;
                Ok((name, saved.f_to_device(t.device())?))
            };
            model.state().into_iter().map(of).collect::<Result<Vec<_>>>().map(Snapshot)
        };
        let (weights, best) = (snapshot("weights")?, snapshot("best")?);
        let average = history.recipe.average.map(|_| snapshot("average")).transpose()?;
        optimizer.restore(&|name| tensors.get(name).map(Tensor::shallow_clone), steps)?;
        weights.restore(model)?;
        for (name, t) in projection {
            let saved = tensors.get(name).filter(|saved| saved.size() == t.size()).ok_or_else(|| {
                Error::Data(format!("{} lacks {name}; delete it and fit again", self.file().display()))
            })?;
            no_grad(|| t.shallow_clone().f_copy_(saved))?;
        }
        let overrides = serde_json::from_str(text("live")).unwrap_or_default();
        let unfinished = serde_json::from_str(text("unmeasured")).unwrap_or_default();
        Ok(Some(Resumed { history, best, average, unfinished, overrides }))
    }
}

/// A copy of a model's weights and buffers.
pub(super) struct Snapshot(Vec<(String, Tensor)>);

impl Snapshot {
    pub(super) fn of(model: &Model) -> Result<Self> {
        Self(model.state()).copy()
    }

    pub(super) fn copy(&self) -> Result<Self> {
        let copy = |(name, t): &(String, Tensor)| -> Result<(String, Tensor)> {
            let mut to = t.f_detach()?.f_empty_like()?;
            to.f_copy_(&t.f_detach()?)?;
            Ok((name.clone(), to))
        };
        Ok(Self(self.0.iter().map(copy).collect::<Result<_>>()?))
    }

    /// Moves this copy towards the model's present weights by a `share` of the way, as a moving average does after a
    /// step.
    pub(super) fn approach(&self, model: &Model, share: f64) -> Result<()> {
        let state = model.state();
        let (ours, theirs): (Vec<_>, Vec<_>) = self.0.iter().map(|(_, t)| t).zip(state.iter().map(|(_, t)| t)).unzip();
        lerp(&ours, &theirs, share)
    }

    pub(super) fn restore(&self, model: &Model) -> Result<()> {
        no_grad(|| {
            for ((_, mut tensor), (_, saved)) in model.state().into_iter().zip(&self.0) {
                tensor.f_copy_(saved)?;
            }
            Ok(())
        })
    }
}
