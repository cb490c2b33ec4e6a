//! A context: KV cache and computation over a [`Model`].

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;

use llama_cpp_sys_2 as sys;

use super::rotation::{Hook, NO_ROTATION, Rotation, at_node};
use super::state::{Shape, prove};
use super::{Model, log};
use crate::error::{Error, ErrorKind, Result};
use crate::ggml::{OpCounts, WatchFn, c_type, is_set};
use crate::quant::GgmlType;

/// Whether attention is fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlashAttention {
    /// Matrix products and softmax, f32 where the cache is.
    Off,
    /// ggml's fused kernel; on the CPU it rounds keys and values to f16.
    On,
}

/// What a context is made for. Sizes are in tokens.
#[derive(Clone, Copy, Debug)]
pub struct ContextParams {
    /// Positions that the KV cache holds.
    pub n_ctx: usize,
    /// Most inputs of one [`Context::decode`].
    pub n_batch: usize,
    /// Inputs that pass over the weights together.
    pub n_ubatch: usize,
    /// Most logit rows of one [`Context::decode`].
    pub n_outputs: usize,
    /// Sequences, which share the positions.
    pub n_seqs: usize,
    /// Threads for one token, and for many.
    pub n_threads: usize,
    /// Element type of cached keys.
    pub type_k: GgmlType,
    /// Element type of cached values; a quantised one needs flash attention.
    pub type_v: GgmlType,
    /// Whether attention is fused.
    pub flash: FlashAttention,
}

/// One input of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A token id, smaller than the vocabulary.
    Token(u32),
    /// A row as wide as the model.
    Embedding(&'a [f32]),
}

/// A place in a batch: what is read, as which position of which sequence.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// What is read.
    pub input: Input<'a>,
    /// Sequence, smaller than [`ContextParams::n_seqs`].
    pub seq: usize,
    /// Position, one more than that of the sequence's last entry.
    pub position: usize,
    /// Whether its logits are wanted.
    pub output: Output,
}

/// Whether an entry gives logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// A row of logits.
    Logits,
    /// Nothing but its place in the cache.
    None,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// All of it was read.
    Done,
    /// Nothing of it was read: the KV cache has no room for it.
    Full,
}

/// A context over a model. Not to be used from several threads at once.
pub struct Context<'m> {
    ptr: NonNull<sys::llama_context>,
    batch: NonNull<sys::llama_batch_ext>,
    hook: *mut Hook,
    n_vocab: usize,
    n_embd: usize,
    n_batch: usize,
    n_outputs: usize,
    n_seqs: usize,
    shape: Shape,
    lifetime: PhantomData<(&'m Model, &'m AtomicBool)>,
}

impl<'m> Context<'m> {
    /// A context whose queries and keys are rotated by `rotation`. A computation ends early once `stop` is set. Errors: kind memory
    /// when buffers cannot be allocated, else what llama.cpp says.
    pub fn new(model: &'m Model, params: &ContextParams, stop: &'m AtomicBool, rotation: Rotation) -> Result<Self> {
        let stream = model.stream.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let hook = Box::into_raw(Box::new(Hook::new(stream, rotation)));
        // SAFETY: no arguments.
        let mut c = unsafe { sys::llama_context_default_params() };
        c.n_ctx = params.n_ctx as u32;
        c.n_batch = params.n_batch as u32;
        c.n_ubatch = params.n_ubatch as u32;
        c.n_outputs_max = params.n_outputs as u32;
        c.n_outputs_max_per_seq = params.n_outputs as u32;
        c.n_seq_max = params.n_seqs as u32;
        // One buffer for all, in which a common beginning is held once.
        c.kv_unified = true;
        c.n_threads = params.n_threads as i32;
        c.n_threads_batch = params.n_threads as i32;
        c.type_k = c_type(params.type_k);
        c.type_v = c_type(params.type_v);
        c.flash_attn_type = match params.flash {
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        };
        c.rope_scaling_type = sys::LLAMA_ROPE_SCALING_TYPE_LINEAR;
        c.rope_freq_scale = NO_ROTATION;
        c.yarn_ext_factor = 0.0;
        c.yarn_attn_factor = 1.0;
        c.cb_eval = Some(at_node);
        c.cb_eval_user_data = hook.cast();
        c.abort_callback = Some(is_set);
        c.abort_callback_data = std::ptr::from_ref(stop).cast_mut().cast();
        c.no_perf = true;
        log::take_last_error();
        // SAFETY: the model outlives the context ('m), as does `stop`; the hook is freed after the context (drop).
        let ptr = NonNull::new(unsafe { sys::llama_init_from_model(model.ptr.as_ptr(), c) });
        let Some(ptr) = ptr else {
            // SAFETY: made above; no context holds it.
            drop(unsafe { Box::from_raw(hook) });
            let reason = log::take_last_error();
            let message = format!("llama.cpp cannot make a context of {} tokens: {reason}", params.n_ctx);
            return Err(Error::memory(message));
        };
        let (mut adapters, mut scales): (Vec<_>, Vec<f32>) =
            model.adapters.iter().map(|(a, s)| (a.as_ptr(), *s)).unzip();
        // SAFETY: the context is valid, the adapters are of its model and live as long; both lists have this length, and are
        // copied.
        unsafe {
            sys::llama_set_adapters_lora(ptr.as_ptr(), adapters.as_mut_ptr(), adapters.len(), scales.as_mut_ptr())
        };
        // SAFETY: model and context are valid; a null batch is handled (and llama.cpp's `new` does not return one).
        let (batch, n_vocab, n_embd, n_layer) = unsafe {
            let vocab = sys::llama_model_get_vocab(model.ptr.as_ptr());
            let n_vocab = sys::llama_vocab_n_tokens(vocab) as usize;
            let n_embd = sys::llama_model_n_embd(model.ptr.as_ptr()) as usize;
            let n_layer = sys::llama_model_n_layer(model.ptr.as_ptr()) as usize;
            (NonNull::new(sys::llama_batch_ext_init(ptr.as_ptr())), n_vocab, n_embd, n_layer)
        };
        let batch = batch.ok_or_else(|| Error::memory("cannot allocate a batch"))?;
        let &ContextParams { n_batch, n_outputs, n_seqs, type_k, type_v, flash, .. } = params;
        let shape = Shape { n_layer, n_embd, type_k, type_v, is_transposed: flash == FlashAttention::Off };
        Ok(Context { ptr, batch, hook, n_vocab, n_embd, n_batch, n_outputs, n_seqs, shape, lifetime: PhantomData })
    }

