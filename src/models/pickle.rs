//! The pickle inside PyTorch's `.pth` files, read by a machine that knows tensors and plain values and executes
//! nothing.
//!
//! A pickle is a program. This machine knows the few things that a weight file needs: dictionaries, tuples, numbers,
//! storages and `torch._utils._rebuild_tensor_v2`. It refuses names that run code and passes over all others, so no
//! file can make it do more than build tensors. Values lie in one arena and refer to each other by index, so a file of
//! `n` bytes makes at most `n` values, whatever it nests or repeats. The instructions are those of Python's
//! `pickletools`.

use std::collections::HashMap;
use tch::Kind;

/// The error says why the file was refused, without its name.
pub(super) type Outcome<T> = std::result::Result<T, String>;

/// The largest pickle, in bytes. It holds names and shapes only, so weight files stay far below.
pub(super) const LONGEST_PICKLE: usize = 64 << 20;

/// A Python value. Containers hold indices into [`Machine::values`].
#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// A number that no tensor depends on.
    Float,
    Str(&'a str),
    /// A known class or function: module and name.
    Global(&'a str, &'a str),
    /// Something that only Python could build. It is passed over, with everything that is put into it.
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

/// The memory of one or more tensors, which lies outside the pickle under its key.
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) kind: Kind,
    pub(super) numel: usize,
}

impl Storage<'_> {
    pub(super) fn bytes(&self) -> usize {
        self.numel * self.kind.elt_size_in_bytes()
    }
}

