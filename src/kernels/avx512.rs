//! The inner loops for AVX-512 with VNNI and BF16 (Zen 4 and 5, Cooper Lake, Sapphire Rapids and later).
//!
//! Every loop keeps 2 registers of rows × 6 columns of sums: twelve independent sums hide the four cycles of latency, and
//! two loads of weights with six broadcasts serve twelve multiplications, which the load ports keep up with.
//! Loops over registers count, since closures (of `map`, say) do not have the features of the function around them, and those that
//! the compiler does not inline put every register into memory.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;
use std::hint::black_box;

use super::Tile;
use super::columns::{COLUMNS, ColumnBlock, SMALLEST};
use super::panel::{Form, PanelBlock, ROWS};

/// Lanes of a register of f32.
pub const LANES: usize = 16;

/// Sums over all blocks of a panel times those of a group of columns.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn int8_tile(form: Form, panel: &[PanelBlock], columns: &[ColumnBlock]) -> Tile {
    // SAFETY: by this function's contract.
    unsafe {
        match form {
            Form::Scale => int8_tile_of::<SCALE>(panel, columns),
            Form::Offset => int8_tile_of::<OFFSET>(panel, columns),
            Form::Halves => int8_tile_of::<HALVES>(panel, columns),
        }
    }
}

const SCALE: u8 = Form::Scale as u8;
const OFFSET: u8 = Form::Offset as u8;
const HALVES: u8 = Form::Halves as u8;

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn int8_tile_of<const FORM: u8>(panel: &[PanelBlock], columns: &[ColumnBlock]) -> Tile {
    let mut sums = [[_mm512_setzero_ps(); 2]; COLUMNS];
    for (w, x) in panel.iter().zip(columns) {
        let scale = [load(&w.scale, 0), load(&w.scale, 1)];
        if FORM == SCALE {
            add(&mut sums, &dots::<0, 8>(w, x, &x.start), scale, &x.scale);
            continue;
        }
        let other = [load(&w.other, 0), load(&w.other, 1)];
        if FORM == HALVES {
            add(&mut sums, &dots::<0, 4>(w, x, &x.start_halves[0]), scale, &x.scale);
            add(&mut sums, &dots::<4, 8>(w, x, &x.start_halves[1]), other, &x.scale);
            continue;
        }
        add(&mut sums, &dots::<0, 8>(w, x, &x.start), scale, &x.scale);
        for j in 0..COLUMNS {
            let sum = _mm512_set1_ps(x.sum[j]);
            for i in 0..2 {
                sums[j][i] = _mm512_fmadd_ps(other[i], sum, sums[j][i]);
            }
        }
    }
    to_tile(&sums)
}

/// Integer dot products over the quads `FROM .. TO` of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dots<const FROM: usize, const TO: usize>(
    w: &PanelBlock,
    x: &ColumnBlock,
    start: &[i32; COLUMNS],
) -> [[__m512i; 2]; COLUMNS] {
    let mut sums = [[_mm512_setzero_si512(); 2]; COLUMNS];
    for j in 0..COLUMNS {
        sums[j] = [_mm512_set1_epi32(start[j]); 2];
    }
    for k in FROM..TO {
        let rows = w.bytes[k].as_ptr().cast::<__m512i>();
        // SAFETY: a quad of a panel is 128 bytes, aligned to 64.
        let rows = unsafe { [_mm512_load_si512(rows), _mm512_load_si512(rows.add(1))] };
        for j in 0..COLUMNS {
            let [a, b, c, d] = x.bytes[k][j];
            let column = _mm512_set1_epi32(i32::from_ne_bytes([a as u8, b as u8, c as u8, d as u8]));
            for i in 0..2 {
                sums[j][i] = _mm512_dpbusd_epi32(sums[j][i], rows[i], column);
            }
        }
    }
    sums
}

/// `sums += ints · w · x`: `w` a scale a row, `x` one a column.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(sums: &mut [[__m512; 2]; COLUMNS], ints: &[[__m512i; 2]; COLUMNS], w: [__m512; 2], x: &[f32; COLUMNS]) {
    for j in 0..COLUMNS {
        let x = _mm512_set1_ps(x[j]);
        for i in 0..2 {
            sums[j][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints[j][i]), _mm512_mul_ps(w[i], x), sums[j][i]);
        }
    }
}

/// The `i`-th half.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn load(values: &[f32; 2 * LANES], i: usize) -> __m512 {
    // SAFETY: 16 values from 0 or 16 on, of 32.
    unsafe { _mm512_loadu_ps(values.as_ptr().add(LANES * (i & 1))) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_tile(sums: &[[__m512; 2]; COLUMNS]) -> Tile {
    let mut tile = [[0.0; 2 * LANES]; COLUMNS];
    for (column, sums) in tile.iter_mut().zip(sums) {
        // SAFETY: a column of the tile is 32 values.
        unsafe {
            _mm512_storeu_ps(column.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(column.as_mut_ptr().add(LANES), sums[1]);
        }
    }
    tile
}

/// 32 values times 127 / their largest magnitude, rounded to even; and the scale that undoes it. Zeros below
/// [`SMALLEST`].
///
/// # Safety
/// The CPU has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub unsafe fn to_int8(values: &[f32; 32]) -> ([i8; 32], f32) {
    let [low, high] = [0, 1].map(|i| load(values, i));
    // The bits of magnitudes are ordered as they are, with NaN on top, which thereby stays NaN.
    let [low_bits, high_bits] = [low, high].map(|half| _mm512_castps_si512(_mm512_abs_ps(half)));
    let largest = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(low_bits, high_bits)));
    let inverse = _mm512_set1_ps(if largest >= SMALLEST { 127.0 / largest } else { 0.0 });
    let mut bytes = [0i8; 32];
    for (half, to) in [low, high].into_iter().zip(bytes.as_chunks_mut::<16>().0) {
        let ints = _mm512_cvtps_epi32(_mm512_mul_ps(half, inverse));
        // SAFETY: 16 bytes.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(ints)) };
    }
    (bytes, largest / 127.0)
}

