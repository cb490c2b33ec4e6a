//! Reads a header and proves every range in it, so that nothing later needs to.

use std::collections::HashMap;

use byteorder::{ByteOrder, LittleEndian as LE};

use super::{Array, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME_BYTES, Value, ValueType};
use crate::error::{Error, Result};
use crate::quant::GgmlType;

/// More metadata keys or tensors than this are refused before anything is allocated for them.
const MAX_COUNT: u64 = 1 << 20;
/// Longest key in bytes (the specification's limit).
const MAX_KEY_BYTES: u64 = 65535;

/// The header of a GGUF file. Having one says: counts are sane, keys and tensor names are unique UTF-8, not
/// empty and without zero bytes, and every tensor's bytes lie inside the file, aligned and apart from each other.
#[derive(Debug)]
pub struct Gguf {
    version: u32,
    alignment: u64,
    metadata: Vec<(String, Value)>,
    index: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
    data_offset: u64,
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name, at most 63 bytes.
    pub name: String,
    /// Extents `[ne0, ne1, ..]`, ne0 contiguous; 1 to 4 of them, none zero.
    pub dims: Vec<u64>,
    /// Element type.
    pub ty: GgmlType,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Size in bytes.
    pub n_bytes: u64,
}

impl TensorInfo {
    /// This tensor's bytes in the file it was read from. Cost: none, a view.
    pub fn bytes<'a>(&self, file: &'a [u8]) -> &'a [u8] {
        // Inside the file: proven when the header was read, of this same file.
        &file[self.offset as usize..(self.offset + self.n_bytes) as usize]
    }

    /// Number of values.
    pub fn n_values(&self) -> u64 {
        self.dims.iter().product()
    }
}

