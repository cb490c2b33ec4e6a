//! A result for people and for tables.

use std::fmt::Write;

use qvl::memory::human_bytes;
use serde_json::Value;

use super::machine::{Machine, cores};
use super::plan;
use super::report::{Report, Row, Unit};
use crate::cli::table::{Side, Table};

/// A number with its unit, for people.
pub fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => human_bytes(value.max(0.0) as u64),
        _ => format!("{} {}", digits(value), unit.name()),
    }
}

/// Two numbers of a unit that stands beside them already, unless it is bytes.
fn range(min: f64, max: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{} .. {}", number(min, unit), number(max, unit)),
        _ => format!("{} .. {}", digits(min), digits(max)),
    }
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value {
        _ if value < 10.0 => format!("{value:.2}"),
        _ if value < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A measure's name for people.
pub fn measure(row: &Row) -> String {
    row.measure.replace('_', " ")
}

/// What is shown to people: nothing that is always zero, like swapped memory on a machine that swaps nothing.
fn table(report: &Report) -> Table {
    let row = |row: &Row| {
        let spread = match row.spread() {
            Some(_) => range(row.min, row.max, row.unit),
            None => "one run".to_owned(),
        };
        vec![row.case.clone(), measure(row), number(row.median, row.unit), spread]
    };
    Table {
        columns: vec![
            ("case", Side::Left),
            ("measure", Side::Left),
            ("median", Side::Right),
            ("min .. max", Side::Right),
        ],
        rows: report.results.iter().filter(|row| row.max > 0.0).map(row).collect(),
    }
}

/// For people.
pub fn text(report: &Report, pictures: &str) -> String {
    let facts = facts(report, pictures);
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in facts {
        let _ = writeln!(out, "{name:width$}  {value}");
    }
    format!("{out}\n{}", table(report).text())
}

/// As Markdown.
pub fn markdown(report: &Report, pictures: &str) -> String {
    let facts = facts(report, pictures).into_iter().map(|(name, value)| format!("- {name}: {value}\n"));
    format!("{}\n{}", facts.collect::<String>(), table(report).markdown())
}

/// Every row as CSV, numbers in full.
pub fn csv(report: &Report) -> String {
    let row = |r: &Row| {
        let numbers = [r.median, r.min, r.max].map(|x| x.to_string());
        let [median, min, max] = numbers;
        vec![r.case.clone(), r.measure.clone(), r.unit.name().to_owned(), median, min, max, r.runs.len().to_string()]
    };
    let names = ["case", "measure", "unit", "median", "min", "max", "runs"];
    let columns = names.map(|name| (name, Side::Left)).to_vec();
    Table { columns, rows: report.results.iter().map(row).collect() }.csv()
}

/// What the numbers are about.
fn facts(report: &Report, pictures: &str) -> Vec<(&'static str, String)> {
    let mut facts = vec![("machine", machine(&report.machine)), ("SIMD", report.machine.simd.join(", "))];
    facts.push(("qvl", report.version.clone()));
    facts.push(("text", plan::shown(&report.model.text)));
    facts.extend(report.model.vision.as_ref().map(|file| ("vision", plan::shown(file))));
    if !pictures.is_empty() {
        facts.push(("picture", pictures.to_owned()));
    }
    facts.push(("settings", settings(report)));
    let energy = &report.energy;
    let not_told = || format!("not told: {}", energy.reason.as_deref().unwrap_or("unknown"));
    facts.push(("energy", energy.source.clone().unwrap_or_else(not_told)));
    facts.extend(report.warnings.iter().map(|warning| ("warning", warning.clone())));
    facts
}

/// A machine in a line.
pub fn machine(m: &Machine) -> String {
    let memory = m.memory_bytes.map(|n| format!(", {}", human_bytes(n))).unwrap_or_default();
    format!("{}, {}{memory}, {} {}", m.cpu, cores(m.physical_cores), m.os, m.arch)
}

/// Settings in a line: those that are something.
fn settings(report: &Report) -> String {
    let one = |(key, value): (&String, &Value)| match value {
        Value::Null | Value::Array(_) => None,
        Value::String(s) => Some(format!("{} {s}", key.replace('_', " "))),
        other => Some(format!("{} {other}", key.replace('_', " "))),
    };
    report.settings.iter().filter_map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let cases = [
            (1.234, Unit::Milliseconds, "1.23 ms"),
            (12.34, Unit::TokensPerSecond, "12.3 tokens/s"),
            (12345.6, Unit::Joules, "12346 J"),
            (1536.0, Unit::Bytes, "1.50 KiB"),
        ];
        for (value, unit, expect) in cases {
            assert_eq!(number(value, unit), expect);
        }
        assert_eq!(range(1.0, 20.0, Unit::Milliseconds), "1.00 .. 20.0");
        assert_eq!(range(1.0, 2048.0, Unit::Bytes), "1 B .. 2.00 KiB");
    }
}
