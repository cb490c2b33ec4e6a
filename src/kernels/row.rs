//! Weights times one column, for decoding: ggml's own sums for AVX2, bit by bit, at the speed of memory.
//!
//! What a token takes is the time in which all weights come from memory, and ggml's loops wait for them: a core asks for
//! memory only as far as it sees ahead, and its prefetchers stop at the end of a page. Here every block asks for what comes
//! [`AHEAD`] bytes behind it, spread over the work, since a core has few such requests open at a time.
//!
//! Each kernel sums in the order of ggml's (`arch/x86/quants.c`), so that no answer changes; tests hold them against those
//! (`tests/it/rows.rs`). The work buffer is the one that ggml plans for its own way, with a column of the same type in it.
//!
//! No closures and no `map` on registers here: the compiler does not inline those into functions with features of their own.

use std::arch::x86_64::*;
use std::ops::Range;
use std::slice;

use llama_cpp_sys_2 as sys;

use super::hook::{self, Count, Node, Params};
use crate::quant::GgmlType;

/// How far ahead weights are asked for: a page. Half of it or twice as much serve as well.
const AHEAD: usize = 4096;
/// Rows that a thread takes at once.
const ROWS: usize = 32;

/// Bytes of ggml's blocks of 256 values of a column: f32 scale, 256 × i8, sixteen i16 sums of 16.
pub const Q8_K: usize = 4 + 256 + 32;
/// Bytes of its blocks of 32: f16 scale, 32 × i8.
const Q8_0: usize = 2 + 32;

/// Products that were computed here.
pub static COUNT: Count = Count::new();

/// Whether rows of this type are multiplied here, on this CPU.
pub fn multiplies(ty: GgmlType) -> bool {
    use GgmlType::{Q4_0, Q4_K, Q5_K, Q6_K, Q8_0};
    matches!(ty, Q4_0 | Q8_0 | Q4_K | Q5_K | Q6_K)
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// A product that is ours.
pub struct Product<'a> {
    node: &'a Node,
    n_blocks: usize,
    /// ggml's type of a column for these weights, and bytes of its blocks.
    column_type: sys::ggml_type,
    column_bytes: usize,
    column: *mut u8,
}

impl<'a> Product<'a> {
    /// That of a node, if it is one, with `params`.
    pub fn of(node: &'a Node, params: &Params) -> Option<Self> {
        if node.n_columns != 1 || !multiplies(node.ty) {
            return None;
        }
        let (column_type, column_bytes) = match node.ty.block_size() {
            32 => (sys::GGML_TYPE_Q8_0, Q8_0),
            _ => (sys::GGML_TYPE_Q8_K, Q8_K),
        };
        let n_blocks = node.k / node.ty.block_size() as usize;
        let is_planned = params.wsize >= n_blocks * column_bytes;
        is_planned.then_some(Product { node, n_blocks, column_type, column_bytes, column: params.wdata.cast() })
    }

    /// This thread's part.
    ///
    /// # Safety
    /// [`Product::of`] has made it from these; all threads call it.
    pub unsafe fn compute(&self, params: &Params) {
        let (ith, nth) = (params.ith as usize, params.nth as usize);
        let part = ith * self.n_blocks / nth..(ith + 1) * self.n_blocks / nth;
        let n_values = self.node.k / self.n_blocks;
        // SAFETY: the column has n_blocks blocks, and the work buffer has room for them; every thread writes those of its part only, and all
        // wait for all before they are read. Rows belong to the thread that took them. The CPU has the features.
        unsafe {
            let from = self.node.x.cast::<f32>().add(part.start * n_values);
            let to = self.column.add(part.start * self.column_bytes);
            hook::round(self.column_type, from, to.cast(), part.len() * n_values);
            if ith == 0 {
                COUNT.add();
            }
            params.wait();
            for chunk in params.share(self.node.n_rows.div_ceil(ROWS)) {
                self.multiply(chunk * ROWS..self.node.n_rows.min((chunk + 1) * ROWS));
            }
        }
    }