impl Gguf {
    /// Reads the header of `file`, the whole file's bytes. Cost: copies metadata, touches no tensor data.
    ///
    /// Errors (kind model) name the key or tensor and what was expected.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut cursor = Cursor { bytes: file, at: 0 };
        let start = &file[..file.len().min(200)];
        if !start.starts_with(MAGIC) {
            return Err(Error::model(not_gguf(start)));
        }
        cursor.take(4, "the magic")?;
        let version = cursor.u32("the version")?;
        if version.swap_bytes() < 16 && version >= 16 {
            return Err(Error::model("big-endian GGUF files are not supported"));
        }
        if !(2..=3).contains(&version) {
            return Err(Error::model(format!("GGUF version {version} is not supported (expected 2 or 3)")));
        }
        let n_tensors = cursor.count("the tensor count")?;
        let n_keys = cursor.count("the metadata count")?;
        let (metadata, index) = read_metadata(&mut cursor, n_keys)?;
        let alignment = match index.get("general.alignment").map(|&i| &metadata[i].1) {
            None => DEFAULT_ALIGNMENT,
            Some(Value::U32(a)) if a.is_power_of_two() && (8..=1 << 20).contains(a) => u64::from(*a),
            Some(other) => {
                return Err(Error::model(format!(
                    "general.alignment is {other:?} (expected a power of two from 8 to 1048576, as u32)"
                )));
            }
        };
        let mut tensors = Vec::new();
        let mut tensor_index = HashMap::new();
        for nth in 0..n_tensors {
            let tensor = read_tensor(&mut cursor, nth)?;
            if tensor_index.insert(tensor.name.clone(), tensors.len()).is_some() {
                return Err(Error::model(format!("tensor {:?} is listed twice", tensor.name)));
            }
            tensors.push(tensor);
        }
        let data_offset = (cursor.at as u64).next_multiple_of(alignment);
        place(&mut tensors, data_offset, alignment, file.len() as u64)?;
        Ok(Gguf { version, alignment, metadata, index, tensors, tensor_index, data_offset })
    }

    /// The header of all parts of a file in several: the first one's metadata and everyone's tensors, whose offsets count from where
    /// `starts` says each part begins. The other parts' metadata is left out. Errors (kind model): a tensor is in two parts, or there
    /// are not `n_tensors`.
    pub(crate) fn join(parts: Vec<Gguf>, starts: &[u64], n_tensors: usize) -> Result<Self> {
        let mut parts = parts.into_iter().zip(starts);
        let Some((mut whole, _)) = parts.next() else { return Err(Error::model("no parts")) };
        for (part, start) in parts {
            for tensor in part.tensors {
                if whole.tensor_index.insert(tensor.name.clone(), whole.tensors.len()).is_some() {
                    return Err(Error::model(format!("tensor {:?} is in two parts of the model", tensor.name)));
                }
                whole.tensors.push(TensorInfo { offset: start + tensor.offset, ..tensor });
            }
        }
        if whole.tensors.len() != n_tensors {
            let found = whole.tensors.len();
            return Err(Error::model(format!("all parts together have {found} tensors (expected {n_tensors})")));
        }
        Ok(whole)
    }

    /// Format version of the file.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in bytes, a power of two.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where tensor data begins, in bytes from the start of the file.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// All metadata in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index.get(name).map(|&i| &self.tensors[i])
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.metadata[i].1)
    }

    fn require(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| Error::model(format!("metadata key {key} is missing")))
    }

    /// A required count that must lie in `range`.
    pub fn count(&self, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<usize> {
        let value = self.require(key)?;
        match value.as_u64() {
            Some(n) if range.contains(&n) => Ok(n as usize),
            _ => Err(Error::model(format!(
                "metadata key {key} is {} (expected an integer from {} to {})",
                shown(value),
                range.start(),
                range.end()
            ))),
        }
    }

    /// An optional non-negative integer.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>> {
        self.opt(key, "a non-negative integer", Value::as_u64)
    }

    /// A required finite float.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.require(key)?;
        self.opt_f32(key).map(|v| v.unwrap_or_default())
    }

    /// An optional finite float.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        self.opt(key, "a finite float", |v| v.as_f32().filter(|f| f.is_finite()))
    }

    /// An optional truth value.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        self.opt(key, "true or false", |v| if let Value::Bool(b) = v { Some(*b) } else { None })
    }

    /// A required string.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.require(key)?;
        self.opt_str(key).map(|v| v.unwrap_or_default())
    }

    /// An optional string.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        self.opt(key, "a string", |v| if let Value::String(s) = v { Some(s.as_str()) } else { None })
    }

    /// A required array of strings.
    pub fn strings(&self, key: &str) -> Result<&[String]> {
        match self.require(key)? {
            Value::Array(Array::String(v)) => Ok(v),
            other => Err(wrong(key, other, "an array of strings")),
        }
    }

    /// A required array of i32.
    pub fn i32s(&self, key: &str) -> Result<&[i32]> {
        match self.require(key)? {
            Value::Array(Array::I32(v)) => Ok(v),
            other => Err(wrong(key, other, "an array of i32")),
        }
    }

    /// A required array of `n` finite f32.
    pub fn f32s(&self, key: &str, n: usize) -> Result<&[f32]> {
        match self.require(key)? {
            Value::Array(Array::F32(v)) if v.len() == n && v.iter().all(|x| x.is_finite()) => Ok(v),
            other => Err(wrong(key, other, &format!("an array of {n} finite f32"))),
        }
    }

    fn opt<'a, T>(&'a self, key: &str, expected: &str, f: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => f(value).map(Some).ok_or_else(|| wrong(key, value, expected)),
        }
    }
}

fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    Error::model(format!("metadata key {key} is {} (expected {expected})", shown(value)))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(a) => format!("an array of {} {:?}", a.len(), a.element_type()),
        Value::String(s) => format!("{:?}", s.chars().take(40).collect::<String>()),
        other => format!("{other:?}"),
    }
}

/// Says what a file that does not start with the magic seems to be.
fn not_gguf(start: &[u8]) -> String {
    if start.starts_with(b"version https://git-lfs") {
        return "this is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`".into();
    }
    let found = start[..start.len().min(4)].escape_ascii().to_string();
    format!("not a GGUF file (starts with \"{found}\", expected \"GGUF\")")
}

type Keys = (Vec<(String, Value)>, HashMap<String, usize>);

fn read_metadata(cursor: &mut Cursor, n_keys: u64) -> Result<Keys> {
    let mut metadata = Vec::new();
    let mut index = HashMap::new();
    for nth in 0..n_keys {
        let key = cursor.name(MAX_KEY_BYTES, &format!("metadata key {nth}"))?;
        let what = format!("metadata key {key}");
        let type_id = cursor.u32(&what)?;
        let value_type = ValueType::from_id(type_id)
            .ok_or_else(|| Error::model(format!("{what} has unknown value type {type_id}")))?;
        let value = read_value(cursor, value_type, &what)?;
        if index.insert(key.clone(), metadata.len()).is_some() {
            return Err(Error::model(format!("{what} is listed twice")));
        }
        metadata.push((key, value));
    }
    Ok((metadata, index))
}

