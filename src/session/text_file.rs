//! A text model's file, before its weights are touched.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::gguf::Gguf;
use crate::llama::{Model, ModelParams};
use crate::mmap::MappedFile;
use crate::names::vocab;
use crate::text::{self, TextHparams};
use crate::tokenizer::Tokenizer;

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

    /// Loads the weights.
    pub fn load(&self, params: ModelParams) -> Result<Model> {
        Model::load(&self.path, params)
    }
}
