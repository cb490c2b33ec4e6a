//! A machine for the pickles that `torch.save` makes of state dicts. It builds plain values and executes nothing: the few
//! functions that such a pickle names are constructors known to it by name, and every other name is refused.
//!
//! Source: the opcodes' descriptions in Python's `pickletools.py`.

use std::collections::HashMap;

use byteorder::{ByteOrder, LE};
use qvl::error::{Error, Result};

use super::objects::{self, Global, Storage, View};

/// Steps of one pickle; a shard with 1461 tensors takes some 60,000.
const MAX_STEPS: usize = 1 << 20;

/// A value. All are as large as a number: what they consist of lies in the machine's lists, so that neither a copy nor
/// the end of a deeply nested one costs anything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// A number that no tensor is made of.
    Float,
    /// Bytes of the pickle, valid UTF-8.
    Text(usize, usize),
    /// Index into [`Machine::lists`].
    Tuple(usize),
    /// Index into [`Machine::lists`].
    List(usize),
    /// Index into [`Machine::dicts`].
    Dict(usize),
    Global(Global),
    /// Index into [`Machine::storages`].
    Storage(usize),
    /// Index into [`Machine::views`].
    Tensor(usize),
}

impl Value {
    /// What it is, for messages.
    pub fn kind(self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a truth value",
            Value::Int(_) | Value::Float => "a number",
            Value::Text(..) => "a text",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Global(_) => "a function or class",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// A pickle and what was built from it so far.
pub struct Machine<'a> {
    pickle: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// Items of tuples and lists.
    pub lists: Vec<Vec<Value>>,
    /// Entries of dicts in the order of their making.
    pub dicts: Vec<Vec<(Value, Value)>>,
    /// Storages that tensors look at.
    pub storages: Vec<Storage>,
    /// Tensors.
    pub views: Vec<View>,
}

impl<'a> Machine<'a> {
    /// Runs `pickle` to its end. Errors (kind model): it is cut off or damaged, or asks for anything that a state dict
    /// does not need. Cost: at most `MAX_STEPS` steps, each of which allocates some 100 bytes at most.
    pub fn run(pickle: &'a [u8]) -> Result<(Self, Value)> {
        let mut machine = Machine {
            pickle,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            views: Vec::new(),
        };
        for _ in 0..MAX_STEPS {
            let start = machine.at;
            if machine.step().map_err(|e| e.of(format!("byte {start} of its pickle")))? == Step::End {
                let top = machine.pop()?;
                return Ok((machine, top));
            }
        }
        Err(Error::model(format!("its pickle has more than {MAX_STEPS} steps, which no state dict needs")))
    }

    /// The text of a value that is one.
    pub fn text(&self, value: Value) -> Option<&'a str> {
        let Value::Text(start, end) = value else { return None };
        std::str::from_utf8(&self.pickle[start..end]).ok()
    }

    /// The items of a tuple.
    pub fn tuple(&self, value: Value) -> Option<&[Value]> {
        let Value::Tuple(i) = value else { return None };
        Some(&self.lists[i])
    }

