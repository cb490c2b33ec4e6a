//! The adapter: one cross-attention from learned queries to all patches. Source: spec section 5.
//!
//! The queries' projection and what positions add to the keys are constant after training and were computed at
//! conversion, so only the patches pass through matrices here.

use crate::ggml::{Context, Tensor};

use super::attention::attention;
use super::vit::{layer_norm, linear, product};
use super::weights::Weights;
use super::{Attention, VisionHparams};

/// Cross-attention: `x` `[n_embd, n_patches]` to `[d_out, n_queries]`.
pub(super) fn cross_attention<'c>(
    c: &'c Context<'_>,
    h: &VisionHparams,
    w: &Weights<Tensor<'c>>,
    x: Tensor<'c>,
    kind: Attention,
) -> Tensor<'c> {
    let (n_head, d_head) = (h.n_head_resampler, h.d_out / h.n_head_resampler);
    let projected = w.kv_proj.map_or(x, |kv_proj| product(c, kv_proj, x));
    let kv = layer_norm(c, w.ln_kv, projected, h.eps);
    let k = c.add(product(c, w.k, kv), w.k_position);
    let v = linear(c, w.v, kv);
    let [q, k, v] = [w.query, k, v].map(|t| c.view_heads(t, 0, d_head, n_head));
    linear(c, w.out, attention(c, kind, q, k, v))
}

/// What follows: `[d_out, n_queries]` to the embedding `[d_out, n_queries]`.
pub(super) fn project<'c>(c: &'c Context<'_>, h: &VisionHparams, w: &Weights<Tensor<'c>>, x: Tensor<'c>) -> Tensor<'c> {
    product(c, w.proj, layer_norm(c, w.ln_post, x, h.eps))
}
