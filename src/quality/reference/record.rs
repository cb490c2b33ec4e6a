//! Writes a reference while a model is at work.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};

use half::f16;
use sha2::{Digest, Sha256};

use super::{Identity, hex};
use crate::error::{Error, Result};
use crate::gguf::{Array, DEFAULT_ALIGNMENT, Layout, Metadata, TensorSpec, Value};
use crate::names::{general, reference as key};
use crate::quality::Distribution;
use crate::quant::GgmlType;
use crate::tokenizer::TokenId;

/// A reference in the making. Embeddings wait in a file of their own, everything else in memory.
pub struct Recorder {
    identity: Identity,
    model: String,
    k: usize,
    answers: Vec<String>,
    lengths: Vec<i32>,
    targets: Vec<i32>,
    target_logprobs: Vec<f32>,
    distributions: Vec<Distribution>,
    shape: (usize, usize),
    spool: BufWriter<File>,
}

impl Recorder {
    /// Nothing said yet. `identity` is without pictures, which come one by one; `spool` is an empty file for them; the `k` most
    /// likely tokens of each position are kept.
    pub fn new(identity: Identity, model: String, k: usize, spool: File) -> Self {
        let (lengths, targets, answers) = (Vec::new(), Vec::new(), Vec::new());
        let (target_logprobs, distributions) = (Vec::new(), Vec::new());
        let spool = BufWriter::new(spool);
        Recorder { identity, model, k, answers, lengths, targets, target_logprobs, distributions, shape: (0, 0), spool }
    }

    /// How many pictures there are so far.
    pub fn n_pictures(&self) -> usize {
        self.identity.pictures.len()
    }

    /// The next picture, by its [name](Identity::picture), as rows of `n` values.
    pub fn picture(&mut self, name: String, embedding: &[f16], n: usize) -> Result<()> {
        self.identity.pictures.push(name);
        self.shape = (embedding.len() / n, n);
        let bytes: Vec<u8> = embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.spool.write_all(&bytes).map_err(|e| Error::other("cannot keep an embedding").because(e))
    }

    /// The next position of the example at hand: what the model makes of it, and the token that follows.
    pub fn position(&mut self, logits: &[f32], target: TokenId) {
        self.distributions.push(Distribution::of(logits, self.k));
        self.targets.push(target.to_u32() as i32);
        self.target_logprobs.push(Distribution::logprob(logits, target.to_u32()));
    }

    /// The example at hand ends; the model's own answer to it.
    pub fn answer(&mut self, answer: String) {
        let before: i32 = self.lengths.iter().sum();
        self.lengths.push(self.targets.len() as i32 - before);
        self.answers.push(answer);
    }

    /// Writes all of it. Cost: reads the embeddings twice.
    pub fn finish(self, out: impl Write) -> Result<()> {
        let failed = |e: std::io::Error| Error::other("cannot write the reference").because(e);
        let mut spool = self.spool.into_inner().map_err(|e| failed(e.into_error()))?;
        let (n, k) = (self.targets.len() as u64, self.distributions.first().map_or(0, |d| d.ids.len()) as u64);
        let (n_pictures, (n_queries, d_out)) = (self.identity.pictures.len() as u64, self.shape);
        let of = |f: fn(&Distribution) -> Vec<u8>| self.distributions.iter().flat_map(f).collect::<Vec<u8>>();
        let parts: Vec<(&str, Vec<u64>, GgmlType, Vec<u8>)> = vec![
            (key::LENGTHS, vec![self.lengths.len() as u64], GgmlType::I32, ints(&self.lengths)),
            (key::TARGETS, vec![n], GgmlType::I32, ints(&self.targets)),
            (key::TARGET_LOGPROBS, vec![n], GgmlType::F32, floats(&self.target_logprobs)),
            (key::IDS, vec![k, n], GgmlType::I32, of(|d| d.ids.iter().flat_map(|id| id.to_le_bytes()).collect())),
            (key::LOGPROBS, vec![k, n], GgmlType::F32, of(|d| floats(&d.logprobs))),
            (key::REST, vec![n], GgmlType::F32, of(|d| floats(&[d.rest]))),
        ];
        let spec = |name: &str, dims: &[u64], ty| TensorSpec { name: name.to_owned(), dims: dims.to_vec(), ty };
        let mut specs: Vec<TensorSpec> = parts.iter().map(|(name, dims, ty, _)| spec(name, dims, *ty)).collect();
        if n_pictures > 0 {
            specs.push(spec(key::EMBEDDINGS, &[d_out as u64, n_queries as u64, n_pictures], GgmlType::F16));
        }
        let mut hash = Sha256::new();
        parts.iter().for_each(|(.., bytes)| hash.update(bytes));
        read_all(&mut spool, |bytes| {
            hash.update(bytes);
            Ok(())
        })
        .map_err(failed)?;
        let strings = |texts: Vec<String>| Value::Array(Array::String(texts));
        let mut metadata = Metadata::default();
        metadata.set(general::TYPE, key::TYPE);
        metadata.set(key::MODEL, self.model);
        metadata.set(key::VOCABULARY, self.identity.vocabulary);
        metadata.set(key::DATA, self.identity.data);
        metadata.set(key::CHECKSUM, hex(hash));
        metadata.set(key::PICTURES, strings(self.identity.pictures));
        metadata.set(key::ANSWERS, strings(self.answers));
        let layout = Layout::new(&metadata, &specs, DEFAULT_ALIGNMENT)?;
        let write = || -> std::io::Result<()> {
            let mut out = BufWriter::new(out);
            out.write_all(&layout.header)?;
            let mut at = layout.header.len() as u64;
            for ((.., bytes), (offset, n_bytes)) in parts.iter().zip(&layout.places) {
                out.write_all(&vec![0; (offset - at) as usize])?;
                out.write_all(bytes)?;
                at = offset + n_bytes;
            }
            if let Some((offset, n_bytes)) = layout.places.get(parts.len()) {
                out.write_all(&vec![0; (offset - at) as usize])?;
                read_all(&mut spool, |bytes| out.write_all(bytes))?;
                at = offset + n_bytes;
            }
            out.write_all(&vec![0; (layout.file_bytes - at) as usize])?;
            out.flush()
        };
        write().map_err(failed)
    }
}

/// Hands a whole file to `part`, from its beginning, a MiB at a time.
fn read_all(file: &mut File, mut part: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    file.rewind()?;
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(()),
            n => part(&bytes[..n])?,
        }
    }
}

fn ints(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
