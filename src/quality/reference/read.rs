//! Reads a reference and proves it.

use std::path::Path;

use byteorder::{ByteOrder, LittleEndian as LE};
use half::f16;
use sha2::{Digest, Sha256};

use super::{Identity, Reference, hex};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorInfo};
use crate::mmap::MappedFile;
use crate::names::{general, reference as key};
use crate::quality::Distribution;
use crate::quant::GgmlType;
use crate::tokenizer::{TokenId, Tokenizer};

impl Reference {
    /// Whether this GGUF file is a reference, or something else.
    pub fn is_one(gguf: &Gguf) -> bool {
        matches!(gguf.opt_str(general::TYPE), Ok(Some(key::TYPE)))
    }

    /// Reads `path`, a reference of a model with this vocabulary. Errors (kind model): another vocabulary, or damaged. Cost:
    /// a hash over all of it, and a copy in memory.
    pub fn read(path: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let read = || {
            let gguf = Gguf::parse(&file)?;
            if !Self::is_one(&gguf) {
                return Err(Error::model("not a reference; make one with qvl quality --write-reference"));
            }
            parse(&File { gguf: &gguf, bytes: &file }, tokenizer)
        };
        read().map_err(|e| e.at(path))
    }
}

struct File<'a> {
    gguf: &'a Gguf,
    bytes: &'a [u8],
}

fn parse(file: &File<'_>, tokenizer: &Tokenizer) -> Result<Reference> {
    let gguf = file.gguf;
    let text = |key| gguf.str(key).map(str::to_owned);
    let identity = Identity {
        vocabulary: text(key::VOCABULARY)?,
        data: text(key::DATA)?,
        pictures: gguf.strings(key::PICTURES)?.to_vec(),
    };
    if identity.vocabulary != Identity::vocabulary(tokenizer) {
        return Err(Error::model("the reference is of a model with another vocabulary; make one of the same model"));
    }
    let mut hash = Sha256::new();
    gguf.tensors().iter().for_each(|t| hash.update(t.bytes(file.bytes)));
    if hex(hash) != gguf.str(key::CHECKSUM)? {
        return Err(Error::model("the reference is damaged: its checksum is wrong; make it again"));
    }
    let answers = gguf.strings(key::ANSWERS)?.to_vec();
    let lengths = file.ints(key::LENGTHS, &[answers.len() as u64], i32::MAX as u32)?;
    let n = lengths.iter().map(|n| u64::from(*n)).sum::<u64>();
    let n_used = tokenizer.n_used() as u32;
    let flat: Vec<TokenId> = file.ints(key::TARGETS, &[n], n_used)?.into_iter().map(TokenId).collect();
    let mut starts = Vec::with_capacity(lengths.len());
    let mut targets = Vec::with_capacity(lengths.len());
    let mut at = 0;
    for length in lengths {
        starts.push(at);
        targets.push(flat[at..at + length as usize].to_vec());
        at += length as usize;
    }
    let k = gguf.tensor(key::IDS).map_or(0, |t| t.dims[0]);
    let ids = file.ints(key::IDS, &[k, n], n_used)?;
    let logprobs = file.floats(key::LOGPROBS, &[k, n])?;
    let rest = file.floats(key::REST, &[n])?;
    let is_sound = |x: &f32| x.is_finite() && *x < 1e-3;
    let target_logprobs = file.floats(key::TARGET_LOGPROBS, &[n])?;
    if !logprobs.iter().chain(&target_logprobs).all(is_sound)
        || !rest.iter().all(|x| is_sound(x) || *x == f32::NEG_INFINITY)
    {
        return Err(Error::model("the reference holds log-probabilities that cannot be"));
    }
    let k = k as usize;
    let distributions = ids.chunks_exact(k).zip(logprobs.chunks_exact(k)).zip(&rest);
    let distributions = distributions.map(|((ids, logprobs), rest)| Distribution {
        ids: ids.to_vec(),
        logprobs: logprobs.to_vec(),
        rest: *rest,
    });
    let (shape, embeddings) = file.embeddings(identity.pictures.len() as u64)?;
    Ok(Reference {
        identity,
        model: text(key::MODEL)?,
        answers,
        targets,
        starts,
        target_logprobs,
        distributions: distributions.collect(),
        n_queries: shape.0,
        d_out: shape.1,
        embeddings,
    })
}

impl File<'_> {
    fn tensor(&self, name: &str, dims: &[u64], ty: GgmlType) -> Result<&TensorInfo> {
        let found = self.gguf.tensor(name).filter(|t| t.dims == dims && t.ty == ty);
        found.ok_or_else(|| {
            Error::model(format!("the reference has no tensor {name:?} of extents {dims:?} and type {ty}"))
        })
    }

    /// Numbers from 0 on, below `end`.
    fn ints(&self, name: &str, dims: &[u64], end: u32) -> Result<Vec<u32>> {
        let bytes = self.tensor(name, dims, GgmlType::I32)?.bytes(self.bytes);
        let values: Vec<u32> = bytes.chunks_exact(4).map(LE::read_u32).collect();
        match values.iter().find(|x| **x >= end) {
            None => Ok(values),
            Some(x) => {
                Err(Error::model(format!("the reference's tensor {name:?} holds {x} (expected less than {end})")))
            }
        }
    }

    fn floats(&self, name: &str, dims: &[u64]) -> Result<Vec<f32>> {
        let bytes = self.tensor(name, dims, GgmlType::F32)?.bytes(self.bytes);
        Ok(bytes.chunks_exact(4).map(LE::read_f32).collect())
    }

    /// ((rows, values a row) of a picture, all values).
    fn embeddings(&self, n_pictures: u64) -> Result<((usize, usize), Vec<f16>)> {
        if n_pictures == 0 {
            return Ok(((0, 0), Vec::new()));
        }
        let dims = self.gguf.tensor(key::EMBEDDINGS).map_or(Vec::new(), |t| t.dims.clone());
        let [d_out, n_queries, n] = dims[..] else {
            return Err(Error::model("the reference has no embeddings of its pictures"));
        };
        if n != n_pictures {
            return Err(Error::model(format!("the reference has embeddings of {n} pictures (expected {n_pictures})")));
        }
        let bytes = self.tensor(key::EMBEDDINGS, &dims, GgmlType::F16)?.bytes(self.bytes);
        let values: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
        if !values.iter().all(|x| x.is_finite()) {
            return Err(Error::model("the reference holds embeddings that are not finite"));
        }
        Ok(((n_queries as usize, d_out as usize), values))
    }
}