    /// Replaces the rotation, for what is decoded from now on.
    pub fn set_rotation(&mut self, rotation: Rotation) {
        // SAFETY: the hook lives as long as the context; no computation is running, since `self` is borrowed mutably.
        unsafe { (*self.hook).rotation = rotation };
    }

    /// Shows what each weight is multiplied with to `watch`, in what is decoded from now on. The output matrix is among them.
    /// Cost: a stop at each weight.
    pub fn watch(&mut self, watch: Box<WatchFn>) {
        // SAFETY: as in `set_rotation`.
        unsafe { (*self.hook).watch = Some(watch) };
    }

    /// Counts, in what is decoded from now on, which operation ran on which device; [`take_ops`](Self::take_ops) tells.
    pub fn count_ops(&mut self) {
        // SAFETY: as in `set_rotation`.
        unsafe { (*self.hook).ops = Some(OpCounts::new()) };
    }

    /// What was counted since [`count_ops`](Self::count_ops).
    pub fn take_ops(&mut self) -> OpCounts {
        // SAFETY: as in `set_rotation`.
        unsafe { (*self.hook).ops.take().unwrap_or_default() }
    }

    /// Reads a batch, one pass over the weights each n_ubatch entries. Logits of the wanted entries are readable until the
    /// next call. Errors: kind interrupted when stopped.
    pub fn decode(&mut self, batch: &[Entry<'_>]) -> Result<Decoded> {
        let n_wanted = batch.iter().filter(|e| e.output == Output::Logits).count();
        assert!(!batch.is_empty() && batch.len() <= self.n_batch && n_wanted <= self.n_outputs, "batch size");
        batch.iter().try_for_each(|entry| self.add(entry))?;
        // SAFETY: context and batch are valid; the hook is ours and no computation is running.
        let status = unsafe {
            (*self.hook).expect(batch.iter().map(|entry| entry.position as i32));
            let (ctx, batch) = (self.ptr.as_ptr(), self.batch.as_ptr());
            let status = sys::llama_process(ctx, sys::LLAMA_PROCESS_TYPE_DECODE, batch);
            sys::llama_batch_ext_clear(batch);
            status
        };
        match status {
            // SAFETY: as above.
            0 if unsafe { (*self.hook).n_seen } == 0 => {
                Err(Error::other("this llama.cpp does not show its rotary nodes; qvl was built against another one"))
            }
            0 => Ok(Decoded::Done),
            1 => Ok(Decoded::Full),
            2 => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
            _ => Err(Error::other(format!("llama.cpp cannot decode (status {status}): {}", log::take_last_error()))),
        }
    }

    fn add(&mut self, entry: &Entry<'_>) -> Result<()> {
        assert!(entry.seq < self.n_seqs, "a sequence of this context");
        let (batch, seq, position) = (self.batch.as_ptr(), entry.seq as i32, entry.position as i32);
        // SAFETY: the batch is valid; tokens are in range and rows as wide as the model (asserted), copied by the call.
        let added = unsafe {
            let index = match entry.input {
                Input::Token(id) => {
                    assert!((id as usize) < self.n_vocab, "a token of the vocabulary");
                    sys::llama_batch_ext_add_token(batch, seq, id as i32)
                }
                Input::Embedding(row) => {
                    assert_eq!(row.len(), self.n_embd, "a row as wide as the model");
                    let embd = sys::llama_embd { data: row.as_ptr(), n_rows: 1, n_embd: row.len() };
                    sys::llama_batch_ext_add_embd(batch, seq, embd)
                }
            };
            index >= 0
                && sys::llama_batch_ext_set_pos(batch, index, &position)
                && (entry.output == Output::None || sys::llama_batch_ext_set_output_logits(batch, index, true))
        };
        added
            .then_some(())
            .ok_or_else(|| Error::other(format!("llama.cpp refused an input: {}", log::take_last_error())))
    }

    /// Logits of entry `index` of the last [`decode`](Self::decode), n_vocab values; `None` if they were not wanted.
    pub fn logits(&self, index: usize) -> Option<&[f32]> {
        // SAFETY: the context is valid; llama.cpp returns null for an index without logits, else n_vocab floats that
        // live until the next decode, which needs `&mut self`.
        unsafe {
            let row = sys::llama_get_logits_ith(self.ptr.as_ptr(), index as i32);
            (!row.is_null()).then(|| std::slice::from_raw_parts(row, self.n_vocab))
        }
    }

    /// Forgets the cached positions of a sequence from `n_past` on.
    pub fn truncate(&mut self, seq: usize, n_past: usize) {
        assert!(seq < self.n_seqs, "a sequence of this context");
        // SAFETY: the context and its memory are valid, and so is the sequence.
        unsafe {
            let memory = sys::llama_get_memory(self.ptr.as_ptr());
            sys::llama_memory_seq_rm(memory, seq as i32, n_past as i32, -1);
        }
    }

    /// Makes the first `n_past` positions of `from` those of `to`, which must be empty. Copies nothing: both hold the same
    /// cells from then on.
    pub fn share(&mut self, from: usize, to: usize, n_past: usize) {
        assert!(from < self.n_seqs && to < self.n_seqs && from != to, "two sequences of this context");
        // SAFETY: as in `truncate`.
        unsafe {
            let memory = sys::llama_get_memory(self.ptr.as_ptr());
            sys::llama_memory_seq_cp(memory, from as i32, to as i32, 0, n_past as i32);
        }
    }

    /// A copy of what the cache holds of a sequence, in llama.cpp's own format.
    pub fn state(&mut self, seq: usize) -> Result<Vec<u8>> {
        assert!(seq < self.n_seqs, "a sequence of this context");
        // SAFETY: the context is valid; the buffer has the size that llama.cpp asks for.
        unsafe {
            let n_bytes = sys::llama_state_seq_get_size(self.ptr.as_ptr(), seq as i32);
            let mut data = vec![0; n_bytes];
            let n_written = sys::llama_state_seq_get_data(self.ptr.as_ptr(), data.as_mut_ptr(), n_bytes, seq as i32);
            if n_written == 0 || n_written > n_bytes {
                return Err(Error::other(format!("llama.cpp cannot save its cache: {}", log::take_last_error())));
            }
            data.truncate(n_written);
            Ok(data)
        }
    }

    /// Puts back what [`state`](Self::state) gave when the sequence had `n_positions`, in a context of the same model, types
    /// and attention. The bytes may come from anywhere: they are proven first. Errors: they are no such state, or do not fit;
    /// the sequence is empty then.
    pub fn restore(&mut self, seq: usize, state: &[u8], n_positions: usize) -> Result<()> {
        self.truncate(seq, 0);
        prove(state, n_positions, &self.shape).map_err(|e| Error::other("not a state of this cache").because(e))?;
        // SAFETY: the context is valid; llama.cpp reads within the given length, of what was proven, and catches its own
        // exceptions.
        let n_read =
            unsafe { sys::llama_state_seq_set_data(self.ptr.as_ptr(), state.as_ptr(), state.len(), seq as i32) };
        if n_read != state.len() {
            self.truncate(seq, 0);
            return Err(Error::other(format!("llama.cpp cannot restore its cache: {}", log::take_last_error())));
        }
        Ok(())
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: all three were made by us and are not used again; the context goes before the hook that it calls.
        unsafe {
            sys::llama_batch_ext_free(self.batch.as_ptr());
            sys::llama_free(self.ptr.as_ptr());
            drop(Box::from_raw(self.hook));
        }
    }
}
