//! Weights times two to seven columns, as guesses and a few answers at a time are read: ggml's sums to the last bit, with AVX-512.
//!
//! For so few columns ggml multiplies each of them with a row as if it were alone, and unpacks the row anew for each. Here a row of
//! K-quants is unpacked once, 64 values in a register, and multiplied with all of them. Two to seven, since for one column memory is
//! the limit (`row`), and from eight on other kernels are faster, which round otherwise (`many`, or ggml's tiled ones). Types with blocks
//! of 32 are not here: for those ggml's build has others that take several columns.
//!
//! The work buffer is the one that ggml plans for its own way, with columns of the same type in it.
//!
//! No closures and no `map` on registers here: the compiler does not inline those into functions with features of their own.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;
use std::ops::Range;
use std::slice;

use llama_cpp_sys_2 as sys;

use super::hook::{self, Count, Node, Params};
use super::row::{Q8_K, ask, float, half, load, load_128, scales_and_mins, total};
use crate::quant::GgmlType;

/// Columns.
const COLUMNS: std::ops::RangeInclusive<usize> = 2..=7;
/// Rows that a thread takes at once.
const ROWS: usize = 32;
/// Values of a block.
const BLOCK: usize = 256;
/// Where a block of a column has its sums of 16 values.
const SUMS: usize = 260;

/// Products that were computed here.
pub static COUNT: Count = Count::new();

/// Whether this CPU has what is needed.
pub fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Q4K,
    Q5K,
    Q6K,
}

/// A product that is ours.
pub struct Product<'a> {
    ty: Type,
    node: &'a Node,
    n_blocks: usize,
    row_bytes: usize,
    /// Columns in ggml's type for these weights.
    columns: *mut [u8; Q8_K],
}

impl<'a> Product<'a> {
    /// That of a node, if it is one, with `params`.
    pub fn of(node: &'a Node, params: &Params) -> Option<Self> {
        let ty = match node.ty {
            GgmlType::Q4_K => Type::Q4K,
            GgmlType::Q5_K => Type::Q5K,
            GgmlType::Q6_K => Type::Q6K,
            _ => return None,
        };
        let n_blocks = node.k / BLOCK;
        let is_planned = params.wsize >= node.n_columns * n_blocks * Q8_K;
        if !COLUMNS.contains(&node.n_columns) || !is_available() || !is_planned {
            return None;
        }
        Some(Product { ty, node, n_blocks, row_bytes: n_blocks * ty.block_bytes(), columns: params.wdata.cast() })
    }

    /// This thread's part.
    ///
    /// # Safety
    /// [`Product::of`] has made it from these; all threads call it.
    pub unsafe fn compute(&self, params: &Params) {
        let (ith, nth) = (params.ith as usize, params.nth as usize);
        // SAFETY: every thread writes the blocks of its part only, and all wait for all before they are read; rows belong to the thread
        // that took them. The CPU has the features.
        unsafe {
            self.pack(ith * self.n_blocks / nth..(ith + 1) * self.n_blocks / nth);
            if ith == 0 {
                COUNT.add();
            }
            params.wait();
            for chunk in params.share(self.node.n_rows.div_ceil(ROWS)) {
                let rows = chunk * ROWS..self.node.n_rows.min((chunk + 1) * ROWS);
                match self.node.n_columns {
                    2 => self.multiply::<2>(rows),
                    3 => self.multiply::<3>(rows),
                    4 => self.multiply::<4>(rows),
                    5 => self.multiply::<5>(rows),
                    6 => self.multiply::<6>(rows),
                    _ => self.multiply::<7>(rows),
                }
            }
        }
    }

    /// Rounds `blocks` of every column as ggml does. The kernels of two types take sums of 32 values where ggml's type has those of
    /// 16: they are added here, once.
    ///
    /// # Safety
    /// No other thread has these blocks.
    unsafe fn pack(&self, blocks: Range<usize>) {
        for j in 0..self.node.n_columns {
            // SAFETY: a column of x has n_blocks blocks of f32, and the work buffer has room for every column.
            let packed = unsafe {
                let from = self.node.x.add(j * self.node.x_stride).cast::<f32>().add(blocks.start * BLOCK);
                let to = self.columns.add(j * self.n_blocks + blocks.start);
                hook::round(sys::GGML_TYPE_Q8_K, from, to.cast(), blocks.len() * BLOCK);
                slice::from_raw_parts_mut(to, blocks.len())
            };
            if self.ty == Type::Q6K {
                continue;
            }
            for block in packed {
                for i in 0..8 {
                    let sum = |at: usize| i16::from_le_bytes([block[SUMS + 2 * at], block[SUMS + 2 * at + 1]]);
                    let bytes = (sum(2 * i) + sum(2 * i + 1)).to_le_bytes();
                    block[SUMS + 2 * i..][..2].copy_from_slice(&bytes);
                }
            }
        }
    }

