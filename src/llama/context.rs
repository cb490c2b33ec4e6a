//! A context: KV cache and computation over a [`Model`].

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;

use llama_cpp_sys_2 as sys;

use super::{Model, log};
use crate::error::{Error, ErrorKind, Result};
use crate::ggml::{c_type, is_set};
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
    /// Threads for one token, and for many.
    pub n_threads: usize,
    /// Element type of cached keys.
    pub type_k: GgmlType,
    /// Element type of cached values; a quantised one needs flash attention.
    pub type_v: GgmlType,
    /// Whether attention is fused.
    pub flash: FlashAttention,
}

/// Which rows a rotation callback sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotated {
    /// Queries.
    Queries,
    /// Keys, before they enter the cache.
    Keys,
}

/// Rows of one layer that want their rotary positions: `rows` is `[tokens][n_head][d_head]`, row-major f32.
pub struct RotatedRows<'a> {
    /// Queries or keys.
    pub which: Rotated,
    /// Position of each token.
    pub positions: &'a [i32],
    /// The values, rotated in place.
    pub rows: &'a mut [f32],
}

type RotateFn = dyn FnMut(RotatedRows<'_>);

struct Hook {
    rotate: Box<RotateFn>,
    positions: Vec<i32>,
    copy: Vec<f32>,
    n_seen: usize,
}

/// One input of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A token id, smaller than the vocabulary.
    Token(u32),
    /// A row as wide as the model.
    Embedding(&'a [f32]),
}

/// Which inputs give logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// The last one.
    Last,
    /// Every one.
    All,
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
    lifetime: PhantomData<(&'m Model, &'m AtomicBool)>,
}

/// Makes ggml's own rotation the identity in f32 (every angle is below 1e-25), without the 0 that means "default".
///
/// The exact rotation is done by the callback instead: ggml multiplies angles up iteratively in f32, which drifts by
/// 1e-4 at positions in the thousands, and its `qwen` graph has neither dynamic NTK nor logn attention.
const NO_ROTATION: f32 = 1e-30;

