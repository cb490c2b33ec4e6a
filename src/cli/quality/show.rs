//! A report as tables.

use qvl::quality::{LEAST_IOU, WeightError};

use super::super::table::{Side, Table};
use super::report::Report;

/// Tensors that are shown where not all are asked for.
const N_WORST: usize = 5;

/// Which tensors are listed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// Those with the largest errors.
    Worst,
    /// All, in file order.
    All,
}

/// The tables of a report: what the model does, and what became of its weights.
pub fn tables(report: &Report<'_>, listed: Listed) -> Vec<Table> {
    let mut rows = Vec::new();
    let mut row = |name: &str, model: String, reference: String| rows.push(vec![name.to_owned(), model, reference]);
    let none = String::new;
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let share = |n: usize, of: usize| percent(n as f64 / of.max(1) as f64);
    if !report.cosine.is_empty() {
        row("embedding cosine, mean", number(report.cosine.mean()), none());
        row("embedding cosine, least row", number(report.min_cosine), none());
        row("embedding relative L2, mean", number(report.relative_l2.mean()), none());
    }
    let kl = &report.divergence;
    row("KL divergence, mean", number(kl.mean()), none());
    row("KL divergence, median", number(kl.quantile(0.5)), none());
    row("KL divergence, 99 %", number(kl.quantile(0.99)), none());
    row("same most likely token", percent(report.agreement()), none());
    let [model, reference] = report.perplexity();
    row("perplexity", format!("{model:.4}"), format!("{reference:.4}"));
    let n = report.n_expected;
    if n > 0 {
        row("exact answers", share(report.n_exact[0], n), share(report.n_exact[1], n));
    }
    row("answers as the reference's", share(report.n_same_answer, report.n_examples()), none());
    let [model, reference] = &report.boxes;
    if model.n > 0 {
        row("boxes, mean IoU", format!("{:.4}", model.mean()), format!("{:.4}", reference.mean()));
        let found = format!("boxes found (IoU >= {LEAST_IOU})");
        row(&found, percent(model.hit_rate()), percent(reference.hit_rate()));
    }
    let columns = vec![("measure", Side::Left), ("model", Side::Right), ("reference", Side::Right)];
    let mut tables = vec![Table { columns, rows }];
    let weights = report.weights.as_ref().filter(|weights| !weights.is_empty());
    tables.extend(weights.map(|weights| weights_table(weights, listed)));
    tables
}

fn weights_table(weights: &[WeightError], listed: Listed) -> Table {
    let mut shown: Vec<&WeightError> = weights.iter().collect();
    if listed == Listed::Worst {
        shown.sort_by(|a, b| b.relative_l2.total_cmp(&a.relative_l2));
        shown.truncate(N_WORST);
    }
    let row =
        |w: &&WeightError| vec![w.name.clone(), w.ty.to_string(), w.reference_ty.to_string(), number(w.relative_l2)];
    Table {
        columns: vec![
            ("tensor", Side::Left),
            ("type", Side::Left),
            ("reference", Side::Left),
            ("relative L2", Side::Right),
        ],
        rows: shown.iter().map(row).collect(),
    }
}

/// Four digits that count, small numbers and those just below 1 included.
fn number(value: f64) -> String {
    match value.abs() {
        x if x == 0.0 || x == 1.0 => format!("{value}"),
        x if x < 1e-3 => format!("{value:.2e}"),
        x if x < 1.0 => format!("{value:.5}"),
        _ => format!("{value:.4}"),
    }
}
