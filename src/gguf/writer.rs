//! Lays out and writes a header. Tensor data is written by whoever has it, in order, at the offsets of the [`Layout`].

use std::io::{self, Write};
use std::ops::Range;

use byteorder::{LittleEndian as LE, WriteBytesExt};

use super::reader::tensor_bytes;
use super::{Array, MAGIC, MAX_NAME_BYTES, VERSION, Value};
use crate::error::{Error, Result};
use crate::quant::GgmlType;

/// Keys and values in the order in which they will stand in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub Vec<(String, Value)>);

impl Metadata {
    /// Appends `key`; a key that is already there gets the new value instead.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|(k, _)| *k == key) {
            Some(entry) => entry.1 = value,
            None => self.0.push((key, value)),
        }
    }

    /// Appends `key` if there is a value.
    pub fn set_opt(&mut self, key: impl Into<String>, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name, at most 63 bytes.
    pub name: String,
    /// Extents `[ne0, ne1, ..]`, ne0 contiguous.
    pub dims: Vec<u64>,
    /// Element type.
    pub ty: GgmlType,
}

/// Where everything will stand in a file: the encoded header and each tensor's place.
#[derive(Debug)]
pub struct Layout {
    /// The encoded header, padded up to the first tensor.
    pub header: Vec<u8>,
    /// (offset from the start of the file, size) in bytes of each tensor, in order.
    pub places: Vec<(u64, u64)>,
    /// Size of the whole file in bytes.
    pub file_bytes: u64,
    /// Where the bytes of each key's string stand.
    strings: Vec<(String, Range<usize>)>,
}

impl Layout {
    /// Lays out a file. Tensors follow in the given order, each at a multiple of `alignment` (a power of two); the
    /// last one is padded too, as ggml's own writer does.
    pub fn new(metadata: &Metadata, tensors: &[TensorSpec], alignment: u64) -> Result<Self> {
        let mut metadata = metadata.clone();
        metadata.set("general.alignment", Value::U32(alignment as u32));
        let mut relative = Vec::new();
        let mut at = 0u64;
        for tensor in tensors {
            let n_bytes = tensor_bytes(&tensor.dims, tensor.ty).filter(|_| tensor.name.len() <= MAX_NAME_BYTES);
            let n_bytes = n_bytes.ok_or_else(|| {
                let TensorSpec { name, dims, ty } = tensor;
                Error::other(format!("tensor {name:?} of extents {dims:?} cannot be stored as {ty}"))
            })?;
            relative.push((at, n_bytes));
            at = (at + n_bytes).next_multiple_of(alignment);
        }
        let mut header = Vec::new();
        let strings = encode(&mut header, &metadata, tensors, &relative)
            .map_err(|e| Error::other("cannot encode the GGUF header").because(e))?;
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        let base = header.len() as u64;
        let places = relative.into_iter().map(|(offset, n)| (base + offset, n)).collect();
        Ok(Layout { header, places, file_bytes: base + at, strings })
    }

    /// Where in the header, and so in the file, the string of `key` stands, if it has one: what is known only when the data is
    /// written can then take the place of a string of its length.
    pub fn string_place(&self, key: &str) -> Option<Range<usize>> {
        self.strings.iter().find(|(k, _)| k == key).map(|(_, place)| place.clone())
    }
}

/// Appends the header, not padded; tells where each key's string stands in it.
fn encode(
    out: &mut Vec<u8>,
    metadata: &Metadata,
    tensors: &[TensorSpec],
    places: &[(u64, u64)],
) -> io::Result<Vec<(String, Range<usize>)>> {
    let mut strings = Vec::new();
    out.write_all(MAGIC)?;
    out.write_u32::<LE>(VERSION)?;
    out.write_u64::<LE>(tensors.len() as u64)?;
    out.write_u64::<LE>(metadata.0.len() as u64)?;
    for (key, value) in &metadata.0 {
        write_str(out, key)?;
        out.write_u32::<LE>(value.value_type() as u32)?;
        write_value(out, value)?;
        if let Value::String(text) = value {
            strings.push((key.clone(), out.len() - text.len()..out.len()));
        }
    }
    for (tensor, (offset, _)) in tensors.iter().zip(places) {
        write_str(out, &tensor.name)?;
        out.write_u32::<LE>(tensor.dims.len() as u32)?;
        tensor.dims.iter().try_for_each(|d| out.write_u64::<LE>(*d))?;
        out.write_u32::<LE>(tensor.ty.id())?;
        out.write_u64::<LE>(*offset)?;
    }
    Ok(strings)
}

fn write_str(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    out.write_u64::<LE>(text.len() as u64)?;
    out.write_all(text.as_bytes())
}

fn write_value(out: &mut Vec<u8>, value: &Value) -> io::Result<()> {
    match value {
        Value::U8(v) => out.write_u8(*v),
        Value::I8(v) => out.write_i8(*v),
        Value::U16(v) => out.write_u16::<LE>(*v),
        Value::I16(v) => out.write_i16::<LE>(*v),
        Value::U32(v) => out.write_u32::<LE>(*v),
        Value::I32(v) => out.write_i32::<LE>(*v),
        Value::F32(v) => out.write_f32::<LE>(*v),
        Value::Bool(v) => out.write_u8(u8::from(*v)),
        Value::String(v) => write_str(out, v),
        Value::U64(v) => out.write_u64::<LE>(*v),
        Value::I64(v) => out.write_i64::<LE>(*v),
        Value::F64(v) => out.write_f64::<LE>(*v),
        Value::Array(array) => {
            out.write_u32::<LE>(array.element_type() as u32)?;
            out.write_u64::<LE>(array.len() as u64)?;
            write_array(out, array)
        }
    }
}

fn write_array(out: &mut Vec<u8>, array: &Array) -> io::Result<()> {
    match array {
        Array::U8(v) => out.write_all(v),
        Array::I8(v) => v.iter().try_for_each(|x| out.write_i8(*x)),
        Array::U16(v) => v.iter().try_for_each(|x| out.write_u16::<LE>(*x)),
        Array::I16(v) => v.iter().try_for_each(|x| out.write_i16::<LE>(*x)),
        Array::U32(v) => v.iter().try_for_each(|x| out.write_u32::<LE>(*x)),
        Array::I32(v) => v.iter().try_for_each(|x| out.write_i32::<LE>(*x)),
        Array::F32(v) => v.iter().try_for_each(|x| out.write_f32::<LE>(*x)),
        Array::Bool(v) => v.iter().try_for_each(|x| out.write_u8(u8::from(*x))),
        Array::String(v) => v.iter().try_for_each(|x| write_str(out, x)),
        Array::U64(v) => v.iter().try_for_each(|x| out.write_u64::<LE>(*x)),
        Array::I64(v) => v.iter().try_for_each(|x| out.write_i64::<LE>(*x)),
        Array::F64(v) => v.iter().try_for_each(|x| out.write_f64::<LE>(*x)),
    }
}

impl Value {
    /// Whether both are stored as the same bytes: of one type, NaN the same as itself, and 0 not as -0. Cost: a copy of both.
    pub fn is_stored_like(&self, other: &Value) -> bool {
        let encoded = |value: &Value| {
            let mut bytes = Vec::new();
            // Into a Vec nothing fails.
            write_value(&mut bytes, value).unwrap_or_default();
            bytes
        };
        self.value_type() == other.value_type() && encoded(self) == encoded(other)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::String(text)
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Self {
        Value::U32(n)
    }
}

impl From<f32> for Value {
    fn from(x: f32) -> Self {
        Value::F32(x)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Value::Bool(b)
    }
}
