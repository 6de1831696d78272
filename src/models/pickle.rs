//! The pickle inside PyTorch's `.pth` files, read by a machine that knows tensors and plain values and runs nothing.
//!
//! A pickle is a program. This reader keeps a table of the few things a weight file needs (dictionaries, tuples,
//! numbers, `torch._utils._rebuild_tensor_v2`, storages) and refuses every other name, so no file can make it do
//! more than build tensors. Values live in one arena and refer to each other by index: a file of `n` bytes makes at
//! most `n` values, whatever it nests or repeats.

use crate::store::tensors;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use tch::{Kind, Tensor};

/// Why a file was refused, without its name.
pub(super) type Outcome<T> = std::result::Result<T, String>;

/// A pickle beside its tensors holds names and shapes only: far below this.
pub(super) const LONGEST_PICKLE: usize = 64 << 20;

/// A Python value; containers hold indices into [`Machine::values`].
#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Numbers that no tensor depends on.
    Float,
    Str(&'a str),
    Global(&'a str, &'a str),
    /// Something that only Python could build: passed over, with all that is put into it.
    Opaque,
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

pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    kind: Kind,
    pub(super) numel: usize,
}

impl Storage<'_> {
    pub(super) fn bytes(&self) -> usize {
        self.numel * self.kind.elt_size_in_bytes()
    }
}

/// Under which names training scripts keep a model's weights.
const WRAPPERS: [&str; 8] =
    ["state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"];

/// Python's modules that run programs or code.
const RUNNERS: [&str; 13] = [
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "importlib",
    "runpy",
    "pty",
    "shutil",
    "socket",
    "webbrowser",
    "ctypes",
    "pickle",
];
/// What Python itself brings along that only holds values.
const VALUES: [&str; 13] = [
    "set",
    "frozenset",
    "list",
    "dict",
    "tuple",
    "object",
    "complex",
    "slice",
    "range",
    "bytearray",
    "bytes",
    "int",
    "float",
];

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

pub(super) struct Machine<'a> {
    program: &'a [u8],
    pub(super) at: usize,
    pub(super) values: Vec<Value<'a>>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: HashMap<u32, usize>,
    pub(super) storages: Vec<Storage<'a>>,
    pub(super) by_key: HashMap<&'a str, usize>,
    /// The first name that it asked for and that is not run.
    foreign: Option<String>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(program: &'a [u8]) -> Self {
        Machine {
            program,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            storages: Vec::new(),
            by_key: HashMap::new(),
            foreign: None,
        }
    }

    /// Runs up to the STOP instruction; gives the index of the resulting value.
    pub(super) fn run(&mut self) -> Outcome<usize> {
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
                code @ (b'B' | b'C' | 0x8e) => {
                    let length = match code {
                        b'B' => u32::from_le_bytes(self.array()?).into(), // BINBYTES
                        b'C' => self.byte()?.into(),                      // SHORT_BINBYTES
                        _ => u64::from_le_bytes(self.array()?),           // BINBYTES8
                    };
                    self.take(usize::try_from(length).map_err(|_| broken())?)?;
                    self.push(Value::Opaque);
                }
                0x8f => self.push(Value::Opaque),     // EMPTY_SET
                0x90 => drop(self.popped_to_mark()?), // ADDITEMS
                0x81 => {
                    self.pop()?; // NEWOBJ: a class and the arguments of its constructor
                    self.pop()?;
                    self.push(Value::Opaque);
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
            Value::Opaque => {}
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
            Value::Opaque => {}
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
        if known {
            self.push(Value::Global(module, name));
            return Ok(());
        }
        // Nothing is run, but a file that wants a program run is not to be trusted with its numbers either.
        let builtin = ["builtins", "__builtin__"].contains(&module) && !VALUES.contains(&name);
        if builtin || RUNNERS.contains(&module) || (module, name) == ("torch", "load") {
            return Err(self.refused(&format!("{}.{}", printable(module), printable(name))));
        }
        // Settings and counters that lie beside the weights.
        self.foreign.get_or_insert_with(|| format!("{}.{}", printable(module), printable(name)));
        self.push(Value::Opaque);
        Ok(())
    }

    fn refused(&self, name: &str) -> String {
        format!(
            "it asks for `{name}`, which is not run; save the state_dict alone with torch.save(model.state_dict(), ...)"
        )
    }

    /// `("storage", torch.FloatStorage, key, device, count[, view])`
    fn storage(&mut self, id: usize) -> Outcome<()> {
        let Value::Tuple(items) = &self.values[id] else {
            return Err(broken());
        };
        if let (Some(&class), Some(name)) = (items.get(1), &self.foreign)
            && matches!(self.values[class], Value::Opaque)
        {
            return Err(self.refused(name));
        }
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
        if matches!(self.values[function], Value::Opaque) {
            self.push(Value::Opaque);
            return Ok(());
        }
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
    /// What was left out on the way stands in `notes`.
    pub(super) fn state_dict(
        &self,
        root: usize,
        held: &HashMap<&str, &[u8]>,
        notes: &mut Vec<String>,
    ) -> Outcome<Vec<(String, Tensor)>> {
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
        let sets: Vec<_> = named(root).into_iter().filter(|(_, value)| named(*value).iter().any(is_tensor)).collect();
        let wrapped = WRAPPERS.iter().find_map(|wrapper| sets.iter().find(|(name, _)| name == wrapper)).copied();
        let bare = named(root).iter().any(is_tensor);
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
        let entries = named(wrapped.map_or(root, |(_, dict)| dict));
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

    /// The one set of tensors with names that lies in dictionaries, tuples or lists below `root`.
    fn deeper(&self, root: usize) -> Outcome<Option<(&'a str, usize)>> {
        let (mut sets, mut left, mut seen) = (Vec::new(), vec![("", root)], HashSet::new());
        while let Some((name, value)) = left.pop() {
            // A container may hold itself.
            if !seen.insert(value) {
                continue;
            }
            match &self.values[value] {
                Value::Dict(pairs) => {
                    let named = pairs.iter().filter_map(|&(key, value)| match self.values[key] {
                        Value::Str(name) => Some((name, value)),
                        _ => None,
                    });
                    if named.clone().any(|(_, value)| matches!(self.values[value], Value::Tensor { .. })) {
                        sets.push((name, value));
                    } else {
                        left.extend(named);
                    }
                }
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
                entry.insert(tensors::numbers(data, &[numel as i64], kind)?)
            }
        };
        let offset = if count == 0 { 0 } else { offset };
        whole.f_as_strided(size, stride, offset).map_err(|e| crate::Error::from(e).to_string())
    }
}

/// A name from a hostile file, fit for one line of an error.
pub(super) fn printable(name: &str) -> String {
    name.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn several(sets: &[(&str, usize)]) -> String {
    let names: Vec<String> = sets.iter().take(5).map(|(name, _)| format!("{:?}", printable(name))).collect();
    format!(
        "it holds several sets of weights ({}); in Python, save the one you mean alone: torch.save(torch.load(FILE)[...], ...)",
        names.join(", ")
    )
}

fn broken() -> String {
    "its pickle is damaged; download or save it again".to_owned()
}
