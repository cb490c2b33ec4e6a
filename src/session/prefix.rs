//! The beginning of a prompt, up to its last picture, as something to be kept: the next question about the picture begins in
//! the same way.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::llama::{FlashAttention, ModelParams};
use crate::prompt::Prompt;
use crate::quant::GgmlType;
use crate::text::{Rope, alpha};

use super::line::{Mark, Seen, fitting_line};
use super::{Session, SessionSettings, Snapshot, TextFile};

/// Names what the cache holds after a beginning was read: in one build of this program, equal names have equal numbers.
pub type PrefixId = [u8; 32];

/// A prompt's beginning. Having one says: the prompt fits its context, goes on behind it, and has a picture in it.
#[derive(Clone, Debug)]
pub struct Prefix {
    id: PrefixId,
    alpha: f64,
    read: Vec<Mark>,
    max_bytes: u64,
}

impl Prefix {
    /// That of `prompt`, whose pictures are `images`, for a session of these settings over weights that are loaded so; `None`
    /// if it has no picture. How large the context is does not count, nor how many threads there are. Errors: as
    /// [`Session::prefill`], or as [`TextFile::id`]. Cost: that of the id.
    pub fn new(
        file: &TextFile,
        weights: &ModelParams,
        settings: &SessionSettings,
        prompt: &Prompt,
        images: &[Arc<Seen>],
    ) -> Result<Option<Prefix>> {
        let h = file.hparams();
        let line = fitting_line(prompt, images, h, settings.n_ctx)?;
        // A raw prompt may end with its picture; the last position is read always, for its logits.
        let n = prompt.n_to_last_image(h.n_queries).min(line.len() - 1);
        if n == 0 {
            return Ok(None);
        }
        let alpha = alpha(h, line.len());
        let read: Vec<Mark> = line[..n].iter().map(|place| place.mark()).collect();
        let mut hash = Sha256::new();
        hash.update(file.id()?);
        hash.update([u8::from(weights.repack)]);
        for (device, n_layers) in &weights.placed {
            hash.update(format!("{} {n_layers} ", device.name()));
        }
        for ty in [settings.type_k, settings.type_v] {
            hash.update(format!("{ty} "));
        }
        hash.update([u8::from(settings.flash == FlashAttention::On)]);
        // What devices rotate themselves differs in its last bits.
        hash.update([u8::from(settings.rope == Rope::Exact)]);
        // Batches of other sizes are summed in another order.
        let n_batch = settings.n_batch.clamp(1, n);
        hash.update((n_batch as u64).to_le_bytes());
        hash.update(alpha.to_le_bytes());
        for mark in &read {
            match mark {
                Mark::Token(id) => {
                    hash.update([0]);
                    hash.update(id.to_u32().to_le_bytes());
                }
                Mark::Row(id, row) => {
                    hash.update([1]);
                    hash.update(id);
                    hash.update(row.to_le_bytes());
                }
            }
        }
        let row_bytes = |ty: GgmlType| ty.row_bytes(h.n_embd as u64).unwrap_or(0);
        let rows = n as u64 * h.n_layer as u64 * (row_bytes(settings.type_k) + row_bytes(settings.type_v));
        // Beside them: three words a position and six a layer, and a head.
        let max_bytes = rows + 16 * n as u64 + 64 * h.n_layer as u64 + 256;
        Ok(Some(Prefix { id: hash.finalize().into(), alpha, read, max_bytes }))
    }

    /// Its name.
    pub fn id(&self) -> &PrefixId {
        &self.id
    }

    /// Its length in positions, at least 1.
    pub fn n_positions(&self) -> usize {
        self.read.len()
    }

    /// What its state takes at most, in bytes (0.5 MiB a position for the real model in f16); it takes hardly less.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }
}

impl Session<'_> {
    /// As [`prefill`](Self::prefill), but `prefix`, which is that of the prompt, is read by itself: logits are the same to the
    /// last bit whether it was there or not. Cost: one more pass over the weights where it was not.
    pub fn prefill_after(&mut self, prefix: &Prefix, prompt: &Prompt, images: &[Arc<Seen>]) -> Result<usize> {
        self.prefill_in_two(prompt, images, prefix.n_positions())
    }

    /// Goes on from what [`state_of`](Self::state_of) gave of an equal prefix. Errors: as [`resume`](Self::resume).
    pub fn resume_prefix(&mut self, prefix: &Prefix, state: &[u8]) -> Result<()> {
        self.resume(&Snapshot { alpha: prefix.alpha, read: prefix.read.clone(), state: state.into() })
    }

    /// What the cache holds of `prefix`, which was read; all behind it is forgotten. Errors: something else was read. Cost: a
    /// copy.
    pub fn state_of(&mut self, prefix: &Prefix) -> Result<Vec<u8>> {
        if self.alpha != prefix.alpha || !self.read.starts_with(&prefix.read) {
            return Err(Error::other("the beginning of the prompt is no longer there"));
        }
        self.read.truncate(prefix.n_positions());
        self.last = None;
        self.context.truncate(0, prefix.n_positions());
        self.context.state(0)
    }
}