/// Python's modules that run programs or code.
const RUNNERS: &str = "os posix nt subprocess sys importlib runpy pty shutil socket webbrowser ctypes pickle";
/// Python's built-in names that only hold values.
const VALUES: &str = "set frozenset list dict tuple object complex slice range bytearray bytes int float";

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
    /// The position behind the last instruction.
    pub(super) at: usize,
    pub(super) values: Vec<Value<'a>>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: HashMap<u64, usize>,
    pub(super) storages: Vec<Storage<'a>>,
    pub(super) by_key: HashMap<&'a str, usize>,
    /// The first name that the file asked for and that was passed over.
    pub(super) foreign: Option<String>,
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

    /// Runs up to the instruction STOP and returns the index of the resulting value.
    pub(super) fn run(&mut self) -> Outcome<usize> {
        while self.at <= LONGEST_PICKLE {
            match self.take(1)?[0] {
                b'.' => return self.pop(), // STOP
                code => match self.value(code)? {
                    Some(value) => self.push(value),
                    None => self.arrange(code)?,
                },
            }
        }
        Err("its pickle is too long for a weight file".to_owned())
    }

    /// The new value of an instruction that makes one; `None` for the others.
    fn value(&mut self, code: u8) -> Outcome<Option<Value<'a>>> {
        Ok(Some(match code {
            b'N' => Value::None,
            0x88 => Value::Bool(true),                             // NEWTRUE
            0x89 => Value::Bool(false),                            // NEWFALSE
            b'K' => Value::Int(self.unsigned(1)? as i64),          // BININT1
            b'M' => Value::Int(self.unsigned(2)? as i64),          // BININT2
            b'J' => Value::Int((self.unsigned(4)? as i32).into()), // BININT
            0x8a => self.long()?,                                  // LONG1
            b'G' => self.take(8).map(|_| Value::Float)?,           // BINFLOAT
            b'X' | b'T' => Value::Str(self.text(4)?),              // BINUNICODE, BINSTRING
            0x8c | b'U' => Value::Str(self.text(1)?),              // SHORT_BINUNICODE, SHORT_BINSTRING
            b'C' => self.sized(1).map(|_| Value::Opaque)?,         // SHORT_BINBYTES
            b'B' => self.sized(4).map(|_| Value::Opaque)?,         // BINBYTES
            0x8e => self.sized(8).map(|_| Value::Opaque)?,         // BINBYTES8
            0x8f => Value::Opaque,                                 // EMPTY_SET
            b'}' => Value::Dict(Vec::new()),
            b']' => Value::List(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(code - 0x84)).ok_or_else(broken)?;
                Value::Tuple(self.stack.split_off(start)) // TUPLE1, TUPLE2, TUPLE3
            }
            b't' => Value::Tuple(self.popped_to_mark()?), // TUPLE
            0x81 => {
                let (_arguments, _class) = (self.pop()?, self.pop()?); // NEWOBJ
                Value::Opaque
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?); // GLOBAL
                self.global(module, name)?
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
                Value::Storage(self.storage(id)?)
            }
            _ => return Ok(None),
        }))
    }

    /// Runs an instruction that moves values or puts them into each other.
    fn arrange(&mut self, code: u8) -> Outcome<()> {
        match code {
            0x80 => drop(self.take(1)?), // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),            // POP
            b'1' => drop(self.popped_to_mark()?), // POP_MARK
            b'2' => self.stack.push(self.top()?), // DUP
            0x90 => drop(self.popped_to_mark()?), // ADDITEMS
            b'a' => {
                let item = self.pop()?; // APPEND
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.popped_to_mark()?; // APPENDS
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?); // SETITEM
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.popped_to_mark()?; // SETITEMS
                self.set(items)?;
            }
            b'q' | b'r' | 0x94 => {
                let slot = match code {
                    b'q' => self.unsigned(1)?,   // BINPUT
                    b'r' => self.unsigned(4)?,   // LONG_BINPUT
                    _ => self.memo.len() as u64, // MEMOIZE
                };
                let top = self.top()?;
                self.memo.insert(slot, top);
            }
            b'h' | b'j' => {
                let slot = self.unsigned(if code == b'h' { 1 } else { 4 })?; // BINGET, LONG_BINGET
                self.stack.push(*self.memo.get(&slot).ok_or_else(broken)?);
            }
            b'R' => self.reduce()?,
            b'b' => drop(self.pop()?), // BUILD: attributes such as a state_dict's _metadata; not needed
            _ => return Err(format!("its pickle uses the instruction {code:#04x}, which no weight file needs")),
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Outcome<&'a [u8]> {
        let end = self.at.checked_add(n).ok_or_else(broken)?;
        let bytes = self.program.get(self.at..end).ok_or("it ends in the middle of its pickle; download it again")?;
        self.at = end;
        Ok(bytes)
    }

    /// A little-endian number of up to 8 bytes.
    fn unsigned(&mut self, bytes: usize) -> Outcome<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
    }

    /// Bytes behind their length, a number of `width` bytes.
    fn sized(&mut self, width: usize) -> Outcome<&'a [u8]> {
        let length = self.unsigned(width)?;
        self.take(usize::try_from(length).map_err(|_| broken())?)
    }

    /// A text behind its length.
    fn text(&mut self, width: usize) -> Outcome<&'a str> {
        std::str::from_utf8(self.sized(width)?).map_err(|_| "a name in it is not UTF-8".to_owned())
    }

    fn line(&mut self) -> Outcome<&'a str> {
        let rest = &self.program[self.at..];
        let length = rest.iter().take(512).position(|&b| b == b'\n').ok_or_else(broken)?;
        let line = std::str::from_utf8(self.take(length)?).map_err(|_| broken())?;
        self.take(1)?;
        Ok(line)
    }

    /// LONG1: a little-endian two's complement number of any length. Only the magic number needs more than 64 bits.
    fn long(&mut self) -> Outcome<Value<'a>> {
        let bytes = self.sized(1)?;
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { -1i64 } else { 0 };
        Ok(match bytes.len() {
            0..=8 => Value::Int(bytes.iter().rev().fold(sign, |n, &byte| n << 8 | i64::from(byte))),
            _ => Value::Float,
        })
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

    /// The class or function of this name, or something opaque instead.
    fn global(&mut self, module: &'a str, name: &'a str) -> Outcome<Value<'a>> {
        let known = match (module, name) {
            ("collections", "OrderedDict") | ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_parameter") => true,
            ("torch", _) => STORAGES.iter().any(|(storage, _)| *storage == name),
            _ => false,
        };
        if known {
            return Ok(Value::Global(module, name));
        }
        // Nothing is executed, but a file that asks for it cannot be trusted with its weights either.
        let builtin = ["builtins", "__builtin__"].contains(&module) && !VALUES.split(' ').any(|known| known == name);
        if builtin || RUNNERS.split(' ').any(|known| known == module) || (module, name) == ("torch", "load") {
            return Err(self.refused(&format!("{}.{}", printable(module), printable(name))));
        }
        // Settings and counters beside the weights.
        self.foreign.get_or_insert_with(|| format!("{}.{}", printable(module), printable(name)));
        Ok(Value::Opaque)
    }

    /// The error about a name that the file asks for.
    pub(super) fn refused(&self, name: &str) -> String {
        format!(
            "it asks for `{name}`, which is not run; save the state_dict alone with torch.save(model.state_dict(), ...)"
        )
    }

    /// The index of the storage `("storage", torch.FloatStorage, key, device, count[, view])`.
    fn storage(&mut self, id: usize) -> Outcome<usize> {
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
        match self.by_key.get(key) {
            Some(&i) if self.storages[i].kind == kind && self.storages[i].numel == numel => Ok(i),
            Some(_) => Err(broken()),
            None => {
                self.by_key.insert(key, self.storages.len());
                self.storages.push(Storage { key, kind, numel });
                Ok(self.storages.len() - 1)
            }
        }
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
}

/// A name from a hostile file, fit for one line of an error.
pub(super) fn printable(name: &str) -> String {
    name.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

pub(super) fn broken() -> String {
    "its pickle is damaged; download or save it again".to_owned()
}