/// As [`int8_tile`] for pairs of bf16: `panel[pair][row]`, and columns of pairs that lie `stride` apart.
///
/// # Safety
/// The CPU has AVX-512 F and BF16; five strides and `panel.len()` pairs lie inside `columns`.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn bf16_tile(panel: &[[u32; 2 * LANES]], columns: &[u32], stride: usize) -> Tile {
    debug_assert!((COLUMNS - 1) * stride + panel.len() <= columns.len());
    let mut sums = [[_mm512_setzero_ps(); 2]; COLUMNS];
    for (k, rows) in panel.iter().enumerate() {
        // SAFETY: a pair of the panel is 32 × 4 bytes; bf16 pairs are plain bits; columns by this function's contract.
        unsafe {
            let rows = rows.as_ptr();
            let rows = [bf16(_mm512_loadu_si512(rows.cast())), bf16(_mm512_loadu_si512(rows.add(LANES).cast()))];
            for j in 0..COLUMNS {
                let column = bf16(_mm512_set1_epi32(*columns.get_unchecked(j * stride + k) as i32));
                for i in 0..2 {
                    sums[j][i] = _mm512_dpbf16_ps(sums[j][i], rows[i], column);
                }
            }
        }
    }
    to_tile(&sums)
}

/// 16 pairs of bf16 by their bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of any bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

/// 32 values as pairs of bf16, rounded to even, the first of a pair in its low half.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn to_pairs(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 64 bytes of any bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Rounded to bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn rounded(values: __m512) -> __m512 {
    // SAFETY: both are 32 bytes of any bits.
    let halves = unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// Pairs of consecutive values; 32 of them are 16 pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn to_bf16(values: &[f32], pairs: &mut [u32]) {
    for (two, to) in values.as_chunks::<{ 2 * LANES }>().0.iter().zip(pairs.as_chunks_mut::<LANES>().0) {
        // SAFETY: 32 values, 16 pairs.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(two.as_ptr()), _mm512_loadu_ps(two.as_ptr().add(LANES)));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), to_pairs(low, high));
        }
    }
}

/// eˣ within 2 units of the last place for x ≤ 0; 0 where that underflows.
///
/// 2ⁿ · eʳ with |r| ≤ ln 2 / 2, eʳ by its Taylor polynomial of degree 7 (the next term is below 2⁻²⁸).
#[inline]
#[target_feature(enable = "avx512f")]
pub fn exp(x: __m512) -> __m512 {
    // Below it eˣ is 0, and r would no longer be small. In this order NaN stays NaN.
    let x = _mm512_max_ps(_mm512_set1_ps(-104.0), x);
    let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let terms = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let mut sum = _mm512_set1_ps(1.0 / 5040.0);
    for term in terms {
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
    }
    _mm512_scalef_ps(sum, n)
}

/// GELU of every value.
///
/// # Safety
/// The CPU has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub unsafe fn gelu(columns: &mut [[f32; ROWS]]) {
    for lanes in columns.as_flattened_mut().as_chunks_mut::<LANES>().0 {
        // SAFETY: 16 values.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), gelu_of(_mm512_loadu_ps(lanes.as_ptr()))) };
    }
}

/// x · Φ(x), Φ by the error function's rational approximation 7.1.26 of Abramowitz and Stegun, 1.5e-7 off at most.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn gelu_of(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let z = _mm512_abs_ps(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::FRAC_1_SQRT_2)));
    let t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.327_591_1), one));
    let mut sum = _mm512_set1_ps(1.061_405_4);
    for term in [-1.453_152_1, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(term));
    }
    // Half of what is outside ±z: Φ of the negative of |x|.
    let tail = _mm512_mul_ps(sum, _mm512_mul_ps(t, exp(_mm512_fnmadd_ps(z, z, _mm512_setzero_ps()))));
    let tail = _mm512_mul_ps(tail, _mm512_set1_ps(0.5));
    let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps());
    _mm512_mul_ps(x, _mm512_mask_blend_ps(negative, _mm512_sub_ps(one, tail), tail))
}

/// As many dot products as `n` in registers: multiplications and additions done.
///
/// # Safety
/// The CPU has AVX-512 F and VNNI.
#[target_feature(enable = "avx512f,avx512vnni")]
pub unsafe fn peak(n: u64) -> u64 {
    const SUMS: usize = 12;
    let (a, b) = (_mm512_set1_epi32(black_box(0x0102_0304)), _mm512_set1_epi32(black_box(0x0101_0101)));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..n / SUMS as u64 {
        for i in 0..SUMS {
            sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
        }
    }
    black_box(sums);
    n / SUMS as u64 * SUMS as u64 * 64 * 2
}
