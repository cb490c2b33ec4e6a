//! Reads fields of a checkpoint's JSON files, each proven to be of the kind and within the range that is expected.

use std::ops::RangeInclusive;
use std::path::Path;

use qvl::error::{Error, Result};
use serde_json::{Map, Value};

use crate::checkpoint;

/// Larger JSON files than this (bytes) are not configurations or shard indices.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// A JSON object and where it stands, for messages. A field that is `null` counts as absent.
pub struct Fields {
    map: Map<String, Value>,
    place: String,
}

impl Fields {
    /// Reads the object in file `path`. Errors (kind model): missing, a git-lfs pointer, not JSON, not an object.
    pub fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| Error::model("cannot open the file").because(e).at(path))?.len();
        if size > MAX_JSON_BYTES {
            return Err(Error::model(format!("{size} bytes are too many for a JSON file of a checkpoint")).at(path));
        }
        let text = std::fs::read(path).map_err(|e| Error::model("cannot read the file").because(e).at(path))?;
        checkpoint::refuse_lfs_pointer(&text, path)?;
        match serde_json::from_slice(&text) {
            Ok(Value::Object(map)) => Ok(Fields { map, place: path.display().to_string() }),
            Ok(_) => Err(Error::model("expected a JSON object").at(path)),
            Err(e) => Err(Error::model("not valid JSON").because(e).at(path)),
        }
    }

    /// As [`read`](Self::read), from memory; `place` stands for the path in messages.
    #[cfg(test)]
    pub fn parse(text: &str, place: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Fields { map, place: place.to_owned() }),
            _ => Err(Error::model(format!("{place}: expected a JSON object"))),
        }
    }

    /// An object without fields: what a missing optional file says.
    pub fn empty() -> Self {
        Fields { map: Map::new(), place: String::new() }
    }

    /// The raw value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The object under `key`.
    pub fn object(&self, key: &str) -> Result<Option<Fields>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map: map.clone(), place: format!("{}: {key}", self.place) })),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// The object's keys, those with `null` left out.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str())
    }

    /// The object's entries, consumed.
    pub fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// A required integer within `range`.
    pub fn count(&self, key: &str, range: RangeInclusive<u64>) -> Result<u64> {
        let value = self.get(key).ok_or_else(|| self.error(format!("{key} is missing")))?;
        let found = value.as_u64().filter(|n| range.contains(n));
        found.ok_or_else(|| self.wrong(key, value, &format!("an integer from {} to {}", range.start(), range.end())))
    }

    /// An integer within `range`, or `default` when absent.
    pub fn count_or(&self, key: &str, default: u64, range: RangeInclusive<u64>) -> Result<u64> {
        if self.get(key).is_none() { Ok(default) } else { self.count(key, range) }
    }

    /// A number within `range`, or `default` when absent.
    pub fn number_or(&self, key: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let found = value.as_f64().filter(|x| range.contains(x));
        found.ok_or_else(|| self.wrong(key, value, &format!("a number from {} to {}", range.start(), range.end())))
    }

    /// A truth value, or `default` when absent.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false")),
        }
    }

    /// A string, if present.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a string")),
        }
    }

    /// An error (kind model) about this object.
    pub fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::model(format!("{}: {message}", self.place))
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> Error {
        let shown: String = found.to_string().chars().take(60).collect();
        self.error(format!("{key} is {shown} (expected {expected})"))
    }
}
