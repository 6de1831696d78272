//! The containers of PyTorch's `.pth` files: the zip archive, and the format before PyTorch 1.6.

use super::pickle::{LONGEST_PICKLE, Machine, Outcome, Value, printable};
use std::collections::HashMap;
use std::io::{Cursor, Read};
use tch::Tensor;

const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Reads the tensors of a `.pth` file in the zip format (PyTorch 1.6 and later).
pub(crate) fn read_zip(bytes: &[u8], notes: &mut Vec<String>) -> Outcome<Vec<(String, Tensor)>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes))
        .map_err(|e| format!("its zip archive is cut off or damaged ({e}); download or save it again"))?;
    let pickle = archive
        .file_names()
        .filter_map(|name| Some(name.ok()?.into_owned()))
        .find(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or("the zip archive holds no data.pkl, so it was not written by torch.save")?;
    let folder = pickle.trim_end_matches("data.pkl");
    if archive.by_name(&format!("{folder}constants.pkl")).is_ok() {
        return Err("it is a TorchScript archive; in Python, save the weights of its module alone with \
            torch.save(torch.jit.load(FILE).state_dict(), ...)"
            .to_owned());
    }
    if let Ok(mut order) = archive.by_name(&format!("{folder}byteorder")) {
        let mut text = String::new();
        order.by_ref().take(16).read_to_string(&mut text).map_err(|e| e.to_string())?;
        if text.trim() != "little" {
            return Err(format!("its numbers are in {text:?} byte order; save it again on a little-endian machine"));
        }
    }
    let program = entry(&mut archive, &pickle, LONGEST_PICKLE)?;
    let mut machine = Machine::new(&program);
    let root = machine.run()?;
    // torch.save does not compress, so the storages cannot exceed the file. This keeps a small file from filling the
    // memory.
    let announced = machine.storages.iter().try_fold(0usize, |sum, s| sum.checked_add(s.bytes()));
    if announced.is_none_or(|sum| sum > bytes.len()) {
        return Err("it announces more numbers than it holds; download it again".to_owned());
    }
    let mut storages = HashMap::new();
    for storage in &machine.storages {
        let data = entry(&mut archive, &format!("{folder}data/{}", storage.key), storage.bytes())?;
        storages.insert(storage.key, data);
    }
    let held: HashMap<&str, &[u8]> = storages.iter().map(|(key, data)| (*key, data.as_slice())).collect();
    machine.state_dict(root, &held, notes)
}

/// One file of the archive, of at most `longest` bytes.
fn entry(archive: &mut zip::ZipArchive<Cursor<&[u8]>>, name: &str, longest: usize) -> Outcome<Vec<u8>> {
    let file = archive.by_name(name).map_err(|e| format!("{name} in the zip archive: {e}"))?;
    let mut data = Vec::new();
    file.take(longest as u64 + 1).read_to_end(&mut data).map_err(|e| format!("{name} in the zip archive: {e}"))?;
    match data.len() > longest {
        true => Err(format!("{name} in the zip archive is longer than {longest} bytes")),
        false => Ok(data),
    }
}

/// Whether this is the format before PyTorch 1.6, which starts with a pickled magic number.
pub(crate) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes.get(2..4) == Some(&[0x8a, 10]) && bytes.get(4..14) == Some(&LEGACY_MAGIC)
}

/// Reads the tensors of a `.pth` file in the format before PyTorch 1.6: pickles with the magic number, the version, the
/// machine, the values and the storage keys, then each storage behind its length.
pub(crate) fn read_legacy(bytes: &[u8], notes: &mut Vec<String>) -> Outcome<Vec<(String, Tensor)>> {
    let mut rest = bytes;
    let mut next = || -> Outcome<(Machine, usize)> {
        let mut machine = Machine::new(rest);
        let root = machine.run()?;
        rest = &rest[machine.at..];
        Ok((machine, root))
    };
    next()?; // the magic number, checked by `is_legacy`
    let (version, root) = next()?;
    if !matches!(version.values[root], Value::Int(1001)) {
        return Err("its protocol version is not 1001".to_owned());
    }
    let (system, root) = next()?;
    if let Value::Dict(pairs) = &system.values[root] {
        for (key, value) in pairs {
            if matches!(system.values[*key], Value::Str("little_endian"))
                && matches!(system.values[*value], Value::Bool(false))
            {
                return Err("its numbers are big-endian; save it again on a little-endian machine".to_owned());
            }
        }
    }
    let (machine, root) = next()?;
    let (keys, list) = next()?;
    let Value::List(list) = &keys.values[list] else {
        return Err("it has no list of storages".to_owned());
    };
    let mut held = HashMap::new();
    for &key in list {
        let Value::Str(key) = keys.values[key] else {
            return Err("a storage key is not a string".to_owned());
        };
        let index = *machine.by_key.get(key).ok_or(format!("storage {} is not used", printable(key)))?;
        let storage = &machine.storages[index];
        let count = rest.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        if count != Some(storage.numel as u64) {
            return Err(match count {
                None => format!("it ends before storage {key}"),
                Some(count) => format!("storage {key} holds {count} numbers where {} were announced", storage.numel),
            });
        }
        let data = rest.get(8..8 + storage.bytes()).ok_or(format!("it ends inside storage {key}"))?;
        rest = &rest[8 + storage.bytes()..];
        held.insert(key, data);
    }
    machine.state_dict(root, &held, notes)
}
