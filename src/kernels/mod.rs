//! Door 4: SIMD kernels of our own, run by ggml's threads inside its graphs. Knows no model.
//!
//! The vision tower's: ggml multiplies most quantised types a column at a time. A picture is a thousand columns, so here a matrix is unpacked
//! once, 32 rows at a time, into what the CPU's dot-product instructions read, and multiplied with all of them:
//!
//! - [`columns`]: activations to 8 bits, LayerNorm before it if wanted;
//! - [`product`]: quantised weights times such columns, with bias, GELU and residual on the way out; [`product_columns`] gives columns again;
//! - [`attention`]: without mask, in bf16 with f32 sums.
//!
//! And for text, in the place of ggml's (`hook`), on x86-64 Linux: weights times one column, for decoding, `row` multiplies at the speed of
//! memory; times two to seven, `few` unpacks a row once for all; and prompts, eight columns and more, go through the vision tower's
//! kernels (`many`). With AMX, attention of 32 queries and more is ours, too (`prompt_attention`).
//!
//! ggml's own operations are the fallback on every other CPU and for every other type, and the judge of correctness.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod columns;
#[cfg(text_kernels)]
mod few;
#[cfg(text_kernels)]
mod hook;
#[cfg(text_kernels)]
mod many;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panel;
mod portable;
mod product;
#[cfg(text_kernels)]
mod prompt_attention;
#[cfg(text_kernels)]
mod row;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile_attention;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod unpack;

use crate::ggml::Tensor;
use crate::quant::GgmlType;

/// Which kernels compute the vision tower, or read prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// ggml's.
    Ggml,
    /// Our products for AVX-VNNI, ggml's attention.
    AvxVnni,
    /// Ours for AVX-512 with VNNI and BF16.
    Avx512,
    /// Ours for AMX with BF16, the rest by those for AVX-512.
    Amx,
    /// Our products for NEON with dot products, ggml's attention.
    Dotprod,
    /// Our products for NEON with int8 matrix products, ggml's attention.
    I8mm,
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

/// Rows of a tile of a product by columns, `[column][row]`.
type Tile = [[f32; panel::ROWS]; columns::COLUMNS];

/// The inner loops of products. What CPU they need, [`Kernels::is_available`] has seen.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
struct Inner {
    /// Sums over all blocks of a panel times those of a group of columns.
    int8_tile: unsafe fn(panel::Form, &[panel::PanelBlock], &[columns::ColumnBlock]) -> Tile,
    /// 32 values times 127 / their largest magnitude, rounded to even; and the scale that undoes it. Zeros below
    /// [`columns::SMALLEST`].
    to_int8: unsafe fn(&[f32; panel::DEPTH]) -> ([i8; panel::DEPTH], f32),
    /// x · Φ(x).
    gelu: unsafe fn(&mut [[f32; panel::ROWS]]),
    /// So many dot-product instructions in registers: how many operations they were.
    peak: unsafe fn(u64) -> u64,
}

impl Kernels {
    /// All.
    pub const ALL: [Self; 6] =
        [Kernels::Ggml, Kernels::AvxVnni, Kernels::Avx512, Kernels::Amx, Kernels::Dotprod, Kernels::I8mm];

    /// What `auto` takes. Not [`Kernels::AvxVnni`] yet: nobody has measured them on a CPU that has nothing wider, and with them the
    /// demo model reads 154 of 180 words in 8 bits, where its test wants 155. Cost: reads what is cached.
    pub fn detect() -> Self {
        let best = [Kernels::Amx, Kernels::Avx512].into_iter().find(|kernels| kernels.is_available());
        best.unwrap_or(Kernels::Ggml)
    }

    /// Whether this CPU, and the system on it, have what they need.
    pub fn is_available(self) -> bool {
        match self {
            Kernels::Ggml => true,
            #[cfg(target_arch = "x86_64")]
            Kernels::AvxVnni => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("avxvnni")
            }
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Kernels::Amx => Kernels::Avx512.is_available() && amx::is_available(),
            #[cfg(target_arch = "aarch64")]
            Kernels::Dotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Kernels::I8mm => std::arch::is_aarch64_feature_detected!("i8mm"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Its name in flags and reports.
    pub fn name(self) -> &'static str {
        match self {
            Kernels::Ggml => "ggml",
            Kernels::AvxVnni => "avxvnni",
            Kernels::Avx512 => "avx512",
            Kernels::Amx => "amx",
            Kernels::Dotprod => "dotprod",
            Kernels::I8mm => "i8mm",
        }
    }

    /// Runs about `n` of their dot-product instructions (a multiplication of tiles counting as 16) on one core, with nothing in between,
    /// and says how many multiplications and additions that were: what they could reach at most. Panics where they are not available.
    pub fn peak(self, n: u64) -> Option<u64> {
        assert!(self.is_available(), "{self:?} on another CPU");
        // SAFETY: they are available.
        self.inner().map(|inner| unsafe { (inner.peak)(n) })
    }

    /// Whether [`attention`] is theirs, and not ggml's.
    pub fn attend(self) -> bool {
        matches!(self, Kernels::Avx512 | Kernels::Amx)
    }

    /// None for ggml's, and for those of another architecture.
    fn inner(self) -> Option<&'static Inner> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernels::AvxVnni => {
                use avxvnni::{gelu, int8_tile, peak, to_int8};
                Some(&Inner { int8_tile, to_int8, gelu, peak })
            }
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512 => {
                use avx512::{gelu, int8_tile, peak, to_int8};
                Some(&Inner { int8_tile, to_int8, gelu, peak })
            }
            // Its products are those of `tiles`.
            #[cfg(target_arch = "x86_64")]
            Kernels::Amx => {
                use {amx::peak, avx512::gelu, avx512::int8_tile, avx512::to_int8};
                Some(&Inner { int8_tile, to_int8, gelu, peak })
            }
            #[cfg(target_arch = "aarch64")]
            Kernels::Dotprod => {
                use {neon::dotprod::*, portable::*};
                Some(&Inner { int8_tile, to_int8, gelu, peak })
            }
            #[cfg(target_arch = "aarch64")]
            Kernels::I8mm => {
                use {neon::i8mm::*, portable::*};
                Some(&Inner { int8_tile, to_int8, gelu, peak })
            }
            _ => None,
        }
    }

    /// Whether these kernels, and not ggml's, multiply weights of this type.
    pub fn multiply(self, ty: GgmlType) -> bool {
        self != Kernels::Ggml && panel::Form::of(ty).is_some()
    }
}

