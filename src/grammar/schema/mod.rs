//! JSON Schema → [`Grammar`].
//!
//! What the grammar lets through is JSON that fits the schema; it need not let everything through. So objects have the
//! properties that are named, in the schema's order, and others only where none is named. A keyword that would be
//! ignored is an error: an answer must not pass for more than it is.

mod numbers;

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use serde_json::{Map, Value};

use super::Grammar;
use crate::error::{Error, Result};

/// Largest schema in bytes.
const MAX_BYTES: usize = 1 << 20;
/// Most items or characters that can be counted: as many as a grammar repeats.
const MAX_COUNT: u64 = 2000;

/// Rules that all schemas share.
const SHARED: &str = include_str!("json.gbnf");

/// Keywords that say nothing about which values are allowed, or hold what others refer to.
const SILENT: [&str; 12] = [
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
];

/// Keywords that are followed.
const FOLLOWED: [&str; 22] = [
    "type",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "prefixItems",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "additionalItems",
];

/// The grammar of JSON that fits a schema.
///
/// Followed are: types (also several), `enum`, `const`, `anyOf`, `oneOf` (as `anyOf`), `allOf` of one, `$ref` inside the
/// schema (also to itself), `properties`, `required`, `additionalProperties`, `items`, `prefixItems`, `minItems`,
/// `maxItems`, `minLength`, `maxLength`, the formats date, time, date-time and uuid, and bounds of numbers.
///
/// Errors (kind usage) name the place: no JSON, no schema, a keyword that is not followed, a schema that nothing fits.
pub fn from_json_schema(text: &str) -> Result<Grammar> {
    if text.len() > MAX_BYTES {
        return Err(Error::usage(format!("the schema has {} bytes; at most {MAX_BYTES} are read", text.len())));
    }
    let schema: Value = serde_json::from_str(text).map_err(|e| Error::usage("the schema is no JSON").because(e))?;
    let grammar = Grammar::parse(&to_gbnf(&schema)?).map_err(|e| Error::usage("the schema is too large").because(e))?;
    match grammar.has_an_end() {
        true => Ok(grammar),
        false => Err(Error::usage("the schema requires itself without end: no finite JSON fits it")),
    }
}

/// The grammar's text.
fn to_gbnf(schema: &Value) -> Result<String> {
    let mut converter =
        Converter { schema, out: SHARED.to_owned(), n_rules: 0, refs: HashMap::new(), open: Vec::new() };
    let root = converter.referred("", "#")?;
    converter.rule("root", &root);
    while let Some((name, value, at)) = converter.open.pop() {
        let body = converter.value(value, &at)?;
        converter.rule(&name, &body);
    }
    Ok(converter.out)
}

struct Converter<'a> {
    schema: &'a Value,
    out: String,
    n_rules: usize,
    /// The rule of each place that was referred to.
    refs: HashMap<String, String>,
    /// Rules that are named already but not written: name, schema, place.
    open: Vec<(String, &'a Value, String)>,
}