fn read_value(cursor: &mut Cursor, value_type: ValueType, what: &str) -> Result<Value> {
    Ok(match value_type {
        ValueType::U8 => Value::U8(cursor.take(1, what)?[0]),
        ValueType::I8 => Value::I8(cursor.take(1, what)?[0] as i8),
        ValueType::U16 => Value::U16(LE::read_u16(cursor.take(2, what)?)),
        ValueType::I16 => Value::I16(LE::read_i16(cursor.take(2, what)?)),
        ValueType::U32 => Value::U32(cursor.u32(what)?),
        ValueType::I32 => Value::I32(LE::read_i32(cursor.take(4, what)?)),
        ValueType::F32 => Value::F32(LE::read_f32(cursor.take(4, what)?)),
        ValueType::U64 => Value::U64(cursor.u64(what)?),
        ValueType::I64 => Value::I64(LE::read_i64(cursor.take(8, what)?)),
        ValueType::F64 => Value::F64(LE::read_f64(cursor.take(8, what)?)),
        ValueType::Bool => Value::Bool(read_bool(cursor.take(1, what)?[0], what)?),
        ValueType::String => Value::String(cursor.string(u64::MAX, what)?),
        ValueType::Array => Value::Array(read_array(cursor, what)?),
    })
}

fn read_bool(byte: u8, what: &str) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::model(format!("{what} is a bool of value {other} (expected 0 or 1)"))),
    }
}

fn read_array(cursor: &mut Cursor, what: &str) -> Result<Array> {
    let type_id = cursor.u32(what)?;
    let element = ValueType::from_id(type_id)
        .ok_or_else(|| Error::model(format!("{what} is an array of unknown value type {type_id}")))?;
    let n = cursor.u64(what)?;
    // Nothing is allocated for elements that the file cannot hold: fixed-size ones are taken as one checked slice.
    macro_rules! numbers {
        ($variant:ident, $size:expr, $read:expr) => {{
            let n_bytes = n.checked_mul($size).filter(|b| *b <= cursor.left());
            let bytes = cursor.take(n_bytes.ok_or_else(|| too_long(what, n))?, what)?;
            Array::$variant(bytes.chunks_exact($size).map($read).collect())
        }};
    }
    Ok(match element {
        ValueType::U8 => numbers!(U8, 1, |b| b[0]),
        ValueType::I8 => numbers!(I8, 1, |b| b[0] as i8),
        ValueType::U16 => numbers!(U16, 2, LE::read_u16),
        ValueType::I16 => numbers!(I16, 2, LE::read_i16),
        ValueType::U32 => numbers!(U32, 4, LE::read_u32),
        ValueType::I32 => numbers!(I32, 4, LE::read_i32),
        ValueType::F32 => numbers!(F32, 4, LE::read_f32),
        ValueType::U64 => numbers!(U64, 8, LE::read_u64),
        ValueType::I64 => numbers!(I64, 8, LE::read_i64),
        ValueType::F64 => numbers!(F64, 8, LE::read_f64),
        ValueType::Bool => {
            let bytes = cursor.take(n, what)?;
            Array::Bool(bytes.iter().map(|&b| read_bool(b, what)).collect::<Result<_>>()?)
        }
        ValueType::String => {
            if n.checked_mul(8).is_none_or(|b| b > cursor.left()) {
                return Err(too_long(what, n));
            }
            Array::String((0..n).map(|_| cursor.string(u64::MAX, what)).collect::<Result<_>>()?)
        }
        ValueType::Array => return Err(Error::model(format!("{what} is an array of arrays, which is not supported"))),
    })
}

fn too_long(what: &str, n: u64) -> Error {
    Error::model(format!("{what} is an array of {n} elements, more than the file can hold"))
}

