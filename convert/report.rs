//! What the user reads: the plan as a table or as JSON, the result, the next command.

use std::io::Write;
use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};
use qvl::memory;
use serde_json::{Value, json};

use crate::plan::{FilePlan, Plan};

/// What a conversion made.
#[derive(Clone, Debug)]
pub struct Done {
    /// The language model's files and their sizes in bytes: one, or the parts that it was split into.
    pub model: Vec<(PathBuf, u64)>,
    /// The same of the mmproj, which is one.
    pub mmproj: Vec<(PathBuf, u64)>,
    /// What `--report` measured.
    pub quality: Option<Value>,
    /// Wall time in seconds.
    pub seconds: f64,
}

impl Done {
    /// What to call the language model by: its file, or the first of them.
    pub fn model(&self) -> &Path {
        self.model.first().map_or(Path::new(""), |(path, _)| path)
    }

    /// The mmproj.
    pub fn mmproj(&self) -> &Path {
        self.mmproj.first().map_or(Path::new(""), |(path, _)| path)
    }
}

/// Prints `text` and a line end to stdout. A closed pipe is no error.
pub fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::other("cannot write to stdout").because(e)),
        _ => Ok(()),
    }
}

/// Prints `text` to stderr; where nobody listens there is nobody to tell (`eprint!` would panic).
pub fn note(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The plan as an aligned table for each file, with totals.
pub fn plan_text(plan: &Plan) -> String {
    let mut text = file_text(&plan.text);
    text.push('\n');
    text.push_str(&file_text(&plan.vision));
    text
}

/// A file's table.
pub fn file_text(file: &FilePlan) -> String {
    let mut rows = vec![["tensor", "extents", "type", "bytes", "recipe", "source"].map(String::from)];
    for t in &file.tensors {
        let dims = t.dims.iter().map(u64::to_string).collect::<Vec<_>>().join("x");
        let ty = match t.wanted {
            Some(wanted) => format!("{} (not {wanted})", t.ty),
            None if t.padding > 0 => format!("{} (rows of {})", t.ty, t.row_length()),
            None => t.ty.to_string(),
        };
        let mut source = t.sources.first().map(|s| s.name.clone()).unwrap_or_default();
        if t.sources.len() > 1 {
            source.push_str(&format!(" +{}", t.sources.len() - 1));
        }
        t.adapters.iter().for_each(|adapter| source.push_str(&format!(" {adapter}")));
        rows.push([t.name.clone(), dims, ty, t.n_bytes.to_string(), t.recipe.to_string(), source]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = format!("{}\n", file.file_name);
    for row in &rows {
        // Sizes are right-aligned, the last column is not padded.
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, w))| match i {
            3 => format!("{cell:>w$}"),
            5 => cell.clone(),
            _ => format!("{cell:<w$}"),
        });
        text.push_str(&cells.collect::<Vec<_>>().join("  "));
        text.push('\n');
    }
    let bits = file.n_bytes() as f64 * 8.0 / file.n_values() as f64;
    text.push_str(&format!(
        "{} tensors, {} parameters, {} bytes ({}), {bits:.2} bits a weight; {}\n",
        file.tensors.len(),
        file.n_values(),
        file.n_bytes(),
        bytes_text(file.n_bytes()),
        file.types_text()
    ));
    text
}

/// The plan as a JSON object.
pub fn plan_json(plan: &Plan) -> Value {
    json!({ "model": file_json(&plan.text), "mmproj": file_json(&plan.vision), "notes": plan.notes })
}

/// A file as a JSON object.
pub fn file_json(file: &FilePlan) -> Value {
    let tensors = file.tensors.iter().map(|t| {
        let mut json = json!({
            "name": t.name,
            "dims": t.dims,
            "type": t.ty.name(),
            "wanted": t.wanted.map(|w| w.name()),
            "padding": t.padding,
            "bytes": t.n_bytes,
            "recipe": t.recipe.to_string(),
            "sources": t.sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        });
        if !t.adapters.is_empty() {
            json["adapters"] = t.adapters.as_slice().into();
        }
        json
    });
    json!({
        "file": file.file_name,
        "type": file.file_type().name(),
        "n_parameters": file.n_values(),
        "bytes": file.n_bytes(),
        "tensor_types": types_json(file),
        "tensors": tensors.collect::<Vec<_>>(),
    })
}

fn types_json(file: &FilePlan) -> Value {
    file.types().into_iter().map(|(ty, (n, _))| (ty.name().to_owned(), Value::from(n))).collect()
}

/// The result as a JSON object.
pub fn done_json(done: &Done, plan: &Plan) -> Value {
    let n_bytes = [&done.model, &done.mmproj].map(|files| files.iter().map(|(_, n)| n).sum::<u64>());
    let mut json = json!({
        "model": done.model().to_string_lossy(),
        "mmproj": done.mmproj().to_string_lossy(),
        "bytes": n_bytes[0] + n_bytes[1],
        "model_bytes": n_bytes[0],
        "mmproj_bytes": n_bytes[1],
        "seconds": (done.seconds * 1000.0).round() / 1000.0,
        "peak_rss_bytes": memory::peak_rss_bytes(),
        "model_types": types_json(&plan.text),
        "mmproj_types": types_json(&plan.vision),
        "fallbacks": plan.text.fallbacks().chain(plan.vision.fallbacks()).count(),
        "notes": plan.notes,
        "quality": done.quality,
    });
    if done.model.len() > 1 {
        json["model_parts"] = done.model.iter().map(|(path, _)| path.to_string_lossy()).collect();
    }
    json
}

/// The result for people: the two paths and what to type next.
pub fn done_text(done: &Done) -> String {
    let line = |(path, n_bytes): &(PathBuf, u64)| format!("{}  {}\n", path.display(), bytes_text(*n_bytes));
    let number = |pointer: &str| done.quality.as_ref().and_then(|q| q.pointer(pointer)).and_then(Value::as_f64);
    let quality = number("/kl/mean").zip(number("/top1_agreement")).map(|(kl, same)| {
        format!("against the reference: KL divergence {kl:.5}, same most likely token {:.2} %\n", 100.0 * same)
    });
    format!(
        "{}{}try: qvl ask -m {} -i photo.jpg \"What is in this picture?\"",
        done.model.iter().chain(&done.mmproj).map(line).collect::<String>(),
        quality.unwrap_or_default(),
        shell_word(&done.model().to_string_lossy())
    )
}

/// `text` as one word of a POSIX shell.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._+-=:,@%".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A size in decimal units.
pub fn bytes_text(n: u64) -> String {
    let (unit, name) = if n < 1_000_000 {
        (1e3, "kB")
    } else if n < 1_000_000_000 {
        (1e6, "MB")
    } else {
        (1e9, "GB")
    };
    format!("{:.*} {name}", if name == "GB" { 2 } else { 1 }, n as f64 / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_when_they_need_it() {
        assert_eq!(shell_word("/a/b-c.gguf"), "/a/b-c.gguf");
        assert_eq!(shell_word("it's here"), r"'it'\''s here'");
    }
}
