//! Checkpoints of GPTQ with 4 bits, as AutoGPTQ packs them (Qwen-VL-Chat-Int4).
//!
//! A matrix of n_out rows and n_in columns is stored as `qweight` (n_in/8, n_out), whose word (i, o) holds the quants of
//! columns 8i..8i+8 of row o, lowest bits first; `scales` (n_groups, n_out); `qzeros` (n_groups, n_out/8), whose word
//! (g, i) holds zero − 1 of rows 8i..8i+8; and `g_idx` (n_in), the group of each column:
//! w[o, i] = scales[g_idx[i], o] · (q − zero). Source: AutoGPTQ 0.7.1, `nn_modules/qlinear/qlinear_cuda_old.py`.
//!
//! Where zero is 8 throughout, groups are whole runs of 32 columns in order and scales are f16, these are ggml's Q4_0 blocks
//! in another order of bits, and are kept [as they are](blocks).

mod blocks;
mod config;
mod look;

pub use blocks::{dequantise, repack};
pub use config::{Gptq, read};
pub use look::look;

use crate::mapping::{Holds, Source};

/// Quants a word of 32 bits.
pub const QUANTS_A_WORD: u64 = 8;

/// The modules of layer `il` that are quantised.
pub const MODULES: [&str; 5] = ["attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj"];

/// The one whose bias is real; those of the others are zeros that AutoGPTQ writes.
pub const WITH_BIAS: &str = "attn.c_attn";

/// The four tensors that stand for matrix `module` (n_out, n_in), in the order qweight, qzeros, scales, g_idx.
pub fn sources(module: &str, n_out: u64, n_in: u64, group_size: u64) -> Vec<Source> {
    let n_groups = n_in.div_ceil(group_size);
    let source =
        |part: &str, shape: &[u64], holds| Source { name: format!("{module}.{part}"), shape: shape.to_vec(), holds };
    vec![
        source("qweight", &[n_in / QUANTS_A_WORD, n_out], Holds::Ints),
        source("qzeros", &[n_groups, n_out / QUANTS_A_WORD], Holds::Ints),
        source("scales", &[n_groups, n_out], Holds::Floats),
        source("g_idx", &[n_in], Holds::Ints),
    ]
}
