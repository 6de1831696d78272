//! PyTorch's `.pth` files, both formats, read by a machine that knows tensors and plain values and runs nothing.
//!
//! A pickle is a program. This reader keeps a table of the few things a weight file needs (dictionaries, tuples,
//! numbers, `torch._utils._rebuild_tensor_v2`, storages) and refuses every other name, so no file can make it do
//! more than build tensors. Values live in one arena and refer to each other by index: a file of `n` bytes makes at
//! most `n` values, whatever it nests or repeats.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{Cursor, Read};
use tch::{Kind, Tensor};

/// Why a file was refused, without its name.
pub(crate) type Outcome<T> = std::result::Result<T, String>;

/// A pickle beside its tensors holds names and shapes only: far below this.
const LONGEST_PICKLE: usize = 64 << 20;
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Reads the tensors of a `.pth` file in the zip format (PyTorch 1.6 and later).
pub(crate) fn read_zip(bytes: &[u8]) -> Outcome<Vec<(String, Tensor)>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| format!("zip: {e}"))?;
    let pickle = archive
        .file_names()
        .filter_map(|name| Some(name.ok()?.into_owned()))
        .find(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or("the zip archive holds no data.pkl, so it was not written by torch.save")?;
    let folder = pickle.trim_end_matches("data.pkl");
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
    // torch.save compresses nothing, so the numbers cannot be more than the file: no small file fills the memory.
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
    machine.state_dict(root, &held)
}

/// One file of the archive, unless it is longer than `longest` bytes.
fn entry(archive: &mut zip::ZipArchive<Cursor<&[u8]>>, name: &str, longest: usize) -> Outcome<Vec<u8>> {
    let file = archive.by_name(name).map_err(|e| format!("{name} in the zip archive: {e}"))?;
    let mut data = Vec::new();
    file.take(longest as u64 + 1).read_to_end(&mut data).map_err(|e| format!("{name} in the zip archive: {e}"))?;
    match data.len() > longest {
        true => Err(format!("{name} in the zip archive is longer than {longest} bytes")),
        false => Ok(data),
    }
}

/// Is this the format `torch.save` wrote before PyTorch 1.6? It starts with a pickled magic number.
pub(crate) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes.get(2..4) == Some(&[0x8a, 10]) && bytes.get(4..14) == Some(&LEGACY_MAGIC)
}

/// Reads the tensors of a `.pth` file in the format before PyTorch 1.6: magic, version, machine, values, storage keys,
/// then for every key its length and its numbers.
pub(crate) fn read_legacy(bytes: &[u8]) -> Outcome<Vec<(String, Tensor)>> {
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
    machine.state_dict(root, &held)
}

/// A Python value; containers hold indices into [`Machine::values`].
#[derive(Debug)]
enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Numbers that no tensor depends on.
    Float,
    Str(&'a str),
    Global(&'a str, &'a str),
    Tuple(Vec<usize>),
    List(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    /// Index into [`Machine::storages`].
    Storage(usize),
    Tensor {
        storage: usize,
        offset: i64,
        size: Vec<i64>,
        stride: Vec<i64>,
    },
}

struct Storage<'a> {
    key: &'a str,
    kind: Kind,
    numel: usize,
}

impl Storage<'_> {
    fn bytes(&self) -> usize {
        self.numel * self.kind.elt_size_in_bytes()
    }
}

const STORAGES: [(&str, Kind); 10] = [
    ("FloatStorage", Kind::Float),
    ("HalfStorage", Kind::Half),
    ("BFloat16Storage", Kind::BFloat16),
    ("DoubleStorage", Kind::Double),
    ("LongStorage", Kind::Int64),
    ("IntStorage", Kind::Int),
    ("ShortStorage", Kind::Int16),
    ("CharStorage", Kind::Int8),
    ("ByteStorage", Kind::Uint8),
    ("BoolStorage", Kind::Bool),
];

struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: HashMap<u32, usize>,
    storages: Vec<Storage<'a>>,
    by_key: HashMap<&'a str, usize>,
}

impl<'a> Machine<'a> {
    fn new(program: &'a [u8]) -> Self {
        Machine {
            program,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            storages: Vec::new(),
            by_key: HashMap::new(),
        }
    }

    /// Runs up to the STOP instruction; gives the index of the resulting value.
    fn run(&mut self) -> Outcome<usize> {
        loop {
            if self.at > LONGEST_PICKLE {
                return Err("its pickle is too long for a weight file".to_owned());
            }
            match self.byte()? {
                0x80 => drop(self.byte()?),  // PROTO
                0x95 => drop(self.take(8)?), // FRAME
                b'.' => return self.pop(),   // STOP
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),            // POP
                b'1' => drop(self.popped_to_mark()?), // POP_MARK
                b'2' => {
                    let top = self.top()?; // DUP
                    self.stack.push(top);
                }
                b'N' => self.push(Value::None),
                0x88 => self.push(Value::Bool(true)),
                0x89 => self.push(Value::Bool(false)),
                b'K' => {
                    let n = self.byte()?; // BININT1
                    self.push(Value::Int(n.into()));
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.array()?); // BININT2
                    self.push(Value::Int(n.into()));
                }
                b'J' => {
                    let n = i32::from_le_bytes(self.array()?); // BININT
                    self.push(Value::Int(n.into()));
                }
                0x8a => self.long()?,
                b'G' => {
                    self.take(8)?; // BINFLOAT
                    self.push(Value::Float);
                }
                b'X' => {
                    let n = u32::from_le_bytes(self.array()?); // BINUNICODE
                    self.string(n as usize)?;
                }
                b'T' => {
                    let n = u32::from_le_bytes(self.array()?); // BINSTRING
                    self.string(n as usize)?;
                }
                0x8c | b'U' => {
                    let n = self.byte()?; // SHORT_BINUNICODE, SHORT_BINSTRING
                    self.string(n as usize)?;
                }
                b'}' => self.push(Value::Dict(Vec::new())),
                b']' => self.push(Value::List(Vec::new())),
                b')' => self.push(Value::Tuple(Vec::new())),
                n @ 0x85..=0x87 => {
                    let start = self.stack.len().checked_sub(usize::from(n - 0x84)).ok_or_else(broken)?;
                    let items = self.stack.split_off(start); // TUPLE1, TUPLE2, TUPLE3
                    self.push(Value::Tuple(items));
                }
                b't' => {
                    let items = self.popped_to_mark()?; // TUPLE
                    self.push(Value::Tuple(items));
                }
                b'a' => {
                    let item = self.pop()?; // APPEND
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.popped_to_mark()?; // APPENDS
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?; // SETITEM
                    let key = self.pop()?;
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.popped_to_mark()?; // SETITEMS
                    self.set(items)?;
                }
                b'q' => {
                    let slot = self.byte()?; // BINPUT
                    self.remember(slot.into())?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?); // LONG_BINPUT
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?, // MEMOIZE
                b'h' => {
                    let slot = self.byte()?; // BINGET
                    self.recall(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?); // LONG_BINGET
                    self.recall(slot)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?); // GLOBAL
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?); // STACK_GLOBAL
                    match (&self.values[module], &self.values[name]) {
                        (&Value::Str(module), &Value::Str(name)) => self.global(module, name)?,
                        _ => return Err(broken()),
                    }
                }
                b'Q' => {
                    let id = self.pop()?; // BINPERSID
                    self.storage(id)?;
                }
                b'R' => self.reduce()?,
                b'b' => drop(self.pop()?), // BUILD: attributes such as a state_dict's _metadata; not needed
                code => {
                    return Err(format!("its pickle uses the instruction {code:#04x}, which no weight file needs"));
                }
            }
        }
    }

    fn take(&mut self, n: usize) -> Outcome<&'a [u8]> {
        let end = self.at.checked_add(n).ok_or_else(broken)?;
        let bytes = self.program.get(self.at..end).ok_or("it ends in the middle of its pickle; download it again")?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| broken())
    }

    fn byte(&mut self) -> Outcome<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn line(&mut self) -> Outcome<&'a str> {
        let rest = &self.program[self.at..];
        let length = rest.iter().take(512).position(|&b| b == b'\n').ok_or_else(broken)?;
        let line = std::str::from_utf8(self.take(length)?).map_err(|_| broken())?;
        self.take(1)?;
        Ok(line)
    }

    fn string(&mut self, length: usize) -> Outcome<()> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a name in it is not UTF-8".to_owned())?;
        self.push(Value::Str(text));
        Ok(())
    }

    /// LONG1: a little-endian two's complement number of any length. Only the magic number needs more than 64 bits.
    fn long(&mut self) -> Outcome<()> {
        let length = self.byte()?.into();
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        if length <= 8 {
            wide[..length].copy_from_slice(bytes);
            self.push(Value::Int(i64::from_le_bytes(wide)));
        } else {
            self.push(Value::Float);
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// Python's unpickler cannot reach below the last mark either.
    fn pop(&mut self) -> Outcome<usize> {
        match self.stack.len() > self.marks.last().copied().unwrap_or(0) {
            true => self.stack.pop().ok_or_else(broken),
            false => Err(broken()),
        }
    }

    fn top(&self) -> Outcome<usize> {
        self.stack.last().copied().ok_or_else(broken)
    }

    fn popped_to_mark(&mut self) -> Outcome<Vec<usize>> {
        let mark = self.marks.pop().filter(|&m| m <= self.stack.len()).ok_or_else(broken)?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: Vec<usize>) -> Outcome<()> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::List(list) => list.extend(items),
            _ => return Err(broken()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<usize>) -> Outcome<()> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::Dict(pairs) if items.len().is_multiple_of(2) => {
                pairs.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err(broken()),
        }
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Outcome<()> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Outcome<()> {
        let value = *self.memo.get(&slot).ok_or_else(broken)?;
        self.stack.push(value);
        Ok(())
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Outcome<()> {
        let known = match (module, name) {
            ("collections", "OrderedDict") | ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_parameter") => true,
            ("torch", _) => STORAGES.iter().any(|(storage, _)| *storage == name),
            _ => false,
        };
        if !known {
            return Err(format!(
                "it asks for `{}.{}`, which is not run; save the state_dict alone with torch.save(model.state_dict(), ...)",
                printable(module),
                printable(name)
            ));
        }
        self.push(Value::Global(module, name));
        Ok(())
    }

    /// `("storage", torch.FloatStorage, key, device, count[, view])`
    fn storage(&mut self, id: usize) -> Outcome<()> {
        let Value::Tuple(items) = &self.values[id] else {
            return Err(broken());
        };
        let view = items.get(5).is_none_or(|&i| matches!(self.values[i], Value::None));
        let fields: Vec<&Value> = items.iter().take(5).map(|&i| &self.values[i]).collect();
        let [Value::Str("storage"), Value::Global("torch", class), Value::Str(key), _, Value::Int(numel)] = fields[..]
        else {
            return Err(broken());
        };
        let kind = STORAGES.iter().find(|(name, _)| name == class).map(|(_, kind)| *kind).ok_or_else(broken)?;
        let numel = usize::try_from(*numel).map_err(|_| broken())?;
        if !view || numel.checked_mul(16).is_none() {
            return Err(broken());
        }
        let found = self.by_key.get(key).copied();
        let index = match found {
            Some(i) if self.storages[i].kind != kind || self.storages[i].numel != numel => {
                return Err(broken());
            }
            Some(i) => i,
            None => {
                self.by_key.insert(key, self.storages.len());
                self.storages.push(Storage { key, kind, numel });
                self.storages.len() - 1
            }
        };
        self.push(Value::Storage(index));
        Ok(())
    }

    /// Calls one of the known functions on the tuple of its arguments.
    fn reduce(&mut self) -> Outcome<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), &Value::Global(module, name)) = (&self.values[arguments], &self.values[function])
        else {
            return Err(broken());
        };
        let result = match (module, name, &arguments[..]) {
            ("collections", _, []) => Value::Dict(Vec::new()),
            (_, "_rebuild_parameter", [data, ..]) => {
                self.stack.push(*data);
                return Ok(());
            }
            (_, "_rebuild_tensor_v2", [storage, offset, size, stride, ..]) => {
                match (&self.values[*storage], &self.values[*offset], self.integers(*size), self.integers(*stride)) {
                    (&Value::Storage(storage), &Value::Int(offset), Some(size), Some(stride)) => {
                        Value::Tensor { storage, offset, size, stride }
                    }
                    _ => return Err(broken()),
                }
            }
            _ => return Err(broken()),
        };
        self.push(result);
        Ok(())
    }

    fn integers(&self, tuple: usize) -> Option<Vec<i64>> {
        let Value::Tuple(items) = &self.values[tuple] else {
            return None;
        };
        // A tensor has a handful of dimensions; a long tuple used again and again would fill the memory.
        if items.len() > 16 {
            return None;
        }
        items.iter().map(|&i| if let Value::Int(n) = self.values[i] { Some(n) } else { None }).collect()
    }

    /// The named tensors of a state_dict, or of the state_dict that a checkpoint holds beside other things.
    fn state_dict(&self, root: usize, held: &HashMap<&str, &[u8]>) -> Outcome<Vec<(String, Tensor)>> {
        let named = |dict: usize| -> Vec<(&'a str, usize)> {
            let Value::Dict(pairs) = &self.values[dict] else {
                return Vec::new();
            };
            let name = |&(key, value): &(usize, usize)| match self.values[key] {
                Value::Str(name) => Some((name, value)),
                _ => None,
            };
            pairs.iter().filter_map(name).collect()
        };
        let is_tensor = |entry: &(&str, usize)| matches!(self.values[entry.1], Value::Tensor { .. });
        let wrapped = ["state_dict", "model_state_dict", "model"].iter().find_map(|wrapper| {
            named(root).into_iter().find(|(name, value)| name == wrapper && named(*value).iter().any(is_tensor))
        });
        let entries = named(wrapped.map_or(root, |(_, dict)| dict));
        let mut loaded = HashMap::new();
        let mut tensors = Vec::new();
        for (name, value) in entries {
            if let Value::Tensor { storage, offset, size, stride } = &self.values[value] {
                let tensor = self.tensor(*storage, *offset, size, stride, held, &mut loaded);
                tensors.push((name.to_owned(), tensor.map_err(|e| format!("tensor {}: {e}", printable(name)))?));
            }
        }
        Ok(tensors)
    }

    /// A view of its storage, which is copied once however many tensors share it.
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
                entry.insert(numbers(data, &[numel as i64], kind)?)
            }
        };
        let offset = if count == 0 { 0 } else { offset };
        whole.f_as_strided(size, stride, offset).map_err(|e| crate::Error::from(e).to_string())
    }
}

/// A tensor of raw little-endian numbers; the length was checked by the caller.
pub(crate) fn numbers(data: &[u8], size: &[i64], kind: Kind) -> Outcome<Tensor> {
    let made = match kind {
        // A bool other than 0 and 1 is undefined behaviour in C++.
        Kind::Bool => Tensor::f_from_data_size(data, size, Kind::Uint8).and_then(|t| t.f_ne(0)),
        _ => Tensor::f_from_data_size(data, size, kind),
    };
    made.map_err(|e| crate::Error::from(e).to_string())
}

/// A name from a hostile file, fit for one line of an error.
fn printable(name: &str) -> String {
    name.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn broken() -> String {
    "its pickle is damaged; download or save it again".to_owned()
}
