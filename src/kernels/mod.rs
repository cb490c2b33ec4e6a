//! Door 4: SIMD kernels of our own for the vision tower, run inside ggml's graphs. Knows no model.
//!
//! ggml multiplies most quantised types a column at a time. A picture is a thousand columns, so here a matrix is unpacked
//! once, 32 rows at a time, into what the CPU's dot-product instructions read, and multiplied with all of them:
//!
//! - [`columns`]: activations to 8 bits, LayerNorm before it if wanted;
//! - [`product`]: quantised weights times such columns, with bias, GELU and residual on the way out;
//! - [`attention`]: without mask, in bf16 with f32 sums.
//!
//! ggml's own operations are the fallback on every other CPU and for every other type, and the judge of correctness.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod columns;
mod panel;
#[cfg(target_arch = "x86_64")]
mod product;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use crate::ggml::{Context, Tensor};
use crate::quant::GgmlType;

/// Which kernels compute the vision tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// ggml's.
    Ggml,
    /// Ours for AVX-512 with VNNI and BF16.
    Avx512,
}

/// What a product does with its sums, in this order: adds the bias, applies GELU, adds the residual.
#[derive(Clone, Copy)]
pub struct Finish<'c> {
    /// `[m]`.
    pub bias: Option<Tensor<'c>>,
    /// GELU or nothing.
    pub activation: Activation,
    /// `[m, n]`.
    pub residual: Option<Tensor<'c>>,
}

/// What is applied to each value of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// GELU in its exact form.
    Gelu,
}

impl Kernels {
    /// The best that this CPU and system have. Cost: reads what the standard library has cached.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Self {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512bf16");
        if has { Kernels::Avx512 } else { Kernels::Ggml }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Self {
        Kernels::Ggml
    }

    /// Its name in flags and reports.
    pub fn name(self) -> &'static str {
        match self {
            Kernels::Ggml => "ggml",
            Kernels::Avx512 => "avx512",
        }
    }

    /// Whether these kernels, and not ggml's, multiply weights of this type.
    pub fn multiply(self, ty: GgmlType) -> bool {
        self != Kernels::Ggml && panel::Form::of(ty).is_some()
    }
}

/// `x` `[k, n]` rounded to 8 bits, as [`product`] takes it; normalised before by LayerNorm with (weight, bias) and eps, if given.
#[cfg(target_arch = "x86_64")]
pub fn columns<'c>(c: &'c Context<'_>, x: Tensor<'c>, norm: Option<([Tensor<'c>; 2], f32)>) -> Tensor<'c> {
    product::columns(c, x, norm)
}

/// Weights `w` `[≥ k, m]` of a type that [`Kernels::multiply`] names, times [`columns`] of `[k, n]`: `[m, n]`, f32.
#[cfg(target_arch = "x86_64")]
pub fn product<'c>(
    c: &'c Context<'_>,
    w: Tensor<'c>,
    columns: Tensor<'c>,
    n_columns: usize,
    finish: Finish<'c>,
) -> Tensor<'c> {
    product::product(c, w, columns, n_columns, finish)
}

/// softmax(qᵀk / √d) v: `q` `[d, n_head, n_q]`, `k` and `v` `[d, n_head, n_kv]`, f32, views of contiguous rows; gives
/// `[d·n_head, n_q]`. Rounds q, k, v and the weights to bf16: about 0.4 % of an output.
#[cfg(target_arch = "x86_64")]
pub fn attention<'c>(c: &'c Context<'_>, q: Tensor<'c>, k: Tensor<'c>, v: Tensor<'c>) -> Tensor<'c> {
    attention::attention(c, q, k, v)
}

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(not(target_arch = "x86_64"))]
pub use absent::{attention, columns, product};