    /// `rows` times all `N` columns.
    ///
    /// # Safety
    /// [`is_available`]; the columns are packed; no other thread has these rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma,f16c")]
    unsafe fn multiply<const N: usize>(&self, rows: Range<usize>) {
        // SAFETY: N columns are packed.
        let packed = unsafe { slice::from_raw_parts(self.columns, N * self.n_blocks) };
        let mut columns = [packed; N];
        for (j, column) in columns.iter_mut().enumerate() {
            *column = &packed[j * self.n_blocks..][..self.n_blocks];
        }
        for row in rows {
            // SAFETY: a row of the weights.
            let x = unsafe { slice::from_raw_parts(self.node.w.add(row * self.node.w_stride), self.row_bytes) };
            let sums = match self.ty {
                Type::Q4K => q4_k(x.as_chunks().0, &columns),
                Type::Q5K => q5_k(x.as_chunks().0, &columns),
                Type::Q6K => q6_k(x.as_chunks().0, &columns),
            };
            for (j, sum) in sums.into_iter().enumerate() {
                // SAFETY: this row of each column of the result is this thread's.
                unsafe { self.node.out.add(j * self.node.out_stride).cast::<f32>().add(row).write(sum) };
            }
        }
    }
}

impl Type {
    fn block_bytes(self) -> usize {
        match self {
            Type::Q4K => 144,
            Type::Q5K => 176,
            Type::Q6K => 210,
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma,f16c")]
fn q4_k<const N: usize>(x: &[[u8; 144]], columns: &[&[[u8; Q8_K]]; N]) -> [f32; N] {
    let (mut sums, mut offsets) = ([_mm256_setzero_ps(); N], [_mm_setzero_ps(); N]);
    let low = _mm512_set1_epi8(15);
    for (b, x) in x.iter().enumerate() {
        ask(x);
        let (scales, mins) = scales_and_mins(x);
        let (scales, d, min) = (_mm512_broadcast_i64x4(scales), half(x, 0), half(x, 2));
        let mut ints = [_mm512_setzero_si512(); N];
        for j in 0..4 {
            let quads = _mm512_broadcast_i64x4(load(x, 16 + 32 * j));
            let values = _mm512_and_si512(_mm512_srlv_epi16(quads, halves(0, 4)), low);
            add(&mut ints, values, scale_of_32(scales, j), columns, b, 4 + 64 * j);
        }
        for c in 0..N {
            let y = &columns[c][b];
            let offset = _mm_cvtepi32_ps(_mm_madd_epi16(mins, load_128(y, SUMS)));
            offsets[c] = _mm_fmadd_ps(_mm_set1_ps(-float(y, 0) * min), offset, offsets[c]);
            sums[c] = _mm256_fmadd_ps(_mm256_set1_ps(float(y, 0) * d), folded(ints[c]), sums[c]);
        }
    }
    let mut totals = [0.0; N];
    for c in 0..N {
        let offset = _mm_add_ps(offsets[c], _mm_movehl_ps(offsets[c], offsets[c]));
        totals[c] = total(sums[c]) + _mm_cvtss_f32(_mm_add_ss(offset, _mm_movehdup_ps(offset)));
    }
    totals
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma,f16c")]
fn q5_k<const N: usize>(x: &[[u8; 176]], columns: &[&[[u8; Q8_K]]; N]) -> [f32; N] {
    let (mut sums, mut offsets) = ([_mm256_setzero_ps(); N], [0.0f32; N]);
    let (low, one) = (_mm512_set1_epi8(15), _mm512_set1_epi8(1));
    for (b, x) in x.iter().enumerate() {
        ask(x);
        let (scales, mins) = scales_and_mins(x);
        let (scales, d, min) = (_mm512_broadcast_i64x4(scales), half(x, 0), half(x, 2));
        let mut high = _mm512_srlv_epi16(_mm512_broadcast_i64x4(load(x, 16)), halves(0, 1));
        let mut ints = [_mm512_setzero_si512(); N];
        for j in 0..4 {
            let quads = _mm512_broadcast_i64x4(load(x, 48 + 32 * j));
            let values = _mm512_and_si512(_mm512_srlv_epi16(quads, halves(0, 4)), low);
            let values = _mm512_or_si512(values, _mm512_slli_epi16::<4>(_mm512_and_si512(high, one)));
            high = _mm512_srli_epi16::<2>(high);
            add(&mut ints, values, scale_of_32(scales, j), columns, b, 4 + 64 * j);
        }
        for c in 0..N {
            let y = &columns[c][b];
            let offset = _mm_madd_epi16(mins, load_128(y, SUMS));
            let offset = _mm_add_epi32(offset, _mm_shuffle_epi32::<0b01_00_11_10>(offset));
            let offset = _mm_cvtsi128_si32(_mm_add_epi32(offset, _mm_shuffle_epi32::<0b10_11_00_01>(offset)));
            offsets[c] = (-float(y, 0) * min).mul_add(offset as f32, offsets[c]);
            sums[c] = _mm256_fmadd_ps(_mm256_set1_ps(float(y, 0) * d), folded(ints[c]), sums[c]);
        }
    }
    let mut totals = [0.0; N];
    for c in 0..N {
        totals[c] = total(sums[c]) + offsets[c];
    }
    totals
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma,f16c")]
fn q6_k<const N: usize>(x: &[[u8; 210]], columns: &[&[[u8; Q8_K]]; N]) -> [f32; N] {
    let mut sums = [_mm256_setzero_ps(); N];
    let (low, two) = (_mm512_set1_epi8(15), _mm512_set1_epi8(48));
    for (b, x) in x.iter().enumerate() {
        ask(x);
        let (scales, d) = (_mm256_cvtepi8_epi16(load_128(x, 192)), half(x, 208));
        let mut ints = [_mm512_setzero_si512(); N];
        for j in 0..2 {
            let quads = load_512(x, 64 * j);
            let high = _mm512_broadcast_i64x4(load(x, 128 + 32 * j));
            let first = _mm512_and_si512(_mm512_sllv_epi16(high, halves(4, 2)), two);
            let first = _mm512_or_si512(_mm512_and_si512(quads, low), first);
            let last = _mm512_and_si512(_mm512_srlv_epi16(high, halves(0, 2)), two);
            let last = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(quads), low), last);
            add(&mut ints, first, scale_of_16(scales, 2 * j), columns, b, 4 + 128 * j);
            add(&mut ints, last, scale_of_16(scales, 2 * j + 1), columns, b, 68 + 128 * j);
        }
        for c in 0..N {
            let y = &columns[c][b];
            // Values are stored 32 too large: 32 times the sums of a column's 16, each times its scale.
            let zero = _mm256_slli_epi32::<5>(_mm256_madd_epi16(load(y, SUMS), scales));
            let ints = _mm512_sub_epi32(ints[c], _mm512_zextsi256_si512(zero));
            sums[c] = _mm256_fmadd_ps(_mm256_set1_ps(float(y, 0) * d), folded(ints), sums[c]);
        }
    }
    let mut totals = [0.0; N];
    for c in 0..N {
        totals[c] = total(sums[c]);
    }
    totals
}

/// `ints += values · scale · column` for 64 values of block `b` of every column, which lie at `at` in it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add<const N: usize>(
    ints: &mut [__m512i; N],
    values: __m512i,
    scale: __m512i,
    columns: &[&[[u8; Q8_K]]; N],
    b: usize,
    at: usize,
) {
    for c in 0..N {
        let products = _mm512_maddubs_epi16(values, load_512(&columns[c][b], at));
        ints[c] = _mm512_dpwssd_epi32(ints[c], products, scale);
    }
}

/// The two halves added, as f32: integers, so that their order does not matter.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn folded(ints: __m512i) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_add_epi32(_mm512_castsi512_si256(ints), _mm512_extracti64x4_epi64::<1>(ints)))
}

/// A number of 16 bits for each half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves(low: i16, high: i16) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_set1_epi16(low), _mm256_set1_epi16(high))
}

/// The scale `2 j` in the low half and the next one in the high half; every 16 bytes of `scales` are the same eight.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scale_of_32(scales: __m512i, j: usize) -> __m512i {
    let lanes = _mm512_add_epi8(halves(0x0100, 0x0302), _mm512_set1_epi8(4 * j as i8));
    _mm512_shuffle_epi8(scales, lanes)
}

/// The scales `4 i` to `4 i + 3` of 16, each in a quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scale_of_16(scales: __m256i, i: usize) -> __m512i {
    let quarters = _mm512_inserti64x4::<1>(
        _mm512_castsi256_si512(_mm256_set_m128i(_mm_set1_epi16(1), _mm_setzero_si128())),
        _mm256_set_m128i(_mm_set1_epi16(3), _mm_set1_epi16(2)),
    );
    let lanes = _mm512_add_epi16(quarters, _mm512_set1_epi16(4 * i as i16));
    _mm512_permutexvar_epi16(lanes, _mm512_castsi256_si512(scales))
}

/// 64 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_512<const N: usize>(bytes: &[u8; N], at: usize) -> __m512i {
    debug_assert!(at + 64 <= N);
    // SAFETY: inside the block: callers count from its layout.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().add(at).cast()) }
}