impl<'a> Converter<'a> {
    /// Right-hand side of the schema at the place `at` (a JSON pointer, for messages).
    fn value(&mut self, value: &'a Value, at: &str) -> Result<String> {
        let schema = match value {
            Value::Bool(true) => return Ok("value".to_owned()),
            Value::Bool(false) => return Err(error(at, "nothing is allowed here")),
            Value::Object(schema) => schema,
            _ => return Err(error(at, "expected a schema (an object, true or false)")),
        };
        let mut keys = schema.keys().map(String::as_str).filter(|key| !SILENT.contains(key));
        if let Some(key) = keys.clone().find(|key| !FOLLOWED.contains(key)) {
            return Err(error(at, &format!("the keyword {key:?} is not supported")));
        }
        let alone = |key: &str| match keys.clone().find(|other| *other != key) {
            Some(other) => Err(error(at, &format!("{key:?} beside {other:?} is not supported"))),
            None => Ok(()),
        };
        for key in ["anyOf", "oneOf", "allOf"] {
            let Some(list) = schema.get(key) else { continue };
            alone(key)?;
            let list = list.as_array().filter(|list| !list.is_empty());
            let list = list.ok_or_else(|| error(at, &format!("{key:?}: expected an array of schemas")))?;
            if key == "allOf" && list.len() > 1 {
                return Err(error(at, "\"allOf\" of several schemas is not supported"));
            }
            return self.any_of(list, &below(at, key));
        }
        if let Some(pointer) = schema.get("$ref") {
            alone("$ref")?;
            let pointer = pointer.as_str().ok_or_else(|| error(at, "\"$ref\": expected a string"))?;
            return self.referred(at, pointer);
        }
        let types = types(schema, at)?;
        if let Some(key) = ["const", "enum"].into_iter().find(|key| schema.contains_key(*key)) {
            if let Some(other) = keys.find(|other| *other != key && *other != "type") {
                return Err(error(at, &format!("{key:?} beside {other:?} is not supported")));
            }
            return constants(schema, key, types.as_deref(), at);
        }
        let Some(types) = types.or_else(|| implied_type(schema)) else { return Ok("value".to_owned()) };
        let bodies = types.into_iter().map(|ty| self.typed(ty, schema, at)).collect::<Result<Vec<_>>>()?;
        Ok(bodies.join(" | "))
    }

