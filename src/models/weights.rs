//! Weight files: reads the tensors of any format, then loads them into a network by name.

use super::torch_file;
use crate::store::tensors;
use crate::{Error, Result};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use tch::Tensor;

/// What became of the variables in a weight file. None of the network's own is missing, because a network is loaded
/// whole or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Variables that were loaded.
    pub loaded: Vec<String>,
    /// Variables of the file that the network lacks.
    pub unexpected: Vec<String>,
    /// Remarks for the user: which of several sets of weights was taken, which prefix was dropped from the names,
    /// whether values are not finite.
    pub notes: Vec<String>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} variables loaded{}", self.loaded.len(), counted("unexpected", &self.unexpected))?;
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

/// Returns such as ", 12 missing (a, b, c ...)", or an empty text for no names.
fn counted(what: &str, names: &[String]) -> String {
    let first = &names[..names.len().min(3)];
    match names.len() {
        0 => String::new(),
        n => format!(", {n} {what} ({}{})", first.join(", "), if n > 3 { " ..." } else { "" }),
    }
}

/// Maximal length of a weight file in bytes. The weights of every architecture here are far smaller.
const LARGEST_FILE: u64 = 4 << 30;

/// Reads every tensor of a weight file with its name, to the CPU. The file may be safetensors or PyTorch's `.pth` in
/// its zip or older format, which the content tells apart. A leading `module.` (of `DataParallel`) is dropped from the
/// names. Counters, settings and optimizers beside the weights are passed over. Nothing in the file is executed.
///
/// # Errors
/// When the file is cut off, damaged, of another format, or asks to run code.
pub fn read_weights(path: &Path) -> Result<Vec<(String, Tensor)>> {
    read(path, &mut Vec::new())
}

/// Reads as [`read_weights`] does, for a network with the variables `wanted`. A prefix before their names in the file
/// is dropped, such as `model.` (Lightning) or `_orig_mod.` (`torch.compile`). `notes` takes what the user should know.
pub(super) fn read_weights_for(
    path: &Path,
    wanted: &[(String, Tensor)],
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = read(path, notes)?;
    let fit = |prefix: &str| {
        let named = |name: &str| tensors.iter().any(|(n, _)| n.strip_prefix(prefix) == Some(name));
        wanted.iter().filter(|(name, _)| named(name)).count()
    };
    let Some((first, _)) = wanted.first().filter(|_| fit("") == 0) else { return Ok(tensors) };
    let prefixes = tensors.iter().filter_map(|(name, _)| name.strip_suffix(first.as_str()));
    let mut prefixes: Vec<&str> = prefixes.filter(|prefix| prefix.ends_with('.')).collect();
    prefixes.sort_by_key(|prefix| std::cmp::Reverse(fit(prefix)));
    // Where a file holds two networks, the user has to choose.
    if let [prefix, rest @ ..] = &prefixes[..]
        && rest.first().is_none_or(|second| fit(second) < fit(prefix))
    {
        let prefix = prefix.to_string();
        for (name, _) in &mut tensors {
            if name.starts_with(&prefix) {
                name.drain(..prefix.len());
            }
        }
        notes.push(format!("`{prefix}` was dropped from the names in the file"));
    }
    Ok(tensors)
}

/// Reads the file by the format that its first bytes tell.
fn read(path: &Path, notes: &mut Vec<String>) -> Result<Vec<(String, Tensor)>> {
    let io = |e| Error::io("reading", path, e);
    let bad = |why: String| Error::Data(format!("{} is not a readable weight file: {why}", path.display()));
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > LARGEST_FILE {
        return Err(bad(format!("{length} bytes are more than {LARGEST_FILE}")));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    let mut tensors = match bytes.as_slice() {
        [] => Err("it is empty".to_owned()),
        // This comes first: the eight bytes of the header's length may begin like any other format.
        [_, _, _, _, _, _, _, _, b'{', ..] => tensors::parse_tensors(&bytes),
        [b'P', b'K', ..] => torch_file::read_zip(&bytes, notes),
        bytes if torch_file::is_legacy(bytes) => torch_file::read_legacy(bytes, notes),
        bytes if bytes.starts_with(b"version https://git-lfs") => {
            Err("it is a pointer of Git LFS, not the file itself; run `git lfs pull` in its repository".to_owned())
        }
        [b'<', ..] => Err("it is a web page; download the file itself".to_owned()),
        [0x80, ..] => {
            Err("it is a pickle without torch's magic number; save it with torch.save(model.state_dict(), ...)"
                .to_owned())
        }
        bytes => tensors::parse_tensors(bytes),
    }
    .map_err(bad)?;
    if tensors.is_empty() {
        return Err(bad("it holds no named tensors".to_owned()));
    }
    if tensors.iter().all(|(name, _)| name.starts_with("module.")) {
        for (name, _) in &mut tensors {
            name.drain(.."module.".len());
        }
    }
    Ok(tensors)
}

/// Copies `tensors` into the variables of `state` with the same names, or changes nothing. The report begins with
/// `notes`.
pub(super) fn load(
    model: &str,
    state: &[(String, Tensor)],
    tensors: Vec<(String, Tensor)>,
    path: &Path,
    mut notes: Vec<String>,
) -> Result<LoadReport> {
    let mut found: HashMap<String, Tensor> = tensors.into_iter().collect();
    let (mut copies, mut missing, mut mis_shaped) = (Vec::new(), Vec::new(), Vec::new());
    for (name, variable) in state {
        match found.remove(name) {
            None => missing.push(name.clone()),
            Some(tensor) if tensor.size() == variable.size() => copies.push((name, variable, tensor)),
            Some(tensor) => mis_shaped.push(format!("{name} {:?} instead of {:?}", tensor.size(), variable.size())),
        }
    }
    // PyTorch's BatchNorm has a counter that this crate does not use.
    let mut unexpected: Vec<_> = found.into_keys().filter(|name| !name.ends_with("num_batches_tracked")).collect();
    unexpected.sort();
    if !missing.is_empty() || !mis_shaped.is_empty() {
        let [missing, unexpected] = [counted("missing", &missing), counted("unexpected", &unexpected)];
        return Err(Error::Data(format!(
            "{} does not hold the weights of {model} ({} variables fit{missing}{unexpected}{}); nothing was changed, \
             choose a file of this architecture",
            path.display(),
            copies.len(),
            counted("mis-shaped", &mis_shaped)
        )));
    }
    let mut not_finite = Vec::new();
    for (name, _, tensor) in &copies {
        if tensor.is_floating_point() && tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            not_finite.push(name.as_str());
        }
    }
    if let Some(first) = not_finite.first() {
        notes.push(format!("{} of them hold numbers that are not finite ({first})", not_finite.len()));
    }
    let loaded = copies.iter().map(|(name, ..)| (*name).clone()).collect();
    tch::no_grad(|| copies.into_iter().try_for_each(|(_, to, from)| to.shallow_clone().f_copy_(&from).map(drop)))?;
    Ok(LoadReport { loaded, unexpected, notes })
}
