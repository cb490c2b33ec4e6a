//! A text model's file, before its weights are touched.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::gguf::Gguf;
use crate::llama::{Model, ModelParams};
use crate::mmap::MappedFile;
use crate::names::vocab;
use crate::text::{self, TextHparams};
use crate::tokenizer::Tokenizer;

/// Names a text model: equal weights, equal name.
pub type ModelId = [u8; 32];

/// A text GGUF that has been proven, with its tokenizer; no weight has been touched.
pub struct TextFile {
    path: PathBuf,
    hparams: TextHparams,
    tokenizer: Tokenizer,
}

impl TextFile {
    /// Proves the header of `path`. Errors (kind model) name the file and the key or tensor. Cost: tens of
    /// milliseconds for the real vocabulary.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let read = || -> Result<Self> {
            let gguf = Gguf::parse(&file)?;
            let hparams = TextHparams::read(&gguf)?;
            text::check(&gguf, &hparams)?;
            let tokens = gguf.strings(vocab::TOKENS)?.to_vec();
            let tokenizer = Tokenizer::new(tokens, gguf.i32s(vocab::TOKEN_TYPE)?, hparams.n_queries)?;
            Ok(TextFile { path: path.to_owned(), hparams, tokenizer })
        };
        read().map_err(|e| e.at(path))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its dimensions and defaults.
    pub fn hparams(&self) -> &TextHparams {
        &self.hparams
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What tells this model from others, wherever its file lies: a hash over its header and the beginning of every tensor.
    /// Cost: reads a page of each tensor (some hundred for the real model).
    pub fn id(&self) -> Result<ModelId> {
        const N_BYTES: usize = 64;
        let file = MappedFile::open(&self.path)?;
        let gguf = Gguf::parse(&file).map_err(|e| e.at(&self.path))?;
        let mut hash = Sha256::new();
        hash.update((file.len() as u64).to_le_bytes());
        hash.update(&file[..usize::try_from(gguf.data_offset()).unwrap_or(usize::MAX).min(file.len())]);
        for tensor in gguf.tensors() {
            let bytes = tensor.bytes(&file);
            hash.update(&bytes[..bytes.len().min(N_BYTES)]);
        }
        Ok(hash.finalize().into())
    }

    /// Loads the weights.
    pub fn load(&self, params: ModelParams) -> Result<Model> {
        Model::load(&self.path, params)
    }
}