    fn any_of(&mut self, list: &'a [Value], at: &str) -> Result<String> {
        let one = |(i, value): (usize, &'a Value)| self.sub(value, &below(at, &i.to_string()));
        Ok(list.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?.join(" | "))
    }

    /// The rule of a place in this schema.
    fn referred(&mut self, at: &str, pointer: &str) -> Result<String> {
        let no_such = || error(at, &format!("\"$ref\": there is no {pointer:.100?} in this schema"));
        if let Some(name) = self.refs.get(pointer) {
            return Ok(name.clone());
        }
        let path = pointer.strip_prefix('#').ok_or_else(no_such)?;
        let target = self.schema.pointer(path).ok_or_else(no_such)?;
        let name = self.name();
        self.refs.insert(pointer.to_owned(), name.clone());
        self.open.push((name.clone(), target, path.chars().take(200).collect()));
        Ok(name)
    }

    /// A schema inside of one, as a rule of its own. Recurses as deep as the JSON nests, which its parser limits.
    fn sub(&mut self, value: &'a Value, at: &str) -> Result<String> {
        let body = self.value(value, at)?;
        let name = self.name();
        self.rule(&name, &body);
        Ok(name)
    }

    fn typed(&mut self, ty: &str, schema: &'a Map<String, Value>, at: &str) -> Result<String> {
        match ty {
            "object" => self.object(schema, at),
            "array" => self.array(schema, at),
            "string" => string(schema, at),
            "integer" => numbers::integer(schema, at),
            "number" => numbers::number(schema, at),
            "boolean" | "null" => Ok(ty.to_owned()),
            other => Err(error(at, &format!("\"type\": there is no {other:.40?}"))),
        }
    }

    fn object(&mut self, schema: &'a Map<String, Value>, at: &str) -> Result<String> {
        let properties = match schema.get("properties") {
            None => None,
            Some(value) => Some(value.as_object().ok_or_else(|| error(at, "\"properties\": expected an object"))?),
        };
        let required = strings(schema, "required", at)?;
        let others = match schema.get("additionalProperties") {
            None | Some(Value::Bool(true)) => Some("value".to_owned()),
            Some(Value::Bool(false)) => None,
            Some(other) => Some(self.sub(other, &below(at, "additionalProperties"))?),
        };
        let mut members = Vec::new();
        let mut missing: HashSet<&str> = required.iter().copied().collect();
        for (key, value) in properties.into_iter().flatten() {
            let rule = self.sub(value, &below(&below(at, "properties"), key))?;
            members.push((key.as_str(), rule, missing.remove(key.as_str())));
        }
        for key in required {
            if missing.remove(key) {
                let rule = others.clone();
                let rule = rule.ok_or_else(|| error(at, &format!("{key:?} is required but not allowed")))?;
                members.push((key, rule, true));
            }
        }
        if members.is_empty() {
            let free = properties.is_none().then_some(others).flatten();
            let member = free.map(|value| format!("string \":\" ws {value}"));
            let members = member.map(|m| format!("({m} (\",\" ws {m})* ws)?")).unwrap_or_default();
            return Ok(format!("\"{{\" ws {members} \"}}\""));
        }
        Ok(format!("\"{{\" ws {} ws \"}}\"", self.members(&members)))
    }

    /// The members of an object from each on, where some came before and where none did: two rules a member, so that
    /// commas are right whichever optional ones are there.
    fn members(&mut self, members: &[(&str, String, bool)]) -> String {
        let (mut first, mut more) = (None::<String>, None::<String>);
        for (key, value, is_required) in members.iter().rev() {
            let member = format!("{} \":\" ws {value}", literal(&Value::from(*key).to_string()));
            let then = more.take().unwrap_or_default();
            let (as_first, as_more) = (self.name(), self.name());
            let (or_first, optional) = match is_required {
                true => (String::new(), ""),
                false => (format!(" | {}", first.take().unwrap_or("\"\"".to_owned())), "?"),
            };
            self.rule(&as_first, &format!("{member} {then}{or_first}"));
            self.rule(&as_more, &format!("(\",\" ws {member}){optional} {then}"));
            (first, more) = (Some(as_first), Some(as_more));
        }
        first.unwrap_or_default()
    }

    fn array(&mut self, schema: &'a Map<String, Value>, at: &str) -> Result<String> {
        let min = count(schema, "minItems", at)?.unwrap_or(0);
        let max = count(schema, "maxItems", at)?;
        if max.is_some_and(|max| max < min) {
            return Err(error(at, "\"maxItems\" is below \"minItems\""));
        }
        let tuple = schema.get("prefixItems").or(schema.get("items").filter(|items| items.is_array()));
        if let Some(tuple) = tuple {
            let tuple = tuple.as_array().ok_or_else(|| error(at, "\"prefixItems\": expected an array of schemas"))?;
            let n = tuple.len() as u64;
            if min > n || max.is_some_and(|max| max < n) {
                return Err(error(at, &format!("other numbers of items than the {n} that are named")));
            }
            let one =
                |(i, value): (usize, &'a Value)| self.sub(value, &below(&below(at, "prefixItems"), &i.to_string()));
            let items = tuple.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
            return Ok(format!("\"[\" ws {} ws \"]\"", items.join(" \",\" ws ")));
        }
        let item = match schema.get("items") {
            Some(Value::Bool(false)) => return Ok("\"[\" ws \"]\"".to_owned()),
            Some(items) => self.sub(items, &below(at, "items"))?,
            None => "value".to_owned(),
        };
        if max == Some(0) {
            return Ok("\"[\" ws \"]\"".to_owned());
        }
        let more = max.map_or(String::new(), |max| (max - 1).to_string());
        let items = format!("{item} (\",\" ws {item}){{{},{more}}} ws", min.saturating_sub(1));
        let items = if min == 0 { format!("({items})?") } else { items };
        Ok(format!("\"[\" ws {items} \"]\""))
    }

    fn name(&mut self) -> String {
        self.n_rules += 1;
        format!("s{}", self.n_rules)
    }

    fn rule(&mut self, name: &str, body: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "{name} ::= {body}");
    }
}

/// The types that a schema names, if it does.
fn types<'a>(schema: &'a Map<String, Value>, at: &str) -> Result<Option<Vec<&'a str>>> {
    match schema.get("type") {
        None => Ok(None),
        Some(Value::String(one)) => Ok(Some(vec![one])),
        Some(Value::Array(list)) if !list.is_empty() => Ok(Some(strings(schema, "type", at)?)),
        Some(_) => Err(error(at, "\"type\": expected a name or an array of names")),
    }
}