/// Reads one entry of the tensor list; its offset is still relative to the data section.
fn read_tensor(cursor: &mut Cursor, nth: u64) -> Result<TensorInfo> {
    let name = cursor.name(MAX_NAME_BYTES as u64, &format!("tensor {nth}"))?;
    let n_dims = cursor.u32(&name)? as usize;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(Error::model(format!("tensor {name:?} has {n_dims} dimensions (expected 1 to {MAX_DIMS})")));
    }
    let dims = (0..n_dims).map(|_| cursor.u64(&name)).collect::<Result<Vec<_>>>()?;
    let type_id = cursor.u32(&name)?;
    let offset = cursor.u64(&name)?;
    let ty = GgmlType::from_id(type_id)
        .ok_or_else(|| Error::model(format!("tensor {name:?} has unknown or unsupported type {type_id}")))?;
    let n_bytes = tensor_bytes(&dims, ty)
        .ok_or_else(|| Error::model(format!("tensor {name:?} has impossible extents {dims:?} for type {ty}")))?;
    Ok(TensorInfo { name, dims, ty, offset, n_bytes })
}

/// Bytes of a tensor, or `None` if an extent is zero, a row is not whole blocks, or ggml's 63-bit counts overflow.
pub(super) fn tensor_bytes(dims: &[u64], ty: GgmlType) -> Option<u64> {
    if dims.contains(&0) {
        return None;
    }
    let row = ty.row_bytes(dims[0])?;
    let n_bytes = dims[1..].iter().try_fold(row, |bytes, d| bytes.checked_mul(*d))?;
    let n_values = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
    (n_bytes <= i64::MAX as u64 && n_values <= i64::MAX as u64).then_some(n_bytes)
}

/// Turns offsets into file offsets and proves that tensors lie inside the file and apart from each other.
fn place(tensors: &mut [TensorInfo], data_offset: u64, alignment: u64, file_bytes: u64) -> Result<()> {
    for tensor in tensors.iter_mut() {
        let name = &tensor.name;
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(Error::model(format!(
                "tensor {name:?} starts at {}, not at a multiple of {alignment}",
                tensor.offset
            )));
        }
        let end = data_offset.checked_add(tensor.offset).and_then(|start| start.checked_add(tensor.n_bytes));
        if end.is_none_or(|end| end > file_bytes) {
            return Err(Error::model(format!(
                "tensor {name:?} needs {} bytes at offset {} of the data but the file ends at byte {file_bytes} \
                 (is it truncated? compare its size with the original's)",
                tensor.n_bytes, tensor.offset
            )));
        }
        tensor.offset += data_offset;
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    match order.windows(2).find(|pair| pair[0].offset + pair[0].n_bytes > pair[1].offset) {
        Some(pair) => Err(Error::model(format!("tensors {:?} and {:?} overlap", pair[0].name, pair[1].name))),
        None => Ok(()),
    }
}

/// Takes bytes from the front, never past the end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            return Err(Error::model(format!("the file ends inside {what} (byte {} of the header)", self.at)));
        }
        let start = self.at;
        self.at += n as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.take(4, what).map(LE::read_u32)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.take(8, what).map(LE::read_u64)
    }

    fn count(&mut self, what: &str) -> Result<u64> {
        let n = self.u64(what)?;
        if n > MAX_COUNT {
            return Err(Error::model(format!("{what} is {n} (at most {MAX_COUNT} are accepted)")));
        }
        Ok(n)
    }

    /// A name, not empty and without a zero byte: ggml aborts on the one and, comparing C strings, would find
    /// another name than we in the other.
    fn name(&mut self, max_bytes: u64, of: &str) -> Result<String> {
        let name = self.string(max_bytes, &format!("the name of {of}"))?;
        match name.as_str() {
            "" => Err(Error::model(format!("{of} has an empty name"))),
            _ if name.contains('\0') => Err(Error::model(format!("the name of {of}, {name:?}, contains a zero byte"))),
            _ => Ok(name),
        }
    }

    fn string(&mut self, max_bytes: u64, what: &str) -> Result<String> {
        let n = self.u64(what)?;
        if n > max_bytes {
            return Err(Error::model(format!("{what} is {n} bytes long (at most {max_bytes} are accepted)")));
        }
        let bytes = self.take(n, what)?;
        let text = std::str::from_utf8(bytes).map_err(|e| Error::model(format!("{what} is not UTF-8")).because(e))?;
        Ok(text.to_owned())
    }
}
