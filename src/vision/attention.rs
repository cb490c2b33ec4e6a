//! Attention without mask, shared by the transformer and the adapter.

use crate::ggml::{Context, Tensor};
use crate::kernels;
use crate::quant::GgmlType;

use super::Attention;
use super::encoder::How;

/// `q` `[d, n_head, n_q]`, `k` and `v` `[d, n_head, n_kv]`, f32, may be views. Returns `[d·n_head, n_q]`, heads in
/// order. Scores are divided by √d.
pub(super) fn attention<'c>(
    c: &'c Context<'_>,
    how: How<'_>,
    q: Tensor<'c>,
    k: Tensor<'c>,
    v: Tensor<'c>,
) -> Tensor<'c> {
    if how.attention == Attention::Flash && how.kernels.attend() {
        return kernels::attention(c, how.kernels, q, k, v);
    }
    let [d, n_head, n_q, _] = q.dims();
    let scale = 1.0 / (d as f32).sqrt();
    let width = how.backend.flash_width(d).filter(|_| how.attention == Attention::Flash);
    let Some(width) = width else {
        let [q, k] = [q, k].map(|t| c.permute(t, [0, 2, 1, 3]));
        let scores = c.mul_mat(k, q);
        let weights = c.soft_max(scores, scale);
        let v = c.cont(c.permute(v, [1, 2, 0, 3]));
        let heads = c.permute(c.mul_mat(v, weights), [0, 2, 1, 3]);
        return c.reshape_2d(c.cont(heads), d * n_head, n_q);
    };
    // GPUs have fused attention for some widths of heads only; zeros behind a head change neither scores nor sums.
    let widened = |t: Tensor<'c>| if width > d { c.pad(c.cont(t), width - d) } else { t };
    let [q, k, v] = [q, k, v].map(|t| c.permute(widened(t), [0, 2, 1, 3]));
    let [k, v] = [k, v].map(|t| c.cast(t, GgmlType::F16));
    let heads = c.flash_attn(q, k, v, scale);
    let heads = if width > d { c.cont(c.view_first(heads, d)) } else { heads };
    c.reshape_2d(heads, d * n_head, n_q)
}
