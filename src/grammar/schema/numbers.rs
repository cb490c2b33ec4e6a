//! Numbers between bounds, digit by digit.

use serde_json::{Map, Value};

use super::error;
use crate::error::Result;

/// Largest magnitude of a bound: every whole number up to it is an f64.
const MAX_BOUND: f64 = 1e15;
/// Largest magnitude of a number without a bound: 16 digits.
const MAX: i64 = 9_999_999_999_999_999;

/// Right-hand side of a whole number.
pub(super) fn integer(schema: &Map<String, Value>, at: &str) -> Result<String> {
    let low =
        [bound(schema, "minimum", at)?.map(f64::ceil), bound(schema, "exclusiveMinimum", at)?.map(|x| x.floor() + 1.0)];
    let high =
        [bound(schema, "maximum", at)?.map(f64::floor), bound(schema, "exclusiveMaximum", at)?.map(|x| x.ceil() - 1.0)];
    let low = low.into_iter().flatten().reduce(f64::max).map(|x| x as i64);
    let high = high.into_iter().flatten().reduce(f64::min).map(|x| x as i64);
    if (low, high) == (None, None) {
        return Ok("integer".to_owned());
    }
    let (low, high) = (low.unwrap_or(-MAX), high.unwrap_or(MAX));
    if low > high {
        return Err(error(at, "no integer is between the bounds"));
    }
    Ok(signed(low, high, naturals))
}

/// Right-hand side of a number. Bounds must be whole.
pub(super) fn number(schema: &Map<String, Value>, at: &str) -> Result<String> {
    for key in ["exclusiveMinimum", "exclusiveMaximum"] {
        if schema.contains_key(key) {
            return Err(error(at, &format!("{key:?} of numbers that are no integers is not supported")));
        }
    }
    let whole = |key: &str| match bound(schema, key, at)? {
        Some(x) if x.fract() != 0.0 => Err(error(at, &format!("{key:?} of a number: only whole bounds are supported"))),
        other => Ok(other.map(|x| x as i64)),
    };
    let (low, high) = (whole("minimum")?, whole("maximum")?);
    if (low, high) == (None, None) {
        return Ok("number".to_owned());
    }
    let (low, high) = (low.unwrap_or(-MAX), high.unwrap_or(MAX));
    if low > high {
        return Err(error(at, "no number is between the bounds"));
    }
    // Everything from a whole number up to the next begins with it.
    let decimals = |low: i64, high: i64| match low < high {
        true => format!("{} (\".\" [0-9]{{1,6}})? | {}", naturals(low, high - 1), naturals(high, high)),
        false => naturals(low, high),
    };
    Ok(signed(low, high, decimals))
}

fn bound(schema: &Map<String, Value>, key: &str, at: &str) -> Result<Option<f64>> {
    let Some(value) = schema.get(key) else { return Ok(None) };
    let bound = value.as_f64().filter(|x| x.abs() <= MAX_BOUND);
    bound.map(Some).ok_or_else(|| error(at, &format!("{key:?}: expected a number up to 1e15, found {value:.40}")))
}

/// `low..=high` from what writes numbers that are not negative.
fn signed(low: i64, high: i64, unsigned: impl Fn(i64, i64) -> String) -> String {
    let mut parts = Vec::new();
    if low < 0 {
        parts.push(format!("\"-\" ({})", unsigned((-high).max(0), -low)));
    }
    if high >= 0 {
        parts.push(unsigned(low.max(0), high));
    }
    parts.join(" | ")
}

/// Alternatives, one group a number of digits, of the whole numbers `low..=high`, which are not negative.
fn naturals(low: i64, high: i64) -> String {
    let n_digits = |x: i64| x.checked_ilog10().map_or(1, |n| n + 1);
    let of_length = |n: u32| {
        let least = if n == 1 { 0 } else { 10i64.pow(n - 1) };
        same_length(&low.max(least).to_string(), &high.min(10i64.pow(n) - 1).to_string())
    };
    let parts: Vec<String> = (n_digits(low)..=n_digits(high)).map(of_length).collect();
    format!("({})", parts.join(" | "))
}

/// The digit strings between two of one length.
fn same_length(low: &str, high: &str) -> String {
    let (Some(a), Some(b)) = (low.chars().next(), high.chars().next()) else { return String::new() };
    let (low, high) = (&low[1..], &high[1..]);
    let any = |n: usize| if n == 0 { String::new() } else { format!(" [0-9]{{{n}}}") };
    if low.bytes().all(|d| d == b'0') && high.bytes().all(|d| d == b'9') {
        return format!("[{a}-{b}]{}", any(low.len()));
    }
    if a == b {
        return format!("\"{a}\" {}", same_length(low, high));
    }
    let between = |a: char, by: i32| char::from((a as i32 + by) as u8);
    let mut parts = vec![format!("\"{a}\" {}", same_length(low, &"9".repeat(low.len())))];
    if between(a, 1) < b {
        parts.push(format!("[{}-{}]{}", between(a, 1), between(b, -1), any(low.len())));
    }
    parts.push(format!("\"{b}\" {}", same_length(&"0".repeat(high.len()), high)));
    format!("({})", parts.join(" | "))
}