    /// A new, empty dict.
    pub fn new_dict(&mut self) -> Value {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    fn step(&mut self) -> Result<Step> {
        let opcode = self.take(1)?[0];
        match opcode {
            b'.' => return Ok(Step::End),
            // PROTO and FRAME say what follows, which is read as it comes.
            0x80 => self.take(1).map(drop)?,
            0x95 => self.take(8).map(drop)?,
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => self.take_int(1)?,
            b'M' => self.take_int(2)?,
            b'J' => {
                let n = LE::read_i32(self.take(4)?);
                self.stack.push(Value::Int(n.into()));
            }
            0x8a => {
                let n = self.take(1)?[0];
                self.take_long(n.into())?;
            }
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Float);
            }
            b'X' => self.take_text(4)?,
            0x8c => self.take_text(1)?,
            0x8d => self.take_text(8)?,
            b'}' => {
                let dict = self.new_dict();
                self.stack.push(dict);
            }
            b']' => self.push_list(Vec::new(), Value::List),
            b')' => self.push_list(Vec::new(), Value::Tuple),
            b't' => {
                let items = self.pop_mark()?;
                self.push_list(items, Value::Tuple);
            }
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let first = self.floor_checked(n)?;
                let items = self.stack.split_off(first);
                self.push_list(items, Value::Tuple);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            b'q' => {
                let key = self.take(1)?[0];
                self.memoize(key.into())?;
            }
            b'r' => {
                let key = LE::read_u32(self.take(4)?);
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len() as u32)?,
            b'h' => {
                let key = self.take(1)?[0];
                self.recall(key.into())?;
            }
            b'j' => {
                let key = LE::read_u32(self.take(4)?);
                self.recall(key)?;
            }
            // INST would call what it names at once: its name is all that is read of it.
            b'c' | b'i' => {
                let (module, name) = (self.take_line()?, self.take_line()?);
                let global = Global::named(module, name)?;
                if opcode == b'i' {
                    return Err(not_needed(opcode));
                }
                self.stack.push(Value::Global(global));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.text(module), self.text(name)) else {
                    return Err(Error::model("the name of a class is not a text"));
                };
                self.stack.push(Value::Global(Global::named(module, name)?));
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = objects::storage(self, id)?;
                self.stack.push(storage);
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let made = objects::reduce(self, function, arguments)?;
                self.stack.push(made);
            }
            // Attributes of the dict, such as `_metadata`, are not weights.
            b'b' => {
                let _attributes = self.pop()?;
                if !matches!(self.stack.last(), Some(Value::Dict(_))) {
                    return Err(Error::model("it sets attributes of something that is not a dict"));
                }
            }
            _ => return Err(not_needed(opcode)),
        }
        Ok(Step::Next)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.pickle.len());
        let end = end.ok_or_else(|| Error::model("the pickle is cut off"))?;
        let bytes = &self.pickle[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// An unsigned number of 1 or 2 bytes.
    fn take_int(&mut self, n: usize) -> Result<()> {
        let n = LE::read_uint(self.take(n)?, n);
        self.stack.push(Value::Int(n as i64));
        Ok(())
    }

    /// A signed number of `n` bytes.
    fn take_long(&mut self, n: usize) -> Result<()> {
        let value = match n {
            0 => 0,
            1..=8 => LE::read_int(self.take(n)?, n),
            _ => return Err(Error::model(format!("a number of {n} bytes (expected at most 8)"))),
        };
        self.stack.push(Value::Int(value));
        Ok(())
    }

    /// A text behind its length, which has `n` bytes.
    fn take_text(&mut self, n: usize) -> Result<()> {
        let length = LE::read_uint(self.take(n)?, n);
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        if std::str::from_utf8(bytes).is_err() {
            return Err(Error::model("a text is not UTF-8"));
        }
        self.stack.push(Value::Text(self.at - bytes.len(), self.at));
        Ok(())
    }

    fn take_line(&mut self) -> Result<&'a str> {
        let rest = &self.pickle[self.at..];
        let n = rest.iter().position(|b| *b == b'\n').ok_or_else(|| Error::model("the pickle is cut off"))?;
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).map_err(|_| Error::model("the name of a class is not UTF-8"))
    }

    /// Where the stack begins that an opcode may take from: behind the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    /// The first of the last `n` values.
    fn floor_checked(&self, n: usize) -> Result<usize> {
        let first = self.stack.len().checked_sub(n).filter(|first| *first >= self.floor());
        first.ok_or_else(|| Error::model("a value is missing on the pickle's stack"))
    }

    fn pop(&mut self) -> Result<Value> {
        let first = self.floor_checked(1)?;
        Ok(self.stack.split_off(first)[0])
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().ok_or_else(|| Error::model("a mark is missing on the pickle's stack"))?;
        Ok(self.stack.split_off(mark))
    }

    fn push_list(&mut self, items: Vec<Value>, kind: fn(usize) -> Value) {
        self.lists.push(items);
        self.stack.push(kind(self.lists.len() - 1));
    }

    fn append(&mut self, items: &[Value]) -> Result<()> {
        let Some(Value::List(i)) = self.stack.last() else { return Err(Error::model("it appends to no list")) };
        self.lists[*i].extend(items);
        Ok(())
    }

    fn set_items(&mut self, items: &[Value]) -> Result<()> {
        let Some(Value::Dict(i)) = self.stack.last() else { return Err(Error::model("it sets items of no dict")) };
        if !items.len().is_multiple_of(2) {
            return Err(Error::model("a key has no value"));
        }
        self.dicts[*i].extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    fn memoize(&mut self, key: u32) -> Result<()> {
        let first = self.floor_checked(1)?;
        self.memo.insert(key, self.stack[first]);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let value = self.memo.get(&key).ok_or_else(|| Error::model(format!("it recalls {key}, which was not kept")))?;
        self.stack.push(*value);
        Ok(())
    }
}

#[derive(PartialEq)]
enum Step {
    Next,
    End,
}

fn not_needed(opcode: u8) -> Error {
    let shown = if opcode.is_ascii_graphic() { format!("'{}'", opcode as char) } else { format!("{opcode:#04x}") };
    Error::model(format!("it has the opcode {shown}, which no state dict needs; refused"))
}