    /// `rows` times the column.
    ///
    /// # Safety
    /// The type is ours; the column is packed; no other thread has these rows.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn multiply(&self, rows: Range<usize>) {
        macro_rules! by {
            ($kernel:ident) => {
                for row in rows {
                    // SAFETY: a row of the weights and the column have n_blocks blocks each, and this row of the result is this thread's.
                    unsafe {
                        let x = self.node.w.add(row * self.node.w_stride);
                        let x = slice::from_raw_parts(x.cast(), self.n_blocks);
                        let y = slice::from_raw_parts(self.column.cast(), self.n_blocks);
                        self.node.out.cast::<f32>().add(row).write($kernel(x, y));
                    }
                }
            };
        }
        match self.node.ty {
            GgmlType::Q4_0 => by!(q4_0),
            GgmlType::Q8_0 => by!(q8_0),
            GgmlType::Q4_K => by!(q4_k),
            GgmlType::Q5_K => by!(q5_k),
            GgmlType::Q6_K => by!(q6_k),
            _ => {}
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q4_0(x: &[[u8; 18]], y: &[[u8; 34]]) -> f32 {
    let mut sum = _mm256_setzero_ps();
    for (x, y) in x.iter().zip(y) {
        ask(x);
        let bytes = load_128(x, 2);
        let nibbles = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes), _mm256_set1_epi8(15));
        let values = _mm256_sub_epi8(nibbles, _mm256_set1_epi8(8));
        sum = _mm256_fmadd_ps(_mm256_set1_ps(half(x, 0) * half(y, 0)), signed_dot(values, load(y, 2)), sum);
    }
    total(sum)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q8_0(x: &[[u8; 34]], y: &[[u8; 34]]) -> f32 {
    let mut sum = _mm256_setzero_ps();
    for (x, y) in x.iter().zip(y) {
        ask(x);
        sum = _mm256_fmadd_ps(_mm256_set1_ps(half(x, 0) * half(y, 0)), signed_dot(load(x, 2), load(y, 2)), sum);
    }
    total(sum)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q4_k(x: &[[u8; 144]], y: &[[u8; Q8_K]]) -> f32 {
    let (mut sum, mut offsets) = (_mm256_setzero_ps(), _mm_setzero_ps());
    let low = _mm256_set1_epi8(15);
    for (x, y) in x.iter().zip(y) {
        ask(x);
        let d = float(y, 0);
        let (scales, mins) = scales_and_mins(x);
        let offset = _mm_cvtepi32_ps(_mm_madd_epi16(mins, sums_of_32(y)));
        offsets = _mm_fmadd_ps(_mm_set1_ps(-d * half(x, 2)), offset, offsets);
        let mut ints = _mm256_setzero_si256();
        for j in 0..4 {
            let quads = load(x, 16 + 32 * j);
            let first = _mm256_maddubs_epi16(_mm256_and_si256(quads, low), load(y, 4 + 64 * j));
            let second = _mm256_and_si256(_mm256_srli_epi16::<4>(quads), low);
            let second = _mm256_maddubs_epi16(second, load(y, 36 + 64 * j));
            ints = _mm256_add_epi32(ints, scaled(scales, j, first, second));
        }
        sum = _mm256_fmadd_ps(_mm256_set1_ps(d * half(x, 0)), _mm256_cvtepi32_ps(ints), sum);
    }
    let offsets = _mm_add_ps(offsets, _mm_movehl_ps(offsets, offsets));
    total(sum) + _mm_cvtss_f32(_mm_add_ss(offsets, _mm_movehdup_ps(offsets)))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q5_k(x: &[[u8; 176]], y: &[[u8; Q8_K]]) -> f32 {
    let (mut sum, mut offsets) = (_mm256_setzero_ps(), 0.0f32);
    let (low, one, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(1), _mm256_set1_epi8(2));
    for (x, y) in x.iter().zip(y) {
        ask(x);
        let d = float(y, 0);
        let (scales, mins) = scales_and_mins(x);
        let offset = _mm_madd_epi16(mins, sums_of_32(y));
        let offset = _mm_hadd_epi32(offset, offset);
        let offset = _mm_cvtsi128_si32(_mm_hadd_epi32(offset, offset));
        offsets = (-d * half(x, 2)).mul_add(offset as f32, offsets);
        let mut high = load(x, 16);
        let mut ints = _mm256_setzero_si256();
        for j in 0..4 {
            let quads = load(x, 48 + 32 * j);
            let fifth = _mm256_slli_epi16::<4>(_mm256_and_si256(high, one));
            let first = _mm256_or_si256(_mm256_and_si256(quads, low), fifth);
            let fifth = _mm256_slli_epi16::<3>(_mm256_and_si256(high, two));
            let second = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<4>(quads), low), fifth);
            high = _mm256_srli_epi16::<2>(high);
            let first = _mm256_maddubs_epi16(first, load(y, 4 + 64 * j));
            let second = _mm256_maddubs_epi16(second, load(y, 36 + 64 * j));
            ints = _mm256_add_epi32(ints, scaled(scales, j, first, second));
        }
        sum = _mm256_fmadd_ps(_mm256_set1_ps(d * half(x, 0)), _mm256_cvtepi32_ps(ints), sum);
    }
    total(sum) + offsets
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q6_k(x: &[[u8; 210]], y: &[[u8; Q8_K]]) -> f32 {
    let mut sum = _mm256_setzero_ps();
    let (low, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(48));
    for (x, y) in x.iter().zip(y) {
        ask(x);
        let scales = _mm256_cvtepi8_epi16(load_128(x, 192));
        // Values are stored 32 too large: 32 times the sums of a column's 16, each times its scale.
        let zero = _mm256_slli_epi32::<5>(_mm256_madd_epi16(load(y, 260), scales));
        let mut ints = _mm256_sub_epi32(_mm256_setzero_si256(), zero);
        for j in 0..2 {
            let (a, b, high) = (load(x, 64 * j), load(x, 64 * j + 32), load(x, 128 + 32 * j));
            let quarters = [
                _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(_mm256_slli_epi16::<4>(high), two)),
                _mm256_or_si256(_mm256_and_si256(b, low), _mm256_and_si256(_mm256_slli_epi16::<2>(high), two)),
                _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<4>(a), low), _mm256_and_si256(high, two)),
                _mm256_or_si256(
                    _mm256_and_si256(_mm256_srli_epi16::<4>(b), low),
                    _mm256_and_si256(_mm256_srli_epi16::<2>(high), two),
                ),
            ];
            let scales = load_128(x, 192 + 8 * j);
            for (i, quarter) in quarters.into_iter().enumerate() {
                let products = _mm256_maddubs_epi16(quarter, load(y, 4 + 128 * j + 32 * i));
                // The scale of 16 values in eight lanes of the lower half, the next one in the upper.
                let lanes = _mm_set_epi64x(0x0101_0101_0101_0101, 0);
                let scale = _mm_shuffle_epi8(scales, _mm_add_epi8(lanes, _mm_set1_epi8(2 * i as i8)));
                ints = _mm256_add_epi32(ints, _mm256_madd_epi16(_mm256_cvtepi8_epi16(scale), products));
            }
        }
        sum = _mm256_fmadd_ps(_mm256_set1_ps(float(y, 0) * half(x, 208)), _mm256_cvtepi32_ps(ints), sum);
    }
    total(sum)
}