/// Lets ggml ask for kernels of ours before it computes a product of a text model. `of_kinds` is its function that lists kinds of buffers.
///
/// # Safety
/// ggml is loaded, and nothing computes a graph yet.
pub(crate) unsafe fn install(of_kinds: *mut std::ffi::c_void) {
    #[cfg(text_kernels)]
    // SAFETY: by this function's contract.
    unsafe {
        hook::install(of_kinds);
    }
    #[cfg(not(text_kernels))]
    let _ = of_kinds;
}

/// Whether weights of this type are multiplied with one column by a kernel of ours: on x86-64 Linux, on CPUs with AVX2.
pub fn multiplies_rows(ty: GgmlType) -> bool {
    crate::ggml::load_backends();
    #[cfg(text_kernels)]
    return hook::is_installed() && row::multiplies(ty);
    #[cfg(not(text_kernels))]
    {
        let _ = ty;
        false
    }
}

/// How many products with one column were computed by kernels of ours so far. For tests.
pub fn row_count() -> usize {
    #[cfg(text_kernels)]
    return row::COUNT.get();
    #[cfg(not(text_kernels))]
    0
}

/// As [`row_count`], of products of K-quants with two to seven columns, which ggml computes a column at a time: on x86-64 Linux, on CPUs
/// with AVX-512 VNNI.
pub fn few_columns_count() -> usize {
    #[cfg(text_kernels)]
    return few::COUNT.get();
    #[cfg(not(text_kernels))]
    0
}

/// Sets which kernels read prompts: multiply quantised weights of a text model with eight and more columns, and attend, in this whole process and for all graphs that
/// are planned from now on: those of [`Kernels::detect`] unless this says otherwise. Nothing where such products are ggml's in any case
/// ([`multiplies_many_columns`]). Panics where they are not available.
pub fn set_prompt_kernels(kernels: Kernels) {
    #[cfg(text_kernels)]
    many::set(kernels);
    #[cfg(not(text_kernels))]
    let _ = kernels;
}

/// What reading a prompt takes beside results, in bytes, by the kernels that are set now.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptRoom {
    /// Columns as products read them; none where ggml plans them.
    pub columns: Option<usize>,
    /// What each thread has while it computes.
    pub a_thread: usize,
}

/// That of a prompt of `n_columns` tokens: of products with quantised matrices, `[k, rows]` being the most of each, if there are any, and of
/// attention with heads of so many values, if its cache is in f16.
pub fn prompt_room(
    matrices: Option<[usize; 2]>,
    heads: Option<usize>,
    n_columns: usize,
    n_threads: usize,
) -> PromptRoom {
    #[cfg(text_kernels)]
    if multiplies_many_columns() {
        let products = matrices.and_then(|[k, n_rows]| many::room([k, n_rows, n_columns], n_threads));
        let attention = heads.map_or(0, |d| prompt_attention::thread_bytes(d, n_columns));
        let (columns, a_thread) = products.map_or((None, 0), |(columns, a_thread)| (Some(columns), a_thread));
        return PromptRoom { columns, a_thread: a_thread.max(attention) };
    }
    let _ = (matrices, heads, n_columns, n_threads);
    PromptRoom::default()
}

/// Whether kernels of ours may multiply with many columns: on x86-64 Linux.
pub fn multiplies_many_columns() -> bool {
    crate::ggml::load_backends();
    #[cfg(text_kernels)]
    return hook::is_installed();
    #[cfg(not(text_kernels))]
    false
}

/// As [`row_count`], of products with many columns, of any quantised type: those of prompts.
pub fn many_columns_count() -> usize {
    #[cfg(text_kernels)]
    return many::COUNT.get();
    #[cfg(not(text_kernels))]
    0
}

/// As [`row_count`], of attention over prompts: on x86-64 Linux, on CPUs with AMX.
pub fn prompt_attention_count() -> usize {
    #[cfg(text_kernels)]
    return prompt_attention::COUNT.get();
    #[cfg(not(text_kernels))]
    0
}

/// Whether products with few columns are ours, on this CPU.
pub fn multiplies_few_columns() -> bool {
    crate::ggml::load_backends();
    #[cfg(text_kernels)]
    return hook::is_installed() && few::is_available();
    #[cfg(not(text_kernels))]
    false
}

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(not(target_arch = "x86_64"))]
pub use absent::attention;
#[cfg(target_arch = "x86_64")]
pub use attention::attention;
pub use product::{columns, product, product_columns};
