//! A text model's file, before its weights are touched.

use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::gguf::{Gguf, TensorInfo};
use crate::gguf_file::GgufFile;
use crate::kernels;
use crate::llama::{FlashAttention, Model, ModelParams};
use crate::names::{text_tensor, vocab};
use crate::quant::GgmlType;
use crate::text::{self, TextHparams};
use crate::tokenizer::Tokenizer;

use super::adapter::AdapterFile;
use super::{SessionSettings, products_bytes};

/// Names a text model: equal weights, equal name.
pub type ModelId = [u8; 32];

/// A text GGUF that has been proven, with its tokenizer; no weight has been touched.
pub struct TextFile {
    path: PathBuf,
    hparams: TextHparams,
    tokenizer: Tokenizer,
    n_bytes: u64,
    parts: Vec<(PathBuf, u64)>,
    repack_bytes: u64,
    layers: Vec<Range<u64>>,
    output_bytes: u64,
    is_all_k_quants: bool,
    is_quantised: bool,
    adapters: Vec<AdapterFile>,
}

/// From the first to the last byte of a layer's tensors, which the converter writes one after the other.
fn layer_range(gguf: &Gguf, il: usize) -> Range<u64> {
    let prefix = text_tensor::blk(il, "");
    let of_layer = || gguf.tensors().iter().filter(|t| t.name.starts_with(&prefix));
    let start = of_layer().map(|t| t.offset).min().unwrap_or(0);
    start..of_layer().map(|t| t.offset + t.n_bytes).max().unwrap_or(start)
}

/// Whether ggml's CPU backend has another layout for it (`ggml_repack_get_optimal_repack_type` on x86 and Arm).
fn is_repacked(tensor: &TensorInfo) -> bool {
    let types = [GgmlType::Q4_0, GgmlType::Q4_K, GgmlType::IQ4_NL];
    is_multiplied(tensor) && tensor.dims[1].is_multiple_of(8) && types.contains(&tensor.ty)
}

fn is_multiplied(tensor: &TensorInfo) -> bool {
    tensor.dims.len() == 2 && tensor.name != text_tensor::TOKEN_EMBD
}

fn is_k_quant(tensor: &TensorInfo) -> bool {
    [GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K].contains(&tensor.ty)
}

impl TextFile {
    /// Proves the header of `path`, and of all parts where it is the first of several. Errors (kind model) name the file and the key or tensor. Cost: tens of
    /// milliseconds for the real vocabulary.
    pub fn open(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let gguf = file.gguf();
        let read = || -> Result<Self> {
            let hparams = TextHparams::read(gguf)?;
            text::check(gguf, &hparams)?;
            let tokens = gguf.strings(vocab::TOKENS)?.to_vec();
            let tokenizer = Tokenizer::new(tokens, gguf.i32s(vocab::TOKEN_TYPE)?, hparams.n_queries)?;
            let layers = (0..hparams.n_layer).map(|il| layer_range(gguf, il)).collect();
            let repack_bytes = gguf.tensors().iter().filter(|t| is_repacked(t)).map(|t| t.n_bytes).sum();
            let outputs = [text_tensor::OUTPUT, text_tensor::OUTPUT_NORM];
            let output_bytes = outputs.iter().filter_map(|name| gguf.tensor(name)).map(|t| t.n_bytes).sum();
            Ok(TextFile {
                path: path.to_owned(),
                hparams,
                tokenizer,
                n_bytes: file.n_bytes(),
                parts: file.parts(),
                repack_bytes,
                layers,
                output_bytes,
                is_all_k_quants: gguf.tensors().iter().filter(|t| is_multiplied(t)).all(is_k_quant),
                is_quantised: gguf.tensors().iter().any(|t| is_multiplied(t) && t.ty.is_quantised()),
                adapters: Vec::new(),
            })
        };
        read().map_err(|e| e.at(path))
    }

    /// The same with LoRA adapters, each with its scale (1 is the adapter as it was trained, 0 is none). Errors (kind model): one
    /// is damaged, or of another model.
    pub fn adapted(mut self, adapters: &[(PathBuf, f32)]) -> Result<Self> {
        for (path, scale) in adapters {
            let adapter = AdapterFile::open(path, *scale, &self.hparams)?;
            // None of it is none, to the last bit.
            self.adapters.extend((*scale != 0.0).then_some(adapter));
        }
        Ok(self)
    }

