//! Attention of prompts, 32 queries and more, over a cache in f16: by AMX, in the place of ggml's loops in f32.
//!
//! ggml's took a tenth of the time of a prompt of 300 tokens with the real model, and a quarter of one of 1500.

use std::slice;

use llama_cpp_sys_2 as sys;

use super::Kernels;
use super::amx::SIDE;
use super::hook::{Count, Params};
use super::many;
use super::tile_attention::{self, Digits, Float, Mask, Problem, Vectors};

/// Attentions that were computed here.
pub static COUNT: Count = Count::new();

/// What says that a node is planned to be computed here.
pub const MARK: i32 = 1;

/// Bytes that a thread takes for heads of `d` values and so many queries.
pub fn thread_bytes(d: usize, n_q: usize) -> usize {
    match many::chosen() {
        Kernels::Amx => tile_attention::bytes_of(Digits::Two, d, n_q),
        _ => 0,
    }
}

/// Whether it is to be computed here.
///
/// # Safety
/// `op` is a node of a graph that is planned.
pub unsafe fn is_planned(op: &sys::ggml_tensor) -> bool {
    // SAFETY: by this function's contract.
    many::chosen() == Kernels::Amx && unsafe { shapes(op) }.is_some()
}

/// This thread's part of a node that is marked.
///
/// # Safety
/// ggml computes the node with these parameters, [`is_planned`] has seen it, and all threads call this.
pub unsafe fn compute(op: &sys::ggml_tensor, params: &Params) -> bool {
    // SAFETY: by this function's contract: AMX is available; sources and the result are allocated; a query of a head belongs to the one thread that
    // took its share.
    unsafe {
        let Some([q, k, v, mask]) = shapes(op) else { return false };
        if params.ith == 0 {
            COUNT.add();
        }
        let [d, n_q, n_heads, n_streams] = q.ne.map(|n| n as usize);
        let n_threads = params.nth as usize;
        let problem = Problem {
            q: vectors(q, Float::F32),
            k: vectors(k, Float::F16),
            v: vectors(v, Float::F16),
            mask: Some(Mask {
                bytes: bytes(mask),
                strides: [mask.nb[1], if mask.ne[3] == 1 { 0 } else { mask.nb[3] }],
            }),
            d,
            n_heads,
            n_kv_heads: k.ne[2] as usize,
            n_streams,
            n_q,
            n_kv: k.ne[1] as usize,
            scale: f32::from_bits(op.op_params[SCALE] as u32),
            digits: Digits::Two,
        };
        params.wait();
        let shares = params.share(problem.n_shares(n_threads));
        let out = op.data.cast::<f32>();
        problem.attend(n_threads, shares, |vector| slice::from_raw_parts_mut(out.add(vector * d), d));
    }
    true
}

/// Where ggml has the parameters of an attention.
const SCALE: usize = 0;
const MAX_BIAS: usize = 1;
const SOFTCAP: usize = 2;

/// Queries, keys, values and mask, if their shapes and types are those of a prompt. Pictures are looked at without a mask, by kernels that their
/// graph has chosen.
///
/// # Safety
/// `op` is a node of a graph.
unsafe fn shapes(op: &sys::ggml_tensor) -> Option<[&sys::ggml_tensor; 4]> {
    if op.op != sys::GGML_OP_FLASH_ATTN_EXT || !op.src[4].is_null() {
        return None;
    }
    // SAFETY: by this function's contract, they are null or tensors.
    let [q, k, v, mask] = [0, 1, 2, 3].map(|i| unsafe { op.src[i].as_ref() });
    let (q, k, v, mask) = (q?, k?, v?, mask?);
    let is_plain = op.op_params[MAX_BIAS] == 0 && op.op_params[SOFTCAP] == 0;
    let is = |t: &sys::ggml_tensor, ty, n_bytes| t.type_ == ty && t.nb[0] == n_bytes;
    let (f32_bytes, f16_bytes) = (size_of::<f32>(), size_of::<half::f16>());
    let are_typed = is(q, sys::GGML_TYPE_F32, f32_bytes)
        && [k, v, mask].iter().all(|t| is(t, sys::GGML_TYPE_F16, f16_bytes))
        && is(op, sys::GGML_TYPE_F32, f32_bytes);
    let [d, n_q, n_heads, n_streams] = q.ne;
    let are_many = d > 0 && n_q >= SIDE as i64 && k.ne[1] > 0;
    // ggml has proven what its own functions make; a worker's graphs come from another machine.
    let fit = k.ne == v.ne
        && k.ne[0] == d
        && k.ne[3] == n_streams
        && k.ne[2] > 0
        && n_heads % k.ne[2] == 0
        && op.ne == [d, n_heads, n_q, n_streams]
        && mask.ne[0] >= k.ne[1]
        && mask.ne[1] >= n_q
        && mask.ne[2] == 1
        && (mask.ne[3] == 1 || mask.ne[3] == n_streams);
    let mut row_bytes = f32_bytes;
    let is_whole = op.ne.iter().zip(op.nb).all(|(n, bytes)| {
        let is_next = bytes == row_bytes;
        row_bytes = row_bytes.wrapping_mul(*n as usize);
        is_next
    });
    (is_plain && are_typed && are_many && fit && is_whole).then_some([q, k, v, mask])
}

/// All bytes of a tensor, its strides included.
///
/// # Safety
/// It is allocated.
unsafe fn bytes(t: &sys::ggml_tensor) -> &[u8] {
    // SAFETY: by this function's contract.
    unsafe { slice::from_raw_parts(t.data.cast(), sys::ggml_nbytes(t)) }
}

/// Those of `[d, position, head, stream]`.
///
/// # Safety
/// It is allocated.
unsafe fn vectors(t: &sys::ggml_tensor, ty: Float) -> Vectors<'_> {
    // SAFETY: by this function's contract.
    Vectors { bytes: unsafe { bytes(t) }, ty, strides: [t.nb[1], t.nb[2], t.nb[3]] }
}
