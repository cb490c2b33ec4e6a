//! Two results side by side.

use std::fmt::Write;

use qvl::error::{Error, Result};
use serde_json::{Map, Value, json};

use super::machine::ModelFile;
use super::report::{Files, Report, Row};
use super::show;
use crate::cli::table::{Side, Table};

/// Two results, line by line.
pub struct Comparison {
    lines: Vec<Line>,
    /// Other differences between the two that one should know.
    notes: Vec<String>,
}

/// The same thing measured twice.
struct Line {
    row: Row,
    old: f64,
    /// New by old; `None` if the old one is zero.
    ratio: Option<f64>,
    verdict: Verdict,
}

/// What became of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The medians are apart by no more than the runs of one of the two.
    Same,
    /// They are apart by more, to the better.
    Better,
    /// To the worse.
    Worse,
    /// One run each: there is no spread to hold it against.
    Unknown,
}

impl Verdict {
    fn of(old: &Row, new: &Row) -> Verdict {
        // f64::max ignores a spread that is unknown.
        let spread = old.spread().unwrap_or(f64::NAN).max(new.spread().unwrap_or(f64::NAN));
        let difference = new.median - old.median;
        match difference > 0.0 {
            _ if difference == 0.0 => Verdict::Same,
            _ if spread.is_nan() => Verdict::Unknown,
            _ if difference.abs() <= spread => Verdict::Same,
            more if more == new.unit.more_is_better() => Verdict::Better,
            _ => Verdict::Worse,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Verdict::Same => "same",
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::Unknown => "unknown",
        }
    }
}

/// Proves that numbers of these models and settings can be held against those of `old`. Errors (kind usage): what differs.
pub fn check(old: &Report, files: &Files, settings: &Map<String, Value>) -> Result<()> {
    let list = differences(old, files, settings).join("; ");
    if list.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "these results are not of the same model and settings ({list}); --force compares them all the same"
    )))
}

/// What decides about speed and is not the same, for people.
fn differences(old: &Report, files: &Files, settings: &Map<String, Value>) -> Vec<String> {
    let mut different = Vec::new();
    let pairs = [
        ("text", Some(&old.model.text), Some(&files.text)),
        ("vision", old.model.vision.as_ref(), files.vision.as_ref()),
    ];
    for (what, a, b) in pairs {
        let of = |file: Option<&ModelFile>| match file {
            Some(file) => format!("{} {} of {} bytes", file.name, file.ty, file.bytes),
            None => "none".to_owned(),
        };
        if a.map(|f| &f.id) != b.map(|f| &f.id) {
            different.push(format!("{what}: {}, now {}", of(a), of(b)));
        }
    }
    let mut keys: Vec<&String> = old.settings.keys().chain(settings.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let (a, b) = (old.settings.get(key).unwrap_or(&Value::Null), settings.get(key).unwrap_or(&Value::Null));
        if a != b {
            different.push(format!("{}: {a}, now {b}", key.replace('_', " ")));
        }
    }
    different
}

impl Comparison {
    /// Of what both have. Errors (kind usage): they have nothing in common.
    pub fn new(old: &Report, new: &Report) -> Result<Comparison> {
        let same = |a: &Row, b: &Row| (&a.case, &a.measure, a.unit) == (&b.case, &b.measure, b.unit);
        let line = |row: &Row| {
            let before = old.results.iter().find(|other| same(other, row))?;
            let ratio = (before.median > 0.0).then(|| row.median / before.median);
            Some(Line { row: row.clone(), old: before.median, ratio, verdict: Verdict::of(before, row) })
        };
        let lines: Vec<Line> = new.results.iter().filter_map(line).collect();
        if lines.is_empty() {
            return Err(Error::usage("the two results have measured nothing in common; see -p, -n and -d"));
        }
        let mut notes = differences(old, &new.model, &new.settings);
        let only = |a: &Report, b: &Report| {
            let mut cases: Vec<&str> = a.results.iter().map(|row| row.case.as_str()).collect();
            cases.retain(|case| b.results.iter().all(|row| row.case != *case));
            cases.dedup();
            cases.join(", ")
        };
        for (which, list) in [("old", only(old, new)), ("new", only(new, old))] {
            if !list.is_empty() {
                notes.push(format!("only the {which} result has: {list}"));
            }
        }
        if old.machine != new.machine {
            let [a, b] = [old, new].map(|report| show::machine(&report.machine));
            notes.push(if a == b {
                "the builds use other SIMD".to_owned()
            } else {
                format!("the machines differ: {a}, now {b}")
            });
        }
        if old.version != new.version {
            notes.push(format!("qvl {}, now {}", old.version, new.version));
        }
        for (which, report) in [("old", old), ("new", new)] {
            notes.extend(report.warnings.iter().map(|warning| format!("{which}: {warning}")));
        }
        if lines.iter().any(|line| line.verdict == Verdict::Unknown) {
            notes.push("lines of one run each have no spread and are not judged".to_owned());
        }
        Ok(Comparison { lines, notes })
    }