    /// Its name for people, with those of its adapters.
    pub fn title(&self) -> String {
        let adapters = self.adapters.iter().map(|adapter| format!(" + {}", adapter.title()));
        self.hparams.name.clone() + &adapters.collect::<String>()
    }

    /// What its adapters take of the memory, in bytes: llama.cpp copies them.
    pub fn adapter_bytes(&self) -> u64 {
        self.adapters.iter().map(AdapterFile::n_bytes).sum()
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes; mapped weights take as much.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// What ggml's repacked copies of weights take, where they are asked for, in bytes.
    pub fn repack_bytes(&self) -> u64 {
        self.repack_bytes
    }

    /// The file's parts, and where each begins in the bytes that [`layers`](Self::layers) counts in: one for a whole file.
    pub fn parts(&self) -> &[(PathBuf, u64)] {
        &self.parts
    }

    /// Bytes of each layer's weights in the file, or in all of its parts one behind the other.
    pub fn layers(&self) -> &[Range<u64>] {
        &self.layers
    }

    /// Whether all matrices that a token is multiplied with are `q4_k`, `q5_k` or `q6_k`.
    pub fn is_all_k_quants(&self) -> bool {
        self.is_all_k_quants
    }

    /// Bytes that reading a prompt takes with these settings where kernels of ours do it, beyond what ggml plans for its own
    /// ([`SessionSettings::compute_bytes`]).
    pub fn prompt_bytes(&self, settings: &SessionSettings) -> u64 {
        let (n_rows, widest) = (settings.n_rows(), self.hparams.n_ff.max(self.hparams.n_embd));
        let matrices = self.is_quantised.then_some([widest; 2]);
        let is_f16 = settings.type_k == GgmlType::F16 && settings.type_v == GgmlType::F16;
        let heads = (is_f16 && settings.flash == FlashAttention::On).then_some(self.hparams.d_head());
        let room = kernels::prompt_room(matrices, heads, n_rows, settings.n_threads);
        let planned = products_bytes(n_rows, widest);
        let columns = room.columns.unwrap_or(planned);
        (columns + settings.n_threads * room.a_thread).saturating_sub(planned) as u64
    }

    /// Bytes of the output matrix and of the norm before it.
    pub fn output_bytes(&self) -> u64 {
        self.output_bytes
    }

    /// Its dimensions and defaults.
    pub fn hparams(&self) -> &TextHparams {
        &self.hparams
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What tells this model from others, wherever its file lies: a hash over its header and the beginning of every tensor, and
    /// over those of its adapters.
    /// Cost: reads a page of each tensor (some hundred for the real model).
    pub fn id(&self) -> Result<ModelId> {
        let file = GgufFile::open(&self.path)?;
        let mut hash = Sha256::new();
        hash_beginnings(&mut hash, &file, file.gguf());
        // In any order they are the same model.
        let mut adapters: Vec<ModelId> = self.adapters.iter().map(AdapterFile::id).collect();
        adapters.sort_unstable();
        adapters.iter().for_each(|id| hash.update(id));
        Ok(hash.finalize().into())
    }

    /// Loads the weights, and the adapters. Errors (kind model) moreover: a value of an adapter is no number.
    pub fn load(&self, params: ModelParams) -> Result<Model> {
        let mut model = Model::load(&self.path, self.hparams.n_vocab, params)?;
        self.adapters.iter().try_for_each(|adapter| adapter.load(&mut model))?;
        Ok(model)
    }
}

/// Hashes a file's length, its header and the beginning of each tensor.
pub(super) fn hash_beginnings(hash: &mut Sha256, file: &[u8], gguf: &Gguf) {
    const N_BYTES: usize = 64;
    hash.update((file.len() as u64).to_le_bytes());
    hash.update(&file[..usize::try_from(gguf.data_offset()).unwrap_or(usize::MAX).min(file.len())]);
    for tensor in gguf.tensors() {
        let bytes = tensor.bytes(file);
        hash.update(&bytes[..bytes.len().min(N_BYTES)]);
    }
}
