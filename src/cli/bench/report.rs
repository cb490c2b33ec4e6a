//! A result: what `--json` prints, `-o` writes and `--compare` reads.

use std::fs::File;
use std::path::Path;

use qvl::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::read_text;
use super::machine::{Load, Machine, ModelFile};

/// Names the format. Another number: fields were taken away or mean something else.
pub const FORMAT: &str = "qvl-bench 1";

/// Everything that was measured, and what it depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: String,
    /// Of `qvl`.
    pub version: String,
    /// When it began, in seconds since 1970.
    pub unix_time: u64,
    /// Where.
    pub machine: Machine,
    /// What else ran there.
    pub load: Load,
    /// What makes the numbers worse than they could be, for people.
    pub warnings: Vec<String>,
    /// The files.
    pub model: Files,
    /// Everything else that decides how fast it is.
    pub settings: Map<String, Value>,
    /// Where the energy comes from, or why it is not told.
    pub energy: Energy,
    /// The most memory, in bytes, that the control group ever took, with whatever else is in it.
    pub control_group_peak_bytes: Option<u64>,
    /// What was measured.
    pub results: Vec<Row>,
}

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Files {
    /// The text model.
    pub text: ModelFile,
    /// The mmproj; `None` with `--text-only`.
    pub vision: Option<ModelFile>,
}

/// Where the energy comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Counters or sensors; `None` where the machine does not tell.
    pub source: Option<String>,
    /// Why it does not.
    pub reason: Option<String>,
}

/// One thing that was measured, once or several times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What ran: `question`, `prefill 512`, `decode 32 @ 512`.
    pub case: String,
    /// What of it: `load`, `first_token`, `speed`, `peak`, ..
    pub measure: String,
    /// Of the numbers.
    pub unit: Unit,
    /// The middle one, or the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// All, in their order.
    pub runs: Vec<f64>,
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Tokens a second.
    #[serde(rename = "tokens/s")]
    TokensPerSecond,
    /// Bytes.
    #[serde(rename = "bytes")]
    Bytes,
    /// Joules.
    #[serde(rename = "J")]
    Joules,
    /// Joules a token.
    #[serde(rename = "J/token")]
    JoulesPerToken,
}

impl Unit {
    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Milliseconds => "ms",
            Unit::TokensPerSecond => "tokens/s",
            Unit::Bytes => "bytes",
            Unit::Joules => "J",
            Unit::JoulesPerToken => "J/token",
        }
    }

    /// Whether a larger number is the better one.
    pub fn more_is_better(self) -> bool {
        self == Unit::TokensPerSecond
    }
}

impl Row {
    /// Of these runs, rounded to what can be measured; `None` if there are none.
    pub fn new(case: &str, measure: &str, unit: Unit, runs: &[f64]) -> Option<Row> {
        let runs: Vec<f64> = runs.iter().map(|x| (x * 1e4).round() / 1e4).collect();
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Row { case: case.to_owned(), measure: measure.to_owned(), unit, median, min, max, runs })
    }

    /// How far its runs are apart; `None` for a single one.
    pub fn spread(&self) -> Option<f64> {
        (self.runs.len() > 1).then_some(self.max - self.min)
    }

    /// Whether the numbers can be what they say they are.
    fn is_sound(&self) -> bool {
        let inside = |x: &f64| (self.min..=self.max).contains(x);
        self.min >= 0.0
            && self.max.is_finite()
            && !self.runs.is_empty()
            && self.runs.iter().all(inside)
            && inside(&self.median)
    }
}

impl Report {
    /// Reads what `-o` or `--json` wrote. Errors (kind usage): it cannot be read, or is nothing that they write.
    pub fn read(path: &Path) -> Result<Report> {
        let text = File::open(path).and_then(read_text);
        let text = text.map_err(|e| Error::usage("cannot read the result").because(e).at(path))?;
        Self::parse(&text).map_err(|e| e.at(path))
    }

    fn parse(text: &str) -> Result<Report> {
        let hint = "no result of qvl bench (--json or -o writes one)";
        let json: Value = serde_json::from_str(text).map_err(|e| Error::usage(hint).because(e))?;
        match json.get("format").and_then(Value::as_str) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(Error::usage(format!(
                    "a result of another version of qvl (format {other:?}, expected {FORMAT:?})"
                )));
            }
            None => return Err(Error::usage(hint)),
        }
        let report: Report =
            serde_json::from_value(json).map_err(|e| Error::usage("a damaged result of qvl bench").because(e))?;
        match report.results.iter().find(|row| !row.is_sound()) {
            Some(Row { case, measure, .. }) => {
                Err(Error::usage(format!("a damaged result of qvl bench: {case}, {measure} contradicts itself")))
            }
            None => Ok(report),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn median(runs: &[f64]) -> Option<(f64, f64, f64)> {
        Row::new("a", "b", Unit::Milliseconds, runs).map(|row| (row.min, row.median, row.max))
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some((3.0, 3.0, 3.0)));
        assert_eq!(median(&[5.0, 1.0, 2.0]), Some((1.0, 2.0, 5.0)));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some((1.0, 3.0, 9.0)));
        assert_eq!(Row::new("a", "b", Unit::Bytes, &[1.0]).and_then(|row| row.spread()), None);
        assert_eq!(Row::new("a", "b", Unit::Bytes, &[1.0, 4.0]).and_then(|row| row.spread()), Some(3.0));
    }

    #[test]
    fn rows_that_contradict_themselves_are_found() {
        let row = Row::new("a", "b", Unit::Bytes, &[1.0, 4.0]).expect("has runs");
        assert!(row.is_sound());
        assert!(!Row { median: 5.0, ..row.clone() }.is_sound());
        assert!(!Row { min: -1.0, ..row.clone() }.is_sound());
        assert!(!Row { runs: vec![], ..row.clone() }.is_sound());
        assert!(!Row { max: f64::NAN, ..row.clone() }.is_sound());
        assert!(!Row { max: 3.0, ..row }.is_sound());
    }

    #[test]
    fn other_files_are_refused() {
        for (text, part) in [
            ("", "no result"),
            ("{\"format\"", "no result"),
            ("[]", "no result"),
            ("{\"text\": \"an answer\"}", "no result"),
            ("{\"format\": \"qvl-bench 9\"}", "another version"),
            ("{\"format\": \"qvl-bench 1\"}", "damaged"),
        ] {
            let error = Report::parse(text).expect_err(text);
            assert_eq!(error.kind().exit_code(), 2);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
