//! The adapter: one cross-attention from learned queries to all patches. Source: spec section 5.
//!
//! The queries' projection and what positions add to the keys are constant after training and were computed at
//! conversion, so only the patches pass through matrices here.

use crate::ggml::{Context, Tensor};

use super::VisionHparams;
use super::attention::attention;
use super::encoder::How;
use super::linear::Product;
use super::weights::Weights;

/// Cross-attention: `x` `[n_embd, n_patches]` to `[d_out, n_queries]`.
pub(super) fn cross_attention<'c>(
    c: &'c Context<'_>,
    h: &VisionHparams,
    w: &Weights<Tensor<'c>>,
    x: Tensor<'c>,
    how: How<'_>,
) -> Tensor<'c> {
    let (n_head, d_head) = (h.n_head_resampler, h.d_out / h.n_head_resampler);
    let kv = w.kv_proj.map_or(x, |kv_proj| Product::of(kv_proj).with(c, how.kernels, x));
    let k = Product::of(w.k).after_norm(w.ln_kv, h.eps).plus(w.k_position).with(c, how.kernels, kv);
    let v = Product::linear(w.v).after_norm(w.ln_kv, h.eps).with(c, how.kernels, kv);
    let [q, k, v] = [w.query, k, v].map(|t| c.view_heads(t, 0, d_head, n_head));
    Product::linear(w.out).with(c, how.kernels, attention(c, how, q, k, v))
}

/// What follows: `[d_out, n_queries]` to the embedding `[d_out, n_queries]`.
pub(super) fn project<'c>(
    c: &'c Context<'_>,
    h: &VisionHparams,
    w: &Weights<Tensor<'c>>,
    x: Tensor<'c>,
    how: How<'_>,
) -> Tensor<'c> {
    Product::of(w.proj).after_norm(w.ln_post, h.eps).with(c, how.kernels, x)
}
