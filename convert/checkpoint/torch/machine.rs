//! What a pickle has built so far: values, and the stack and memo that its opcodes work with.

use std::collections::HashMap;

use byteorder::{ByteOrder, LE};
use qvl::error::{Error, Result};

use super::objects::{Global, Storage, View};

/// Longest text, in bytes: no name is longer, and each use of a text looks at all of it.
const MAX_TEXT_BYTES: u64 = 4096;

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
    /// One that has built nothing yet.
    pub fn new(pickle: &'a [u8]) -> Self {
        Machine {
            pickle,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            views: Vec::new(),
        }
    }

    /// Bytes of the pickle that were read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Puts a value on the stack.
    pub fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    /// The last value on the stack.
    pub fn last(&self) -> Option<Value> {
        self.stack[self.floor()..].last().copied()
    }

    /// Marks the end of the stack: what is pushed from here on, the next [`pop_mark`](Self::pop_mark) takes.
    pub fn mark(&mut self) {
        self.marks.push(self.stack.len());
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

    /// Reads the next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.pickle.len());
        let end = end.ok_or_else(|| Error::model("the pickle is cut off"))?;
        let bytes = &self.pickle[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// Reads an unsigned number of 1 or 2 bytes.
    pub fn take_int(&mut self, n: usize) -> Result<()> {
        let n = LE::read_uint(self.take(n)?, n);
        self.stack.push(Value::Int(n as i64));
        Ok(())
    }

    /// Reads a signed number of `n` bytes.
    pub fn take_long(&mut self, n: usize) -> Result<()> {
        let value = match n {
            0 => 0,
            1..=8 => LE::read_int(self.take(n)?, n),
            _ => return Err(Error::model(format!("a number of {n} bytes (expected at most 8)"))),
        };
        self.stack.push(Value::Int(value));
        Ok(())
    }

    /// Reads a text behind its length, which has `n` bytes.
    pub fn take_text(&mut self, n: usize) -> Result<()> {
        let length = LE::read_uint(self.take(n)?, n);
        if length > MAX_TEXT_BYTES {
            return Err(Error::model(format!("a text of {length} bytes (expected at most {MAX_TEXT_BYTES})")));
        }
        let bytes = self.take(length as usize)?;
        if std::str::from_utf8(bytes).is_err() {
            return Err(Error::model("a text is not UTF-8"));
        }
        self.stack.push(Value::Text(self.at - bytes.len(), self.at));
        Ok(())
    }

    /// Reads up to the end of a line.
    pub fn take_line(&mut self) -> Result<&'a str> {
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
    fn first_of(&self, n: usize) -> Result<usize> {
        let first = self.stack.len().checked_sub(n).filter(|first| *first >= self.floor());
        first.ok_or_else(|| Error::model("a value is missing on the pickle's stack"))
    }

    /// Takes the last `n` values from the stack.
    pub fn pop_n(&mut self, n: usize) -> Result<Vec<Value>> {
        let first = self.first_of(n)?;
        Ok(self.stack.split_off(first))
    }

    /// Takes the last value from the stack.
    pub fn pop(&mut self) -> Result<Value> {
        let first = self.first_of(1)?;
        let value = self.stack[first];
        self.stack.truncate(first);
        Ok(value)
    }

    /// Takes what is behind the last mark from the stack, and the mark.
    pub fn pop_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().ok_or_else(|| Error::model("a mark is missing on the pickle's stack"))?;
        Ok(self.stack.split_off(mark))
    }

    /// Puts a new tuple or list on the stack.
    pub fn push_list(&mut self, items: Vec<Value>, kind: fn(usize) -> Value) {
        self.lists.push(items);
        self.stack.push(kind(self.lists.len() - 1));
    }

    /// Appends to the list at the end of the stack.
    pub fn append(&mut self, items: &[Value]) -> Result<()> {
        let Some(Value::List(i)) = self.last() else { return Err(Error::model("it appends to no list")) };
        self.lists[i].extend(items);
        Ok(())
    }

    /// Adds keys and values, in turns, to the dict at the end of the stack.
    pub fn set_items(&mut self, items: &[Value]) -> Result<()> {
        let Some(Value::Dict(i)) = self.last() else { return Err(Error::model("it sets items of no dict")) };
        if !items.len().is_multiple_of(2) {
            return Err(Error::model("a key has no value"));
        }
        self.dicts[i].extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    /// Keeps the last value on the stack for [`recall`](Self::recall).
    pub fn memoize(&mut self, key: u32) -> Result<()> {
        let first = self.first_of(1)?;
        self.memo.insert(key, self.stack[first]);
        Ok(())
    }

    /// How many values are kept, which is the key of the next one in protocol 4.
    pub fn n_kept(&self) -> u32 {
        self.memo.len() as u32
    }

    /// Puts a kept value on the stack.
    pub fn recall(&mut self, key: u32) -> Result<()> {
        let value = self.memo.get(&key).ok_or_else(|| Error::model(format!("it recalls {key}, which was not kept")))?;
        self.stack.push(*value);
        Ok(())
    }
}
