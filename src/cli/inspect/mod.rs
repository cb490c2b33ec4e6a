//! `qvl inspect`: what a GGUF file holds.

mod diff;
mod verify;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use qvl::error::Result;
use qvl::gguf::{Array, Gguf, TensorInfo, Value};
use qvl::gguf_file::GgufFile;
use qvl::memory::human_bytes;
use qvl::quant::GgmlType;
use serde_json::{Map, json};

use super::args::InspectArgs;
use super::{print, print_json};
use verify::{Verified, verify};

/// Widest column of names, in characters.
const MAX_COLUMN: usize = 64;
/// Elements of an array that are shown.
const N_SHOWN: usize = 6;

/// Runs it. Two files that differ have an exit code of their own, as `diff` tells it.
pub fn run(args: &InspectArgs) -> Result<ExitCode> {
    match &args.other {
        Some(other) => diff::run(args, other),
        None => one(args).map(|()| ExitCode::SUCCESS),
    }
}

fn one(args: &InspectArgs) -> Result<()> {
    let file = GgufFile::open(&args.file)?;
    let verified = args.verify.then(|| verify(file.gguf(), &file)).transpose().map_err(|e| e.at(&args.file))?;
    if args.json { print_json(&as_json(&file, args, verified)) } else { print(&as_text(&file, args, verified)) }
}

/// (number of tensors, bytes) of each type.
fn by_type(gguf: &Gguf) -> BTreeMap<GgmlType, (usize, u64)> {
    let mut types = BTreeMap::new();
    for tensor in gguf.tensors() {
        let entry: &mut (usize, u64) = types.entry(tensor.ty).or_default();
        *entry = (entry.0 + 1, entry.1 + tensor.n_bytes);
    }
    types
}

fn as_text(file: &GgufFile, args: &InspectArgs, verified: Option<Verified>) -> String {
    let gguf = file.gguf();
    let parts = match file.parts().len() {
        1 => String::new(),
        n => format!(" in {n} files"),
    };
    let mut out = format!(
        "{}: GGUF version {}, {}{parts}, {} keys, {} tensors\n\nmetadata\n",
        args.file.display(),
        gguf.version(),
        human_bytes(file.n_bytes()),
        gguf.metadata().len(),
        gguf.tensors().len()
    );
    // Names are escaped and columns narrow: a hostile file's would reach the terminal, or pad every line by 64 KiB.
    let width = gguf.metadata().iter().map(|(key, _)| key.len()).max().unwrap_or(0).min(MAX_COLUMN);
    for (key, value) in gguf.metadata() {
        let _ = writeln!(out, "  {:width$}  {}", key.escape_debug().to_string(), shown(value));
    }
    out.push_str("\ntypes\n");
    for (ty, (n, bytes)) in by_type(gguf) {
        let _ = writeln!(out, "  {ty:6}  {n:5} tensors  {:>10}", human_bytes(bytes));
    }
    if args.tensors {
        let width = gguf.tensors().iter().map(|t| t.name.len()).max().unwrap_or(0);
        out.push_str("\ntensors (name, type, extents, bytes, offset)\n");
        for t in gguf.tensors() {
            let dims = extents(t);
            let name = t.name.escape_debug().to_string();
            let _ = writeln!(out, "  {name:width$}  {:6}  {dims:24}  {:>12}  {:>12}", t.ty.name(), t.n_bytes, t.offset);
        }
    }
    if let Some(Verified { checksum }) = verified {
        let _ = writeln!(out, "\nverified: the header is sound and every weight is finite; {}", checksum.text());
    }
    out
}

fn extents(tensor: &TensorInfo) -> String {
    tensor.dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ")
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(s) => format!("{s:?}"),
        Value::Array(array) => {
            let json = array_json(array, N_SHOWN);
            let more = if array.len() > N_SHOWN { format!(" .. ({} in all)", array.len()) } else { String::new() };
            format!("{json}{more}")
        }
        other => scalar_json(other).to_string(),
    }
}

fn as_json(file: &GgufFile, args: &InspectArgs, verified: Option<Verified>) -> serde_json::Value {
    let gguf = file.gguf();
    let metadata: Map<_, _> = gguf.metadata().iter().map(|(key, value)| (key.clone(), value_json(value))).collect();
    let types: Map<_, _> = by_type(gguf)
        .into_iter()
        .map(|(ty, (n, bytes))| (ty.name().to_owned(), json!({"tensors": n, "bytes": bytes})))
        .collect();
    let mut report = json!({
        "file": args.file.display().to_string(),
        "bytes": file.n_bytes(),
        "version": gguf.version(),
        "alignment": gguf.alignment(),
        "metadata": metadata,
        "n_tensors": gguf.tensors().len(),
        "types": types,
    });
    if args.tensors {
        let one = |t: &TensorInfo| json!({"name": t.name, "type": t.ty.name(), "dims": t.dims, "bytes": t.n_bytes, "offset": t.offset});
        report["tensors"] = gguf.tensors().iter().map(one).collect();
    }
    if let Some(Verified { checksum }) = verified {
        report["verified"] = true.into();
        report["checksum"] = checksum.name().into();
    }
    report
}

fn value_json(value: &Value) -> serde_json::Value {
    match value {
        // Vocabularies are long; their length and beginning tell what they are.
        Value::Array(a) if a.len() > 64 => json!({"length": a.len(), "first": array_json(a, N_SHOWN)}),
        Value::Array(a) => array_json(a, a.len()),
        other => scalar_json(other),
    }
}

fn scalar_json(value: &Value) -> serde_json::Value {
    match value {
        Value::F32(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::Bool(b) => json!(b),
        Value::String(s) => json!(s),
        Value::I8(n) => json!(n),
        Value::I16(n) => json!(n),
        Value::I32(n) => json!(n),
        Value::I64(n) => json!(n),
        other => json!(other.as_u64()),
    }
}

fn array_json(array: &Array, n: usize) -> serde_json::Value {
    match array {
        Array::U8(v) => json!(&v[..n.min(v.len())]),
        Array::I8(v) => json!(&v[..n.min(v.len())]),
        Array::U16(v) => json!(&v[..n.min(v.len())]),
        Array::I16(v) => json!(&v[..n.min(v.len())]),
        Array::U32(v) => json!(&v[..n.min(v.len())]),
        Array::I32(v) => json!(&v[..n.min(v.len())]),
        Array::F32(v) => json!(&v[..n.min(v.len())]),
        Array::Bool(v) => json!(&v[..n.min(v.len())]),
        Array::String(v) => json!(&v[..n.min(v.len())]),
        Array::U64(v) => json!(&v[..n.min(v.len())]),
        Array::I64(v) => json!(&v[..n.min(v.len())]),
        Array::F64(v) => json!(&v[..n.min(v.len())]),
    }
}