/// Asks for the lines that lie [`AHEAD`] of a block. Never faults, wherever that is.
#[inline(always)]
pub fn ask<const N: usize>(x: &[u8; N]) {
    for at in (0..N).step_by(64) {
        // SAFETY: SSE is part of x86-64; a hint about an address is no access to it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(AHEAD + at).cast()) };
    }
}

/// 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub fn load<const N: usize>(bytes: &[u8; N], at: usize) -> __m256i {
    debug_assert!(at + 32 <= N);
    // SAFETY: inside the block: callers count from its layout.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) }
}

/// 16 bytes; of a block's last 8, they are those and the 8 behind them in it.
#[inline]
#[target_feature(enable = "avx2")]
pub fn load_128<const N: usize>(bytes: &[u8; N], at: usize) -> __m128i {
    debug_assert!(at + 16 <= N);
    // SAFETY: inside the block: callers count from its layout.
    unsafe { _mm_loadu_si128(bytes.as_ptr().add(at).cast()) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub fn half<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes([block[at], block[at + 1]])))))
}

#[inline(always)]
fn word<const N: usize>(block: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline(always)]
pub fn float<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    f32::from_bits(word(block, at))
}

/// Sums of four products of signed bytes, as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn signed_dot(x: __m256i, y: __m256i) -> __m256 {
    let products = _mm256_maddubs_epi16(_mm256_sign_epi8(x, x), _mm256_sign_epi8(y, x));
    _mm256_cvtepi32_ps(_mm256_madd_epi16(products, _mm256_set1_epi16(1)))
}

/// Eight scales, 16 bits each, in both halves of a register, and eight minima, of the 12 bytes of `q4_k` and `q5_k`.
#[inline]
#[target_feature(enable = "avx2")]
pub fn scales_and_mins<const N: usize>(block: &[u8; N]) -> (__m256i, __m128i) {
    let (a, b, c) = (word(block, 4), word(block, 8), word(block, 12));
    let scales = pair(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4);
    let mins = pair(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | (b >> 6 & 0x0303_0303) << 4);
    (_mm256_set_m128i(scales, scales), mins)
}

/// Eight bytes as 16 bits each.
#[inline]
#[target_feature(enable = "avx2")]
fn pair(low: u32, high: u32) -> __m128i {
    _mm_cvtepu8_epi16(_mm_cvtsi64_si128((u64::from(high) << 32 | u64::from(low)) as i64))
}

/// The eight sums of 32 values of a column, from its sixteen of 16.
#[inline]
#[target_feature(enable = "avx2")]
fn sums_of_32(y: &[u8; Q8_K]) -> __m128i {
    _mm_hadd_epi16(load_128(y, 260), load_128(y, 276))
}

/// `first` times the scale `2 j`, plus `second` times the next one.
#[inline]
#[target_feature(enable = "avx2")]
fn scaled(scales: __m256i, j: usize, first: __m256i, second: __m256i) -> __m256i {
    // The two bytes of a 16-bit scale, everywhere.
    let lanes = ((4 * j) | ((4 * j + 1) << 8)) as i16;
    let a = _mm256_shuffle_epi8(scales, _mm256_set1_epi16(lanes));
    let b = _mm256_shuffle_epi8(scales, _mm256_set1_epi16(lanes + 0x0202));
    _mm256_add_epi32(_mm256_madd_epi16(a, first), _mm256_madd_epi16(b, second))
}

/// The sum of eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub fn total(sums: __m256) -> f32 {
    let sum = _mm_add_ps(_mm256_extractf128_ps::<1>(sums), _mm256_castps256_ps128(sums));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
}
