//! Finds the weights among the values of a pickle: a state_dict, or the one that a checkpoint holds beside other
//! things.

use super::pickle::{Machine, Outcome, Storage, Value, printable};
use crate::store::tensors;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use tch::Tensor;

/// The names under which training scripts keep a model's weights.
const WRAPPERS: [&str; 8] =
    ["state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"];

/// A name and the index of its value.
type Named<'a> = (&'a str, usize);

impl<'a> Machine<'a> {
    /// The tensors by name. `held` are the bytes of the storages by key; `notes` takes what the user should know about
    /// the choice.
    pub(super) fn state_dict(
        &self,
        root: usize,
        held: &HashMap<&str, &[u8]>,
        notes: &mut Vec<String>,
    ) -> Outcome<Vec<(String, Tensor)>> {
        let sets: Vec<Named> = self.named(root).into_iter().filter(|(_, value)| self.holds_tensors(*value)).collect();
        let wrapped = WRAPPERS.iter().find_map(|wrapper| sets.iter().find(|(name, _)| name == wrapper)).copied();
        let bare = self.holds_tensors(root);
        // Under a name of their own, if they are the only ones; or deeper.
        let wrapped = match &sets[..] {
            [only] if wrapped.is_none() && !bare => Some(*only),
            [] if !bare => self.deeper(root)?,
            [_, ..] if wrapped.is_none() && !bare => return Err(several(&sets)),
            _ => wrapped,
        };
        let is_average = |name: &str| name.to_lowercase().split(['_', '-', '.']).any(|part| part == "ema");
        let averaged = sets.iter().find(|(name, _)| is_average(name));
        match (wrapped, averaged) {
            (Some((taken, _)), Some((left, _))) if taken != *left => notes.push(format!(
                "the weights under {:?} were taken, not their moving average under {:?}",
                printable(taken),
                printable(left)
            )),
            (Some((taken, _)), _) if is_average(taken) => {
                notes.push(format!("the weights are the moving average under {:?}", printable(taken)));
            }
            _ => {}
        }
        let entries = self.named(wrapped.map_or(root, |(_, dict)| dict));
        let odd: Vec<String> = entries
            .iter()
            .filter(|(name, value)| name.contains('.') && matches!(self.values[*value], Value::Opaque))
            .map(|(name, _)| printable(name))
            .collect();
        if let Some(first) = odd.first() {
            notes.push(format!("{} of its tensors are of a kind that is not read ({first})", odd.len()));
        }
        let mut loaded = HashMap::new();
        let mut tensors = Vec::new();
        for (name, value) in entries {
            if let Value::Tensor { storage, offset, size, stride } = &self.values[value] {
                let tensor = self.tensor(*storage, *offset, size, stride, held, &mut loaded);
                tensors.push((name.to_owned(), tensor.map_err(|e| format!("tensor {}: {e}", printable(name)))?));
            }
        }
        match &self.foreign {
            Some(name)
                if tensors.is_empty() && !self.storages.is_empty() && matches!(self.values[root], Value::Opaque) =>
            {
                Err(format!(
                    "it is a whole pickled model (it asks for `{name}`), which only Python can build; there, save \
                     torch.save(model.state_dict(), ...)"
                ))
            }
            Some(name) if tensors.is_empty() => Err(self.refused(name)),
            _ => Ok(tensors),
        }
    }

    /// The entries of a dictionary whose keys are texts; empty for anything else.
    fn named(&self, dict: usize) -> Vec<Named<'a>> {
        let Value::Dict(pairs) = &self.values[dict] else { return Vec::new() };
        let name = |&(key, value): &(usize, usize)| match self.values[key] {
            Value::Str(name) => Some((name, value)),
            _ => None,
        };
        pairs.iter().filter_map(name).collect()
    }

    fn holds_tensors(&self, dict: usize) -> bool {
        self.named(dict).iter().any(|(_, value)| matches!(self.values[*value], Value::Tensor { .. }))
    }

    /// The only dictionary of tensors in dictionaries, tuples and lists below `root`.
    fn deeper(&self, root: usize) -> Outcome<Option<Named<'a>>> {
        let (mut sets, mut left, mut seen) = (Vec::new(), vec![("", root)], HashSet::new());
        while let Some((name, value)) = left.pop() {
            // A container may hold itself.
            if !seen.insert(value) {
                continue;
            }
            match &self.values[value] {
                Value::Dict(_) if self.holds_tensors(value) => sets.push((name, value)),
                Value::Dict(_) => left.extend(self.named(value)),
                Value::Tuple(items) | Value::List(items) => left.extend(items.iter().map(|&item| (name, item))),
                _ => {}
            }
        }
        let wrapped: Vec<_> = sets.iter().copied().filter(|(name, _)| WRAPPERS.contains(name)).collect();
        match (&sets[..], &wrapped[..]) {
            ([only], _) | (_, [only]) => Ok(Some(*only)),
            ([], _) => Ok(None),
            _ => Err(several(&sets)),
        }
    }

    /// One tensor as a view of its storage. `loaded` holds the storages, so that each is copied once.
    fn tensor(
        &self,
        storage: usize,
        offset: i64,
        size: &[i64],
        stride: &[i64],
        held: &HashMap<&str, &[u8]>,
        loaded: &mut HashMap<usize, Tensor>,
    ) -> Outcome<Tensor> {
        let Storage { key, kind, numel } = self.storages[storage];
        let outside = || format!("shape {size:?} with strides {stride:?} lies outside its {numel} numbers");
        if size.len() != stride.len() || offset < 0 || size.iter().chain(stride).any(|&n| n < 0) {
            return Err(outside());
        }
        let count = size.iter().try_fold(1i64, |all, &n| all.checked_mul(n)).ok_or_else(outside)?;
        let last = size
            .iter()
            .zip(stride)
            .try_fold(offset, |at, (&n, &step)| (n - 1).max(0).checked_mul(step).and_then(|way| at.checked_add(way)));
        // More elements than numbers stored would be an expanded view: harmless in torch, a bomb when copied.
        if count > numel as i64 || (count > 0 && last.ok_or_else(outside)? >= numel as i64) {
            return Err(outside());
        }
        let whole = match loaded.entry(storage) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let bytes = self.storages[storage].bytes();
                let data = held.get(key).ok_or(format!("its storage {key} is not in the file"))?;
                let data = data.get(..bytes).ok_or(format!("its storage holds {} bytes of {bytes}", data.len()))?;
                entry.insert(tensors::tensor_from_bytes(data, &[numel as i64], kind)?)
            }
        };
        let offset = if count == 0 { 0 } else { offset };
        whole.f_as_strided(size, stride, offset).map_err(|e| crate::Error::from(e).to_string())
    }
}

fn several(sets: &[(&str, usize)]) -> String {
    let names: Vec<String> = sets.iter().take(5).map(|(name, _)| format!("{:?}", printable(name))).collect();
    format!(
        "it holds several sets of weights ({}); in Python, save the one you mean alone: \
         torch.save(torch.load(FILE)[...], ...)",
        names.join(", ")
    )
}
