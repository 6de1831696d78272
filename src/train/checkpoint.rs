//! One file per fit that holds all a resumed run needs. It is written whole after every epoch, so a kill costs at
//! most the epoch that was running.

use super::fit::Trained;
use super::{Adam, History};
use crate::models::Model;
use crate::store::atomic::write_bytes;
use crate::store::tensors::{load_tensors, save_tensors};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tch::{Tensor, no_grad};

/// Temperature, alpha and learning rate that were set by hand while the fit ran.
pub(super) type ByHand = [Option<f64>; 3];

/// What a checkpoint holds beside the weights and the optimizer's state.
pub(super) struct Resumed {
    pub history: History,
    pub best: Snapshot,
    pub unmeasured: Option<Trained>,
    pub by_hand: ByHand,
}

pub(super) struct Checkpoint {
    folder: PathBuf,
    /// What the fit depends on; a checkpoint made under another one is not continued.
    fingerprint: String,
    /// What its network and loss compute, for a fingerprint can't see the code of a function.
    probe: Vec<f64>,
}

impl Checkpoint {
    pub(super) fn new(folder: &Path, fingerprint: String, probe: Vec<f64>) -> Self {
        Self { folder: folder.to_owned(), fingerprint, probe }
    }

    /// Whether a checkpoint with this metadata was made by the same fit. Probes differ in their last digits with the
    /// number of threads.
    fn is_ours(&self, metadata: &HashMap<String, String>) -> bool {
        let near = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-4 * (1.0 + a.abs());
        let probe = metadata.get("probe").and_then(|text| serde_json::from_str::<Vec<Option<f64>>>(text).ok());
        // JSON has no NaN and no infinity: both are written as null. Older checkpoints have no probe.
        let same = probe.is_none_or(|found| {
            found.len() == self.probe.len()
                && found.iter().zip(&self.probe).all(|(a, b)| a.map_or(!b.is_finite(), |a| near(a, *b)))
        });
        same && metadata.get("fingerprint") == Some(&self.fingerprint)
    }

    fn file(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    /// Renames the folder of an earlier run of other settings, so that none is lost; gives its new place.
    pub(super) fn set_aside_other(&self) -> Result<Option<PathBuf>> {
        let Ok((_, metadata)) = load_tensors(&self.file()) else { return Ok(None) };
        if self.is_ours(&metadata) {
            return Ok(None);
        }
        let name = self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let free = (1..).map(|n| self.folder.with_file_name(format!("{name}-{n}"))).find(|path| !path.exists());
        let aside = free.unwrap_or_else(|| self.folder.clone());
        std::fs::rename(&self.folder, &aside).map_err(|e| Error::io("renaming", &self.folder, e))?;
        Ok(Some(aside))
    }

    fn history(&self) -> PathBuf {
        self.folder.join("history.json")
    }

    /// Whether the folder holds a finished run of this fit, which is being trained once more. It stays until the new
    /// one is finished, too.
    fn is_finished(&self) -> bool {
        History::load(self.history()).is_ok_and(|history| history.is_complete())
    }

    /// Weights, best weights and optimizer state in one atomic file; the history also as `history.json`, and the best
    /// weights alone as `best.safetensors`. `unmeasured` is the epoch behind the last one of the history, if the
    /// weights have been through it and validation was stopped.
    pub(super) fn save(
        &self,
        model: &Model,
        best: &Snapshot,
        adam: &Adam,
        history: &History,
        unmeasured: Option<&Trained>,
        by_hand: ByHand,
    ) -> Result<()> {
        let json = serde_json::to_string_pretty(history).map_err(|e| Error::Data(format!("history: {e}")))?;
        let (moments, steps) = adam.state()?;
        let mut tensors = moments;
        tensors.extend(model.state().into_iter().map(|(name, t)| (format!("weights/{name}"), t)));
        tensors.extend(best.0.iter().map(|(name, t)| (format!("best/{name}"), t.shallow_clone())));
        let unmeasured =
            serde_json::to_string(&unmeasured).map_err(|e| Error::Data(format!("unmeasured epoch: {e}")))?;
        let live = serde_json::to_string(&by_hand).map_err(|e| Error::Data(format!("live values: {e}")))?;
        let metadata = HashMap::from([
            ("fingerprint".to_owned(), self.fingerprint.clone()),
            ("history".to_owned(), json.clone()),
            ("steps".to_owned(), steps.to_string()),
            ("live".to_owned(), live),
            ("unmeasured".to_owned(), unmeasured),
            ("probe".to_owned(), serde_json::to_string(&self.probe).map_err(|e| Error::Data(format!("probe: {e}")))?),
        ]);
        // Before the first epoch is measured there are no best weights.
        if history.records.is_empty() || history.records.len() < history.epochs && self.is_finished() {
            return save_tensors(&self.file(), &tensors, metadata);
        }
        // The history comes last: an epoch that it names has its weights on disk.
        save_tensors(&self.folder.join("best.safetensors"), &best.0, HashMap::new())?;
        save_tensors(&self.file(), &tensors, metadata)?;
        write_bytes(&self.history(), json.as_bytes())
    }

    /// Puts a stop on disk. The weights of the last finished epoch are there already; a run that was stopped before its
    /// first epoch leaves the history of an earlier one alone.
    pub(super) fn save_stop(&self, history: &History) -> Result<()> {
        let path = self.history();
        if history.records.is_empty() && path.exists() || self.is_finished() {
            return Ok(());
        }
        let json = serde_json::to_string_pretty(history).map_err(|e| Error::Data(format!("history: {e}")))?;
        write_bytes(&path, json.as_bytes())
    }

    /// Puts an unfinished run of the same fit back into place; none when there is nothing to go on with.
    pub(super) fn resume(&self, model: &Model, adam: &mut Adam) -> Result<Option<Resumed>> {
        if !self.file().exists() {
            return Ok(None);
        }
        // A file that can't be read is of no use to anyone: the fit starts anew and writes over it.
        let Ok((tensors, metadata)) = load_tensors(&self.file()) else {
            return Ok(None);
        };
        let text = |key: &str| metadata.get(key).map(String::as_str).unwrap_or_default();
        let parsed = serde_json::from_str::<History>(text("history")).ok().zip(text("steps").parse().ok());
        let Some((history, steps)) = parsed else {
            return Ok(None);
        };
        if !self.is_ours(&metadata) || history.records.len() >= history.epochs {
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
        adam.restore(&|name| tensors.get(name).map(Tensor::shallow_clone), steps)?;
        weights.restore(model)?;
        // A checkpoint from before the learning rate could be set holds two values.
        let found: Vec<Option<f64>> = serde_json::from_str(text("live")).unwrap_or_default();
        let by_hand = std::array::from_fn(|i| found.get(i).copied().flatten());
        let unmeasured = serde_json::from_str(text("unmeasured")).unwrap_or_default();
        Ok(Some(Resumed { history, best, unmeasured, by_hand }))
    }
}

/// A copy of a model's weights and buffers.
pub(super) struct Snapshot(pub(super) Vec<(String, Tensor)>);

impl Snapshot {
    pub(super) fn of(model: &Model) -> Result<Self> {
        let copy = |(name, t): (String, Tensor)| -> Result<(String, Tensor)> {
            let mut to = t.f_detach()?.f_empty_like()?;
            to.f_copy_(&t.f_detach()?)?;
            Ok((name, to))
        };
        Ok(Self(model.state().into_iter().map(copy).collect::<Result<_>>()?))
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
