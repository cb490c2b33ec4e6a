//! The vision transformer: patches to `[n_embd, n_patches]`. Source: spec section 4; OpenCLIP ViT-bigG without class
//! token and final norm.

use crate::ggml::{Context, Tensor};

use super::attention::attention;
use super::weights::{Layer, Weights};
use super::{Attention, VisionHparams};

/// `w·x`. Where the converter has put zeros behind the rows of `w`, to fill blocks of its type, `x` gets as many.
pub(super) fn product<'c>(c: &'c Context<'_>, w: Tensor<'c>, x: Tensor<'c>) -> Tensor<'c> {
    let padding = w.dims()[0] - x.dims()[0];
    let x = if padding > 0 { c.pad(x, padding) } else { x };
    c.mul_mat(w, x)
}

/// `w·x + b`, `w` being (weight, bias).
pub(super) fn linear<'c>(c: &'c Context<'_>, w: [Tensor<'c>; 2], x: Tensor<'c>) -> Tensor<'c> {
    c.add(product(c, w[0], x), w[1])
}

/// LayerNorm along ne0, `w` being (weight, bias).
pub(super) fn layer_norm<'c>(c: &'c Context<'_>, w: [Tensor<'c>; 2], x: Tensor<'c>, eps: f32) -> Tensor<'c> {
    c.add(c.mul(c.norm(x, eps), w[0]), w[1])
}

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
    kind: Attention,
) -> Tensor<'c> {
    let d_head = h.n_embd / h.n_head;
    let qkv = linear(c, w.qkv, layer_norm(c, w.ln1, x, h.eps));
    let [q, k, v] = [0, 1, 2].map(|part| c.view_heads(qkv, part * h.n_embd, d_head, h.n_head));
    let x = c.add(x, linear(c, w.out, attention(c, kind, q, k, v)));
    let up = linear(c, w.up, layer_norm(c, w.ln2, x, h.eps));
    c.add(x, linear(c, w.down, c.gelu_erf(up)))
}
