//! Door 5: quantisers of our own, with the bytes of ggml's.
//!
//! ggml quantises a value after the other, and its K-quants try some twenty scales for each block of 32. Here 32 blocks lie side by side
//! in the lanes of SIMD registers, and every lane does what ggml does, in its order: the same bits by construction, several times as fast.
//!
//! - `lanes`: registers, AVX2's and AVX-512's;
//! - `fit`: the search for scale and minimum of a block;
//! - `superblocks`, `blocks`, `iq4`: the types made of these.
//!
//! ggml is what every other CPU and type takes, and the judge in the tests. Its own file of quantisers is compiled for plain x86-64, so that
//! none of its products and sums are fused; where compilers fuse by themselves, as on ARM, lanes would have to as well.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod fit;
#[cfg(target_arch = "x86_64")]
mod halves;
#[cfg(target_arch = "x86_64")]
mod iq4;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod superblocks;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::ggml;
use crate::quant::GgmlType;

/// Quantises `values`, whole rows of `n_per_row` finite values, into `out`, to the bytes of [`ggml::quantize_rows`], whose contract this is.
/// Cost: one pass, no allocation to speak of; safe to call from several threads.
///
/// # Panics
/// If the lengths do not fit together or the type cannot hold such rows.
pub fn quantise_rows(ty: GgmlType, values: &[f32], n_per_row: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if x86::quantise_rows(x86::Level::detect(), ty, values, n_per_row, importance, out) {
        return;
    }
    ggml::quantize_rows(ty, values, n_per_row, importance, out);
}