    fn table(&self) -> Table {
        let row = |line: &Line| {
            let Line { row, old, verdict, .. } = line;
            let mark = if matches!(verdict, Verdict::Better | Verdict::Worse) { verdict.name() } else { "" };
            let ratio = line.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
            let numbers = [*old, row.median].map(|x| show::number(x, row.unit));
            let [old, new] = numbers;
            vec![row.case.clone(), show::measure(row), old, new, ratio, mark.to_owned()]
        };
        let columns = vec![
            ("case", Side::Left),
            ("measure", Side::Left),
            ("old", Side::Right),
            ("new", Side::Right),
            ("ratio", Side::Right),
            ("", Side::Left),
        ];
        let shown = self.lines.iter().filter(|line| line.old > 0.0 || line.row.median > 0.0);
        Table { columns, rows: shown.map(row).collect() }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = self.table().text();
        out.push('\n');
        out.push_str("ratio: new by old. better, worse: the medians are apart by more than the runs of either.\n");
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        out
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let notes = self.notes.iter().map(|note| format!("- {note}\n")).collect::<String>();
        let between = if notes.is_empty() { "" } else { "\n" };
        format!("{}{between}{notes}", self.table().markdown())
    }

    /// Every line as CSV, numbers in full.
    pub fn csv(&self) -> String {
        let row = |line: &Line| {
            let Line { row, old, ratio, verdict } = line;
            let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.4}"));
            let (case, measure, unit) = (row.case.clone(), row.measure.clone(), row.unit.name().to_owned());
            vec![case, measure, unit, old.to_string(), row.median.to_string(), ratio, verdict.name().to_owned()]
        };
        let columns = ["case", "measure", "unit", "old", "new", "ratio", "verdict"].map(|name| (name, Side::Left));
        Table { columns: columns.to_vec(), rows: self.lines.iter().map(row).collect() }.csv()
    }

    /// As one JSON object.
    pub fn json(&self) -> Value {
        let line = |line: &Line| {
            let Line { row, old, ratio, verdict } = line;
            json!({
                "case": row.case,
                "measure": row.measure,
                "unit": row.unit.name(),
                "old": old,
                "new": row.median,
                "ratio": ratio,
                "verdict": verdict.name(),
            })
        };
        json!({"comparison": self.lines.iter().map(line).collect::<Vec<_>>(), "notes": self.notes})
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Unit;
    use super::*;

    fn row(unit: Unit, runs: &[f64]) -> Row {
        Row::new("a", "b", unit, runs).expect("has runs")
    }

    #[test]
    fn only_more_than_the_spread_counts() {
        let check = |unit, old: &[f64], new: &[f64], expect| {
            assert_eq!(Verdict::of(&row(unit, old), &row(unit, new)), expect, "{old:?} {new:?}");
        };
        let (speed, time) = (Unit::TokensPerSecond, Unit::Milliseconds);
        check(speed, &[10.0, 11.0, 12.0], &[13.0, 13.1, 13.2], Verdict::Better);
        check(speed, &[10.0, 11.0, 12.0], &[12.9, 13.0, 13.1], Verdict::Same);
        check(speed, &[10.0, 10.1, 10.2], &[12.0], Verdict::Better);
        check(time, &[10.0, 10.1, 10.2], &[12.0], Verdict::Worse);
        check(time, &[12.0], &[10.0, 10.1, 10.2], Verdict::Better);
        check(time, &[10.0], &[12.0], Verdict::Unknown);
        check(time, &[10.0], &[10.0], Verdict::Same);
    }
}
