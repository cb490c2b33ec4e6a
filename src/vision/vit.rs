//! The vision transformer: patches to `[n_embd, n_patches]`. Source: spec section 4; OpenCLIP ViT-bigG without class
//! token and final norm.

use crate::ggml::{Context, Tensor};

use super::VisionHparams;
use super::attention::attention;
use super::encoder::How;
use super::linear::{Product, layer_norm};
use super::weights::{Layer, Weights};

/// What comes before the layers: `patches` `[3·patch², n_patches]` to `[n_embd, n_patches]`.
pub(super) fn embed<'c>(
    c: &'c Context<'_>,
    h: &VisionHparams,
    w: &Weights<Tensor<'c>>,
    patches: Tensor<'c>,
) -> Tensor<'c> {
    let kernel = c.reshape_2d(w.patch_embd, 3 * h.patch_size * h.patch_size, h.n_embd);
    let x = c.add(c.mul_mat(kernel, patches), w.position_embd);
    layer_norm(c, w.pre_ln, x, h.eps)
}

/// One pre-norm layer on `[n_embd, n_patches]`.
pub(super) fn layer<'c>(
    c: &'c Context<'_>,
    h: &VisionHparams,
    w: &Layer<Tensor<'c>>,
    x: Tensor<'c>,
    how: How<'_>,
) -> Tensor<'c> {
    let d_head = h.n_embd / h.n_head;
    let qkv = Product::linear(w.qkv).after_norm(w.ln1, h.eps).with(c, how.kernels, x);
    let [q, k, v] = [0, 1, 2].map(|part| c.view_heads(qkv, part * h.n_embd, d_head, h.n_head));
    let x = Product::linear(w.out).plus(x).with(c, how.kernels, attention(c, how, q, k, v));
    let up = Product::linear(w.up).after_norm(w.ln2, h.eps).gelu();
    up.then(c, how.kernels, x, Product::linear(w.down).plus(x))
}
