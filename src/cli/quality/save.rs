//! A report's numbers in the model's own metadata, where `qvl inspect` shows them.

use std::path::Path;

use qvl::error::{Error, Result};
use qvl::gguf::{Gguf, Metadata, Value, rewrite};
use qvl::mmap::MappedFile;
use qvl::names::quality as key;

use super::super::output;
use super::report::Report;

/// Replaces the file at `path` by one that has the report in its metadata, and the same tensors. Errors leave it as it is.
pub fn save(path: &Path, report: &Report<'_>, data: &Path) -> Result<()> {
    let file = MappedFile::open(path)?;
    let gguf = Gguf::parse(&file).map_err(|e| e.at(path))?;
    let mut more = Metadata::default();
    more.set(key::REFERENCE, report.reference_name());
    more.set(key::DATA, data.file_name().unwrap_or_default().to_string_lossy().into_owned());
    more.set(key::EXAMPLES, report.n_examples() as u32);
    more.set(key::POSITIONS, report.divergence.len() as u32);
    let mut float = |key, value: f64| more.set(key, Value::F32(value as f32));
    float(key::KL_MEAN, report.divergence.mean());
    float(key::KL_P99, report.divergence.quantile(0.99));
    float(key::TOP1_AGREEMENT, report.agreement());
    float(key::PERPLEXITY, report.perplexity()[0]);
    float(key::REFERENCE_PERPLEXITY, report.perplexity()[1]);
    if !report.cosine.is_empty() {
        float(key::EMBEDDING_COSINE, report.cosine.mean());
    }
    if report.boxes[0].n > 0 {
        float(key::BOX_IOU, report.boxes[0].mean());
    }
    let new = output::temporary(path)?;
    rewrite(&gguf, &file, &more, new.as_file()).map_err(|e| e.at(path))?;
    let failed = |e: std::io::Error| Error::other("cannot replace the file").because(e).at(path);
    new.as_file().sync_all().map_err(failed)?;
    new.persist(path).map_err(failed)?;
    Ok(())
}
