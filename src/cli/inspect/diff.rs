//! `qvl inspect --diff`: in what two GGUF files differ.
//!
//! Files are equal when keys, values, tensors and their bytes are; order, padding and version are not looked at.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use qvl::error::Result;
use qvl::gguf::{Gguf, TensorInfo, Value};
use qvl::gguf_file::GgufFile;
use qvl::quality::relative_l2;
use serde_json::json;

use super::super::args::InspectArgs;
use super::super::batch::go_on;
use super::super::{print, print_json};
use super::{array_json, extents, shown, value_json};

/// Exit code of files that differ; `diff` and `cmp` have the same.
const DIFFERENT: u8 = 1;

/// What the first file has under a name, and what the second has; at least one has something.
type Sides<T> = [Option<T>; 2];

/// All in which two files differ, in the order of the first one, what only the second has behind it.
struct Difference<'a> {
    keys: Vec<(&'a str, Sides<&'a Value>)>,
    n_equal_keys: usize,
    tensors: Vec<TensorDifference<'a>>,
    n_equal_tensors: usize,
}

struct TensorDifference<'a> {
    name: &'a str,
    sides: Sides<&'a TensorInfo>,
    /// Of the second against the first, where both hold as many weights.
    relative_l2: Option<f64>,
}

/// Compares the file of the arguments with `other`. Cost: one pass over both, without copies.
pub fn run(args: &InspectArgs, other: &Path) -> Result<ExitCode> {
    let paths = [args.file.as_path(), other];
    let files = [GgufFile::open(paths[0])?, GgufFile::open(paths[1])?];
    let difference = Difference::new(files.each_ref().map(GgufFile::gguf), [&files[0], &files[1]])?;
    if args.json {
        print_json(&difference.json(paths))?
    } else {
        print(&difference.text(paths))?
    }
    Ok(if difference.is_none() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

impl<'a> Difference<'a> {
    fn new(ggufs: [&'a Gguf; 2], files: [&[u8]; 2]) -> Result<Self> {
        let names = union(ggufs.map(|gguf| gguf.metadata().iter().map(|(key, _)| key.as_str())));
        let n_names = names.len();
        let is_equal = |sides: &Sides<&Value>| matches!(sides, [Some(a), Some(b)] if a.is_stored_like(b));
        let keys = names.into_iter().map(|key| (key, ggufs.map(|gguf| gguf.get(key))));
        let keys: Vec<_> = keys.filter(|(_, sides)| !is_equal(sides)).collect();
        let n_equal_keys = n_names - keys.len();

        let (mut tensors, mut n_equal_tensors) = (Vec::new(), 0);
        for name in union(ggufs.map(|gguf| gguf.tensors().iter().map(|t| t.name.as_str()))) {
            go_on()?;
            let sides = ggufs.map(|gguf| gguf.tensor(name));
            let relative_l2 = match sides {
                [Some(a), Some(b)] if (a.ty, &a.dims, a.bytes(files[0])) == (b.ty, &b.dims, b.bytes(files[1])) => {
                    n_equal_tensors += 1;
                    continue;
                }
                [Some(a), Some(b)] => relative_l2((a, files[0]), (b, files[1])),
                _ => None,
            };
            tensors.push(TensorDifference { name, sides, relative_l2 });
        }
        Ok(Difference { keys, n_equal_keys, tensors, n_equal_tensors })
    }

    fn is_none(&self) -> bool {
        self.keys.is_empty() && self.tensors.is_empty()
    }

    /// Lines that begin with `-` are the first file's, with `+` the second's, with `~` both's.
    fn text(&self, paths: [&Path; 2]) -> String {
        if self.is_none() {
            return format!("equal: {} keys, {} tensors\n", self.n_equal_keys, self.n_equal_tensors);
        }
        let mut out = format!("--- {}\n+++ {}\n", paths[0].display(), paths[1].display());
        for (key, sides) in &self.keys {
            for (sign, value) in ['-', '+'].into_iter().zip(sides) {
                if let Some(value) = value {
                    let note = key_note(*sides).unwrap_or_default();
                    let _ = writeln!(out, "{sign} {}  {}{note}", key.escape_debug(), shown(value));
                }
            }
        }
        for t in &self.tensors {
            let name = t.name.escape_debug();
            let _ = match t.sides {
                [Some(a), Some(b)] => writeln!(out, "~ {name}  {}{}", change(a, b), distance(t.relative_l2)),
                [a, b] => {
                    let sign = if a.is_some() { '-' } else { '+' };
                    let what = a.or(b).map(|t| format!("{}  {}", t.ty, extents(t)));
                    writeln!(out, "{sign} {name}  {}", what.unwrap_or_default())
                }
            };
        }
        let counts = [
            counts("keys", self.keys.iter().map(|(_, sides)| sides.map(|side| side.is_some())), self.n_equal_keys),
            counts("tensors", self.tensors.iter().map(|t| t.sides.map(|side| side.is_some())), self.n_equal_tensors),
        ];
        out + "\n" + &counts.concat()
    }

    fn json(&self, paths: [&Path; 2]) -> serde_json::Value {
        let sided = |json: &mut serde_json::Value, sides: Sides<serde_json::Value>| {
            for (name, side) in ["a", "b"].into_iter().zip(sides) {
                if let Some(side) = side {
                    json[name] = side;
                }
            }
        };
        let key = |(key, sides): &(&str, Sides<&Value>)| {
            let mut json = json!({"key": key});
            sided(&mut json, sides.map(|side| side.map(|v| json!({"type": type_name(v), "value": value_json(v)}))));
            json
        };
        let tensor = |t: &TensorDifference| {
            let mut json = json!({"name": t.name});
            sided(&mut json, t.sides.map(|side| side.map(|t| json!({"type": t.ty.name(), "dims": t.dims}))));
            if let [Some(_), Some(_)] = t.sides {
                json["relative_l2"] = json!(t.relative_l2);
            }
            json
        };
        json!({
            "a": paths[0].display().to_string(),
            "b": paths[1].display().to_string(),
            "equal": self.is_none(),
            "metadata": self.keys.iter().map(key).collect::<Vec<_>>(),
            "n_equal_keys": self.n_equal_keys,
            "tensors": self.tensors.iter().map(tensor).collect::<Vec<_>>(),
            "n_equal_tensors": self.n_equal_tensors,
        })
    }
}

/// Names of both files, each once.
fn union<'a>(names: [impl Iterator<Item = &'a str>; 2]) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    names.into_iter().flatten().filter(|name| seen.insert(*name)).collect()
}