impl<'m> Context<'m> {
    /// A context whose queries and keys are rotated by `rotate`, called for each layer. A computation ends early once
    /// `stop` is set. Errors: kind memory when buffers cannot be allocated, else what llama.cpp says.
    pub fn new(
        model: &'m Model,
        params: &ContextParams,
        stop: &'m AtomicBool,
        rotate: impl FnMut(RotatedRows<'_>) + 'static,
    ) -> Result<Self> {
        let hook = Hook { rotate: Box::new(rotate), positions: Vec::new(), copy: Vec::new(), n_seen: 0 };
        let hook = Box::into_raw(Box::new(hook));
        // SAFETY: no arguments.
        let mut c = unsafe { sys::llama_context_default_params() };
        c.n_ctx = params.n_ctx as u32;
        c.n_batch = params.n_batch as u32;
        c.n_ubatch = params.n_ubatch as u32;
        c.n_outputs_max = params.n_outputs as u32;
        c.n_outputs_max_per_seq = params.n_outputs as u32;
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
        c.cb_eval = Some(after_rope);
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
        // SAFETY: model and context are valid; a null batch is handled (and llama.cpp's `new` does not return one).
        let (batch, n_vocab, n_embd) = unsafe {
            let vocab = sys::llama_model_get_vocab(model.ptr.as_ptr());
            let n_vocab = sys::llama_vocab_n_tokens(vocab) as usize;
            let n_embd = sys::llama_model_n_embd(model.ptr.as_ptr()) as usize;
            (NonNull::new(sys::llama_batch_ext_init(ptr.as_ptr())), n_vocab, n_embd)
        };
        let batch = batch.ok_or_else(|| Error::memory("cannot allocate a batch"))?;
        let (n_batch, n_outputs) = (params.n_batch, params.n_outputs);
        Ok(Context { ptr, batch, hook, n_vocab, n_embd, n_batch, n_outputs, lifetime: PhantomData })
    }

    /// Replaces the rotation, for what is decoded from now on.
    pub fn set_rotation(&mut self, rotate: impl FnMut(RotatedRows<'_>) + 'static) {
        // SAFETY: the hook lives as long as the context; no computation is running, since `self` is borrowed mutably.
        unsafe { (*self.hook).rotate = Box::new(rotate) };
    }

    /// Feeds `inputs` at positions `n_past ..`, one pass over the weights each n_ubatch of them. Logits of the wanted
    /// inputs are readable until the next call.
    ///
    /// Errors: kind interrupted when stopped, kind usage when the cache is full.
    pub fn decode(&mut self, inputs: &[Input<'_>], n_past: usize, outputs: Outputs) -> Result<()> {
        let n_wanted = if outputs == Outputs::All { inputs.len() } else { 1 };
        assert!(!inputs.is_empty() && inputs.len() <= self.n_batch && n_wanted <= self.n_outputs, "batch size");
        for (i, input) in inputs.iter().enumerate() {
            let wanted = outputs == Outputs::All || i + 1 == inputs.len();
            self.add(*input, (n_past + i) as i32, wanted)?;
        }
        // SAFETY: context and batch are valid; the hook's counter is ours and no computation is running.
        let status = unsafe {
            (*self.hook).n_seen = 0;
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
            0 => Ok(()),
            1 => Err(Error::usage("the context is full; use a larger one (-c)")),
            2 => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
            _ => Err(Error::other(format!("llama.cpp cannot decode (status {status}): {}", log::take_last_error()))),
        }
    }

    fn add(&mut self, input: Input<'_>, position: i32, wanted: bool) -> Result<()> {
        let batch = self.batch.as_ptr();
        // SAFETY: the batch is valid; tokens are in range and rows as wide as the model (asserted), copied by the call.
        let added = unsafe {
            let index = match input {
                Input::Token(id) => {
                    assert!((id as usize) < self.n_vocab, "a token of the vocabulary");
                    sys::llama_batch_ext_add_token(batch, 0, id as i32)
                }
                Input::Embedding(row) => {
                    assert_eq!(row.len(), self.n_embd, "a row as wide as the model");
                    let embd = sys::llama_embd { data: row.as_ptr(), n_rows: 1, n_embd: row.len() };
                    sys::llama_batch_ext_add_embd(batch, 0, embd)
                }
            };
            index >= 0
                && sys::llama_batch_ext_set_pos(batch, index, &position)
                && (!wanted || sys::llama_batch_ext_set_output_logits(batch, index, true))
        };
        added
            .then_some(())
            .ok_or_else(|| Error::other(format!("llama.cpp refused an input: {}", log::take_last_error())))
    }

    /// Logits of input `index` of the last [`decode`](Self::decode), n_vocab values; `None` if they were not wanted.
    pub fn logits(&self, index: usize) -> Option<&[f32]> {
        // SAFETY: the context is valid; llama.cpp returns null for an index without logits, else n_vocab floats that
        // live until the next decode, which needs `&mut self`.
        unsafe {
            let row = sys::llama_get_logits_ith(self.ptr.as_ptr(), index as i32);
            (!row.is_null()).then(|| std::slice::from_raw_parts(row, self.n_vocab))
        }
    }

    /// Forgets cached positions from `n_past` on.
    pub fn truncate(&mut self, n_past: usize) {
        // SAFETY: the context and its memory are valid; sequence 0 exists.
        unsafe {
            let memory = sys::llama_get_memory(self.ptr.as_ptr());
            sys::llama_memory_seq_rm(memory, 0, n_past as i32, -1);
        }
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

/// The scheduler's evaluation callback: asks to see each rotary node and rotates its rows once they are computed.
///
/// # Safety
/// Called by ggml's scheduler with a valid node and the `Hook` that was installed.
unsafe extern "C" fn after_rope(node: *mut sys::ggml_tensor, ask: bool, hook: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    let node_ref = unsafe { &*node };
    if node_ref.op != sys::GGML_OP_ROPE {
        return !ask;
    }
    if ask {
        return true;
    }
    // SAFETY: node names are terminated strings inside the node.
    let name = unsafe { CStr::from_ptr(node_ref.name.as_ptr()) }.to_bytes();
    let which = match name {
        _ if name.starts_with(b"Qcur-") => Rotated::Queries,
        _ if name.starts_with(b"Kcur-") => Rotated::Keys,
        _ => return true,
    };
    // SAFETY: the hook is ours, and nothing else uses it while a computation runs.
    let hook = unsafe { &mut *hook.cast::<Hook>() };
    let n_values = node_ref.ne.iter().product::<i64>() as usize;
    // SAFETY: src[1] of a rotary node is its i32 positions; the node is f32 and, as the result of an operation,
    // contiguous; both are computed. Host memory is rotated where it lies, other memory through a copy.
    unsafe {
        let positions = node_ref.src[1];
        hook.positions.resize(sys::ggml_nelements(positions) as usize, 0);
        let n_bytes = size_of_val(&hook.positions[..]);
        sys::ggml_backend_tensor_get(positions, hook.positions.as_mut_ptr().cast(), 0, n_bytes);
        hook.n_seen += 1;
        let Hook { rotate, positions, copy, .. } = hook;
        if sys::ggml_backend_buffer_is_host(node_ref.buffer) {
            let rows = std::slice::from_raw_parts_mut(node_ref.data.cast::<f32>(), n_values);
            rotate(RotatedRows { which, positions, rows });
        } else {
            copy.resize(n_values, 0.0);
            sys::ggml_backend_tensor_get(node, copy.as_mut_ptr().cast(), 0, n_values * size_of::<f32>());
            rotate(RotatedRows { which, positions, rows: copy });
            sys::ggml_backend_tensor_set(node, copy.as_ptr().cast(), 0, n_values * size_of::<f32>());
        }
    }
    true
}
