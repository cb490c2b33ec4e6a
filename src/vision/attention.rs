//! Attention without mask, shared by the transformer and the adapter.

use crate::ggml::{Context, Tensor};
use crate::kernels::{self, Kernels};
use crate::quant::GgmlType;

use super::Attention;

/// `q` `[d, n_head, n_q]`, `k` and `v` `[d, n_head, n_kv]`, f32, may be views. Returns `[d·n_head, n_q]`, heads in
/// order. Scores are divided by √d.
pub(super) fn attention<'c>(
    c: &'c Context<'_>,
    kind: Attention,
    how: Kernels,
    q: Tensor<'c>,
    k: Tensor<'c>,
    v: Tensor<'c>,
) -> Tensor<'c> {
    if kind == Attention::Flash && how.attend() {
        return kernels::attention(c, q, k, v);
    }
    let [d, n_head, n_q, _] = q.dims();
    let scale = 1.0 / (d as f32).sqrt();
    let q = c.permute(q, [0, 2, 1, 3]);
    let k = c.permute(k, [0, 2, 1, 3]);
    match kind {
        Attention::Exact => {
            let scores = c.mul_mat(k, q);
            let weights = c.soft_max(scores, scale);
            let v = c.cont(c.permute(v, [1, 2, 0, 3]));
            let heads = c.permute(c.mul_mat(v, weights), [0, 2, 1, 3]);
            c.reshape_2d(c.cont(heads), d * n_head, n_q)
        }
        Attention::Flash => {
            let k = c.cast(k, GgmlType::F16);
            let v = c.cast(c.permute(v, [0, 2, 1, 3]), GgmlType::F16);
            c.reshape_2d(c.flash_attn(q, k, v, scale), d * n_head, n_q)
        }
    }
}
