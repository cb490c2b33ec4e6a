//! `qvl bench`: how fast, and how large. Each case runs in a process of its own, so that its memory is its own.

mod child;
mod compare;
mod counters;
mod energy;
mod kernels;
mod machine;
mod plan;
mod processes;
mod report;
mod show;
mod watch;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use qvl::error::{Error, Result};

use super::args::BenchArgs;
use super::{doctor, output, print, print_error, print_json};

use child::{Measured, Reading};
use compare::Comparison;
use energy::Meter;
use machine::{Load, Machine};
use plan::{Case, Plan};
use report::{Energy, FORMAT, Report, Row};

/// Runs it.
pub fn run(args: &BenchArgs, quiet: bool) -> Result<()> {
    if let Some(name) = &args.measure {
        return child::run(args, name);
    }
    if args.kernels {
        return kernels::run(args, quiet);
    }
    let files: Vec<Report> = args.compare.iter().map(|path| Report::read(path)).collect::<Result<_>>()?;
    if let [old, new] = files.as_slice() {
        if args.output.is_some() {
            return Err(Error::usage("with two files nothing is measured, so there is nothing to write with -o"));
        }
        if !args.force {
            compare::check(old, &new.model, &new.settings)?;
        }
        return print_comparison(args, &Comparison::new(old, new)?);
    }
    let plan = Plan::new(args, quiet)?;
    let old = files.first();
    if let Some(old) = old.filter(|_| !args.force) {
        compare::check(old, &plan.files, &plan.settings)?;
    }
    if let Some(path) = &args.output {
        output::check(path)?;
    }
    let report = measure(&plan, args.runs.into(), quiet)?;
    if let Some(path) = &args.output {
        write(&report, path)?;
    }
    match old {
        Some(old) => print_comparison(args, &Comparison::new(old, &report)?),
        None if args.json => print_json(&as_json(&report)?),
        None if args.csv => print(&show::csv(&report)),
        None if args.markdown => print(&show::markdown(&report, &plan.pictures)),
        None => print(&show::text(&report, &plan.pictures)),
    }
}

fn print_comparison(args: &BenchArgs, comparison: &Comparison) -> Result<()> {
    match (args.json, args.csv, args.markdown) {
        (true, ..) => print_json(&comparison.json()),
        (_, true, _) => print(&comparison.csv()),
        (.., true) => print(&comparison.markdown()),
        _ => print(&comparison.text()),
    }
}

/// Measures every case, a question once a process, the others several times in one.
fn measure(plan: &Plan, n_runs: usize, quiet: bool) -> Result<Report> {
    let machine = Machine::this();
    let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let average_before = counters::load_average();
    let mut warnings: Vec<String> = doctor::simd_warning().into_iter().collect();
    if let Some(busy) = machine::busy_before(&machine) {
        if !quiet {
            print_error(&format!("warning: {busy}\n"));
        }
        warnings.push(busy);
    }
    // A case on text has a run that does not count.
    let n_steps = plan.cases.iter().map(|case| if is_question(case) { n_runs } else { n_runs + 1 }).sum::<usize>();
    let bar = progress(n_steps as u64, quiet);
    let (mut results, mut others, mut seconds) = (Vec::new(), Vec::new(), 0.0);
    for case in &plan.cases {
        let name = case.name();
        bar.set_message(name.clone());
        let mut readings = Vec::new();
        for _ in 0..if is_question(case) { n_runs } else { 1 } {
            let measured = processes::measure(&name, &plan.written, || bar.inc(1))?;
            others.extend(measured.cores_of_others.map(|cores| cores * measured.seconds));
            seconds += measured.seconds;
            let Measured { readings: more, .. } = measured;
            readings.extend(more);
        }
        results.extend(rows(&name, &readings));
    }
    bar.finish_and_clear();
    let cores_of_others = (!others.is_empty() && seconds > 0.0).then(|| others.iter().sum::<f64>() / seconds);
    let load = Load { average_before, cores_of_others: cores_of_others.map(|x| (x * 1e3).round() / 1e3) };
    warnings.extend(machine::busy_meanwhile(&machine, &load));
    let energy = match Meter::open() {
        Ok(meter) => Energy { source: Some(meter.source()), reason: None },
        Err(reason) => Energy { source: None, reason: Some(reason) },
    };
    Ok(Report {
        format: FORMAT.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        unix_time,
        machine,
        load,
        warnings,
        model: plan.files.clone(),
        settings: plan.settings.clone(),
        energy,
        control_group_peak_bytes: counters::control_group_peak(),
        results,
    })
}

fn is_question(case: &Case) -> bool {
    matches!(case, Case::Question { .. })
}

/// A row for each measure, in the order in which they came.
fn rows(case: &str, readings: &[Reading]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for reading in readings {
        if rows.iter().any(|row| row.measure == reading.measure) {
            continue;
        }
        let same = readings.iter().filter(|other| other.measure == reading.measure);
        let runs: Vec<f64> = same.map(|reading| reading.value).collect();
        rows.extend(Row::new(case, &reading.measure, reading.unit, &runs));
    }
    rows
}

fn as_json(report: &Report) -> Result<serde_json::Value> {
    serde_json::to_value(report).map_err(|e| Error::other("cannot write the result").because(e))
}

/// Writes the result, in whole or not at all.
fn write(report: &Report, path: &Path) -> Result<()> {
    let mut file = output::temporary(path)?;
    let failed = |e: std::io::Error| Error::other("cannot write").because(e).at(path);
    file.write_all(format!("{}\n", as_json(report)?).as_bytes()).map_err(failed)?;
    file.persist(path).map_err(failed)?;
    Ok(())
}

fn progress(n: u64, quiet: bool) -> ProgressBar {
    // indicatif draws on stderr, and nothing when that is no terminal.
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(n) };
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