/// What two values do not show by themselves: their types, or where long arrays begin to differ.
fn key_note(sides: Sides<&Value>) -> Option<String> {
    let [Some(a), Some(b)] = sides else { return None };
    match (a, b) {
        _ if type_name(a) != type_name(b) => Some(format!("  ({} and {})", type_name(a), type_name(b))),
        (Value::Array(a), Value::Array(b)) => {
            let (a, b) = (array_json(a, a.len()), array_json(b, b.len()));
            let at = a.as_array()?.iter().zip(b.as_array()?).position(|(a, b)| a != b)?;
            Some(format!("  (from element {at} on)"))
        }
        _ => None,
    }
}

fn type_name(value: &Value) -> String {
    let name = match value {
        Value::Array(array) => format!("array of {:?}", array.element_type()),
        other => format!("{:?}", other.value_type()),
    };
    name.to_lowercase()
}

fn change(a: &TensorInfo, b: &TensorInfo) -> String {
    let arrow = |a: String, b: String| if a == b { a } else { format!("{a} -> {b}") };
    format!("{}  {}", arrow(a.ty.to_string(), b.ty.to_string()), arrow(extents(a), extents(b)))
}

fn distance(relative_l2: Option<f64>) -> String {
    match relative_l2 {
        None => String::new(),
        Some(x) if !x.is_finite() => "  relative L2 not finite".to_owned(),
        Some(x) if x > 0.0 && x < 1e-4 => format!("  relative L2 {x:.2e}"),
        Some(x) => format!("  relative L2 {x:.6}"),
    }
}

fn counts(of: &str, differing: impl Iterator<Item = [bool; 2]>, n_equal: usize) -> String {
    let mut n = [0; 3];
    differing.for_each(|sides| n[if sides == [true; 2] { 2 } else { usize::from(sides[1]) }] += 1);
    format!("{of}: {} only in the first, {} only in the second, {} differ, {n_equal} are equal\n", n[0], n[1], n[2])
}