/// The type that keywords are about where none is named.
fn implied_type(schema: &Map<String, Value>) -> Option<Vec<&'static str>> {
    let about = |keys: &[&str]| keys.iter().any(|key| schema.contains_key(*key));
    let ty = match () {
        () if about(&["properties", "required", "additionalProperties"]) => "object",
        () if about(&["items", "prefixItems", "minItems", "maxItems"]) => "array",
        () if about(&["minLength", "maxLength", "format"]) => "string",
        () if about(&["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]) => "number",
        () => return None,
    };
    Some(vec![ty])
}

/// The values of `enum` or `const` that are of these types.
fn constants(schema: &Map<String, Value>, key: &str, types: Option<&[&str]>, at: &str) -> Result<String> {
    let value = &schema[key];
    let list = match (key, value) {
        ("const", value) => std::slice::from_ref(value),
        (_, Value::Array(list)) => list,
        _ => return Err(error(at, "\"enum\": expected an array")),
    };
    let is = |value: &Value, ty: &str| match ty {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    };
    let fits = |value: &&Value| types.is_none_or(|types| types.iter().any(|ty| is(value, ty)));
    let literals: Vec<String> = list.iter().filter(fits).map(|value| literal(&value.to_string())).collect();
    match literals.is_empty() {
        true => Err(error(at, &format!("{key:?}: there is no value of the type"))),
        false => Ok(literals.join(" | ")),
    }
}

fn string(schema: &Map<String, Value>, at: &str) -> Result<String> {
    let (min, max) = (count(schema, "minLength", at)?, count(schema, "maxLength", at)?);
    if let Some(format) = schema.get("format") {
        if min.is_some() || max.is_some() {
            return Err(error(at, "\"format\" beside a length is not supported"));
        }
        return match format.as_str() {
            Some(name @ ("date" | "time" | "uuid")) => Ok(format!("\"\\\"\" {name} \"\\\"\"")),
            Some("date-time") => Ok("\"\\\"\" date \"T\" time \"\\\"\"".to_owned()),
            _ => Err(error(at, &format!("the format {format:.60} is not supported (date, time, date-time, uuid are)"))),
        };
    }
    if max.is_some_and(|max| max < min.unwrap_or(0)) {
        return Err(error(at, "\"maxLength\" is below \"minLength\""));
    }
    Ok(match (min, max) {
        (None, None) => "string".to_owned(),
        (min, max) => {
            let max = max.map_or(String::new(), |max| max.to_string());
            format!("\"\\\"\" char{{{},{max}}} \"\\\"\"", min.unwrap_or(0))
        }
    })
}

/// A number of items or characters.
fn count(schema: &Map<String, Value>, key: &str, at: &str) -> Result<Option<u64>> {
    let Some(value) = schema.get(key) else { return Ok(None) };
    let count = value.as_u64().filter(|n| *n <= MAX_COUNT);
    let expected = || error(at, &format!("{key:?}: expected a whole number from 0 to {MAX_COUNT}, found {value:.40}"));
    count.map(Some).ok_or_else(expected)
}

/// The strings in an array.
fn strings<'a>(schema: &'a Map<String, Value>, key: &str, at: &str) -> Result<Vec<&'a str>> {
    let Some(value) = schema.get(key) else { return Ok(Vec::new()) };
    let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    list.ok_or_else(|| error(at, &format!("{key:?}: expected an array of strings")))
}

/// A literal of GBNF. JSON has escaped control characters already.
fn literal(json: &str) -> String {
    format!("\"{}\"", json.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A place inside of `at`. Only messages show it, so it stops growing where it is too long to be read.
fn below(at: &str, key: &str) -> String {
    if at.len() > 200 { at.to_owned() } else { format!("{at}/{key:.60}") }
}

fn error(at: &str, message: &str) -> Error {
    let at = if at.is_empty() { "at the top".to_owned() } else { format!("at {at:.200}") };
    Error::usage(format!("the schema cannot be followed {at}: {message}"))
}
