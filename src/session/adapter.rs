//! A LoRA adapter's file.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::ggml;
use crate::gguf::Gguf;
use crate::llama::Model;
use crate::mmap::MappedFile;
use crate::text::{self, TextHparams};

use super::text_file::{ModelId, hash_beginnings};

/// An adapter that has been proven to fit a model, and how much of it is wanted; no value has been touched.
pub struct AdapterFile {
    path: PathBuf,
    scale: f32,
    n_bytes: u64,
    id: ModelId,
}

impl AdapterFile {
    /// Proves the header of `path` for a model of these dimensions. Errors (kind model) name the file and the key or tensor.
    pub fn open(path: &Path, scale: f32, h: &TextHparams) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let gguf = Gguf::parse(&file).map_err(|e| e.at(path))?;
        text::check_adapter(&gguf, h).map_err(|e| e.at(path))?;
        let mut hash = Sha256::new();
        hash_beginnings(&mut hash, &file, &gguf);
        hash.update(scale.to_le_bytes());
        let n_bytes = gguf.tensors().iter().map(|tensor| tensor.n_bytes).sum();
        Ok(AdapterFile { path: path.to_owned(), scale, n_bytes, id: hash.finalize().into() })
    }

    /// Its values in memory, in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// What tells it, at this scale, from others.
    pub fn id(&self) -> ModelId {
        self.id
    }

    /// Its file's name, and its scale if that is not 1.
    pub fn title(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        if self.scale == 1.0 { name.into_owned() } else { format!("{name}={}", self.scale) }
    }

    /// Adds it to its model. Errors (kind model): a value is no number. Cost: reads the file twice.
    pub fn load(&self, model: &mut Model) -> Result<()> {
        self.refuse_not_finite()?;
        model.add_adapter(&self.path, self.scale)
    }

    fn refuse_not_finite(&self) -> Result<()> {
        let file = MappedFile::open(&self.path)?;
        let gguf = Gguf::parse(&file).map_err(|e| e.at(&self.path))?;
        for tensor in gguf.tensors() {
            let found = ggml::first_not_finite(tensor.ty, tensor.bytes(&file), tensor.dims[0] as usize);
            if let Some((row, column, x)) = found {
                let message = format!("tensor {:?} holds {x} in row {row}, column {column}", tensor.name);
                return Err(Error::model(message).at(&self.path));
            }
        }
        Ok(())
    }
}
