//! Blocks of quantised weights in registers, with AVX2: 32 bytes of a row, and what they share.
//!
//! [`fill`] is what `panel::fill` does, eight rows at a time: eight registers of eight quads are transposed into eight lines of a panel.
//! The scalar code is the fallback elsewhere and what a test holds this against. [`widen`] makes bf16 of them, as AMX takes it.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::amx::{self, TILE_ROWS, Tiles};
use super::avx512;
use super::panel::{DEPTH, Form, PanelBlock, ROWS, VALUES};
use crate::quant::GgmlType;

/// How far ahead of a row [`widen`] asks for weights: by then it has been through the 31 others.
const AHEAD: usize = 256;

/// Rows that are transposed together.
const GROUP: usize = 8;

/// Whether this CPU has what [`fill`] needs.
pub fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// Calls a function for the blocks of a type that [`Form::of`] names.
macro_rules! with_blocks {
    ($ty:expr, $function:ident ( $($argument:expr),* )) => {
        match $ty {
            GgmlType::Q8_0 => $function::<Plain8>($($argument),*),
            GgmlType::Q5_0 => $function::<Plain5>($($argument),*),
            GgmlType::Q4_0 => $function::<Plain4>($($argument),*),
            GgmlType::Q5_1 => $function::<Offset5>($($argument),*),
            GgmlType::Q4_1 => $function::<Offset4>($($argument),*),
            GgmlType::Q6_K => $function::<Super6>($($argument),*),
            GgmlType::Q5_K => $function::<Super5>($($argument),*),
            GgmlType::Q4_K => $function::<Super4>($($argument),*),
            GgmlType::IQ4_NL => $function::<Codes>($($argument),*),
            _ => $function::<SuperCodes>($($argument),*),
        }
    };
}

/// Fills `panel` with the beginnings of at most 32 `rows` of a type that [`Form::of`](super::panel::Form::of) names; missing ones
/// become zeros.
///
/// # Safety
/// [`is_available`].
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn fill(panel: &mut [PanelBlock], ty: GgmlType, rows: &[&[u8]]) {
    with_blocks!(ty, fill_with(panel, rows))
}

/// Rounds at most 32 `rows` of a type that [`Form::of`] names to bf16, `tiles` of their depth from tile `first` on, a multiple of 8;
/// missing rows become zeros.
///
/// # Safety
/// [`is_available`], and AVX-512 F, BW and BF16 with it.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512bf16")]
pub unsafe fn widen(ty: GgmlType, rows: &[&[u8]], first: usize, tiles: &mut [Tiles]) {
    with_blocks!(ty, widen_with(rows, first, tiles))
}

/// Parts of 32 values that a block has at most.
const PARTS: usize = 8;

/// Scales of a block's parts, and the other numbers of a panel's blocks.
type Scales = [[f32; PARTS]; 2];

/// A type's blocks.
trait Blocks {
    /// Bytes of a block.
    const BYTES: usize;
    /// Parts of 32 values of a block.
    const PARTS: usize;
    /// What the values of a part have in common.
    const FORM: Form;
    /// Where a superblock has 32 bytes for each two parts, the low halves being the values of the first and the high ones those of the second.
    const NIBBLES: Option<usize> = None;

    /// The values of the `j`-th part, 128 being zero.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C.
    unsafe fn values(block: &[u8], j: usize) -> __m256i;

    /// What all parts have in common.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C.
    unsafe fn scales(block: &[u8]) -> Scales;
}

#[target_feature(enable = "avx2,f16c")]
fn fill_with<T: Blocks>(panel: &mut [PanelBlock], rows: &[&[u8]]) {
    for first in (0..ROWS).step_by(GROUP) {
        for (b, parts) in panel.chunks_mut(T::PARTS).enumerate() {
            let (mut blocks, mut scales) = ([None; GROUP], [[[0.0; PARTS]; 2]; GROUP]);
            for i in 0..GROUP {
                if let Some(bytes) = rows.get(first + i) {
                    let block = &bytes[b * T::BYTES..][..T::BYTES];
                    // SAFETY: this function has the features.
                    (blocks[i], scales[i]) = (Some(block), unsafe { T::scales(block) });
                }
            }
            for (j, to) in parts.iter_mut().enumerate() {
                let mut values = [_mm256_set1_epi8(-128); GROUP];
                for i in 0..GROUP {
                    (to.scale[first + i], to.other[first + i]) = (scales[i][0][j], scales[i][1][j]);
                    if let Some(block) = blocks[i] {
                        // SAFETY: as above.
                        values[i] = unsafe { T::values(block, j) };
                    }
                }
                let lines = transpose(&values);
                for k in 0..DEPTH / 4 {
                    // SAFETY: eight rows of a quad are 32 bytes.
                    unsafe { _mm256_storeu_si256(to.bytes[k][first..first + GROUP].as_mut_ptr().cast(), lines[k]) };
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512bf16")]
fn widen_with<T: Blocks>(rows: &[&[u8]], first: usize, tiles: &mut [Tiles]) {
    for (b, tiles) in (first / T::PARTS..).zip(tiles.chunks_mut(T::PARTS)) {
        for row in 0..ROWS {
            let (half, row_of_half) = (row / TILE_ROWS, row % TILE_ROWS);
            let Some(from) = rows.get(row) else {
                tiles.iter_mut().for_each(|tiles| tiles[half].0[row_of_half].fill(0));
                continue;
            };
            let block = &from[b * T::BYTES..][..T::BYTES];
            for at in (0..T::BYTES).step_by(64) {
                // A hint, whatever the address.
                _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(AHEAD + at).cast());
            }
            // SAFETY: this function has the features.
            let [scales, others] = unsafe { T::scales(block) };
            if let (Some(at), Some(tiles)) = (T::NIBBLES, <&mut [Tiles; PARTS]>::try_from(&mut *tiles).ok()) {
                for j in (0..PARTS).step_by(2) {
                    let [first, second] =
                        two_parts(load(block, at + 16 * j), [0, 1].map(|i| (scales[j + i], others[j + i])));
                    // SAFETY: a row of a tile is 64 bytes.
                    unsafe {
                        _mm512_storeu_si512(tiles[j][half].0[row_of_half].as_mut_ptr().cast(), first);
                        _mm512_storeu_si512(tiles[j + 1][half].0[row_of_half].as_mut_ptr().cast(), second);
                    }
                }
                continue;
            }
            for (j, tiles) in tiles.iter_mut().enumerate() {
                // SAFETY: as above.
                let values = _mm256_xor_si256(unsafe { T::values(block, j) }, bytes(128));
                let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(values)));
                let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256::<1>(values)));
                let (scale, other) = (_mm512_set1_ps(scales[j]), _mm512_set1_ps(others[j]));
                let values = match T::FORM {
                    Form::Scale => [_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale)],
                    Form::Offset => [_mm512_fmadd_ps(low, scale, other), _mm512_fmadd_ps(high, scale, other)],
                    Form::Halves => [_mm512_mul_ps(low, scale), _mm512_mul_ps(high, other)],
                };
                // SAFETY: as above.
                unsafe { amx::put_row(&mut tiles[half], row_of_half, values) };
            }
        }
    }
}

/// The values of two parts in bf16, `offset + scale · q`. Of 64 values only 32 are different: those are rounded, and looked up.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512bf16")]
fn two_parts(nibbles: __m256i, parts: [(f32, f32); 2]) -> [__m512i; 2] {
    let levels = _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
    let [first, second] =
        parts.map(|(scale, offset)| _mm512_fmadd_ps(levels, _mm512_set1_ps(scale), _mm512_set1_ps(offset)));
    let rounded = avx512::to_pairs(first, second);
    let quads = _mm512_cvtepu8_epi16(nibbles);
    let low = _mm512_and_si512(quads, _mm512_set1_epi16(15));
    // The second's are the upper half of the table.
    let high = _mm512_or_si512(_mm512_srli_epi16::<4>(quads), _mm512_set1_epi16(16));
    [_mm512_permutexvar_epi16(low, rounded), _mm512_permutexvar_epi16(high, rounded)]
}

/// Eight registers of eight 32-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: &[__m256i; 8]) -> [__m256i; 8] {
    let mut pairs = *rows;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Numbers 0 and 4, 1 and 5 .. of four rows.
    let mut fours = pairs;
    for i in 0..2 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        fours[4 * i] = _mm256_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm256_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm256_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm256_unpackhi_epi64(b, d);
    }
    let mut lines = fours;
    for i in 0..4 {
        lines[i] = _mm256_permute2x128_si256::<0x20>(fours[i], fours[i + 4]);
        lines[i + 4] = _mm256_permute2x128_si256::<0x31>(fours[i], fours[i + 4]);
    }
    lines
}

/// Defines a type's blocks: values by `block` and `j`, scales by `block`.
macro_rules! blocks {
    ($name:ident, $form:ident, $bytes:literal, $parts:literal, |$block:ident, $j:ident| $values:expr, $scales:expr $(, nibbles at $nibbles:literal)?) => {
        struct $name;
        impl Blocks for $name {
            const BYTES: usize = $bytes;
            const PARTS: usize = $parts;
            const FORM: Form = Form::$form;
            $(const NIBBLES: Option<usize> = Some($nibbles);)?

            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn values($block: &[u8], $j: usize) -> __m256i {
                let _ = $j;
                $values
            }

            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn scales($block: &[u8]) -> Scales {
                $scales
            }
        }
    };
}

blocks!(Plain8, Scale, 34, 1, |b, j| _mm256_xor_si256(load(b, 2), bytes(128)), one(half(b, 0), 0.0));
blocks!(Plain5, Scale, 22, 1, |b, j| _mm256_add_epi8(five(b, 2), bytes(112)), one(half(b, 0), 0.0));
blocks!(Plain4, Scale, 18, 1, |b, j| _mm256_add_epi8(nibbles(b, 2), bytes(120)), one(half(b, 0), 0.0));
blocks!(Offset5, Offset, 24, 1, |b, j| _mm256_add_epi8(five(b, 4), bytes(128)), one(half(b, 0), half(b, 2)));
blocks!(Offset4, Offset, 20, 1, |b, j| _mm256_add_epi8(nibbles(b, 4), bytes(128)), one(half(b, 0), half(b, 2)));
blocks!(Codes, Scale, 18, 1, |b, j| code(nibbles(b, 2)), one(half(b, 0), 0.0));
blocks!(
    Super4,
    Offset,
    144,
    8,
    |b, j| _mm256_or_si256(shifted(load(b, 16 + 32 * (j / 2)), 4 * (j % 2), 15), bytes(128)),
    scales_and_offsets(b),
    nibbles at 16
);
blocks!(
    Super5,
    Offset,
    176,
    8,
    |b, j| {
        let fifth = _mm256_slli_epi16::<4>(shifted(load(b, 16), j, 1));
        let low = shifted(load(b, 48 + 32 * (j / 2)), 4 * (j % 2), 15);
        _mm256_or_si256(_mm256_or_si256(low, fifth), bytes(128))
    },
    scales_and_offsets(b)
);
blocks!(
    Super6,
    Halves,
    210,
    8,
    |b, j| {
        let (part, quarter) = (j / 4, j % 4);
        let low = shifted(load(b, 64 * part + 32 * (quarter % 2)), 4 * (quarter / 2), 15);
        let high = _mm256_slli_epi16::<4>(shifted(load(b, 128 + 32 * part), 2 * quarter, 3));
        _mm256_add_epi8(_mm256_or_si256(low, high), bytes(96))
    },
    {
        let (d, mut scales) = (half(b, 208), [[0.0; PARTS]; 2]);
        for (i, scale) in b[192..208].iter().enumerate() {
            scales[i % 2][i / 2] = d * f32::from(*scale as i8);
        }
        scales
    }
);
blocks!(SuperCodes, Scale, 136, 8, |b, j| code(nibbles(b, 8 + 16 * j)), {
    let (d, mut scales, high) = (half(b, 0), [[0.0; PARTS]; 2], u16::from_le_bytes([b[2], b[3]]));
    for (j, to) in scales[0].iter_mut().enumerate() {
        let high = i32::from(high >> (2 * j) & 3);
        let scale = (b[4 + j / 2] >> (4 * (j % 2)) & 15) as i32 | high << 4;
        *to = d * (scale - 32) as f32;
    }
    scales
});

/// Those of a block of one part.
fn one(scale: f32, other: f32) -> Scales {
    let mut scales = [[0.0; PARTS]; 2];
    (scales[0][0], scales[1][0]) = (scale, other);
    scales
}

/// 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn load(block: &[u8], at: usize) -> __m256i {
    let part = &block[at..at + 32];
    // SAFETY: 32 bytes.
    unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
}

/// The same byte everywhere.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(value: u8) -> __m256i {
    _mm256_set1_epi8(value as i8)
}

/// Every byte `>> n & mask`, where the mask has no more bits than are left of a byte.
#[inline]
#[target_feature(enable = "avx2")]
fn shifted(values: __m256i, n: usize, mask: u8) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi16(values, _mm_cvtsi32_si128(n as i32)), bytes(mask))
}

/// 16 bytes from `at` on hold the values k in their low and k + 16 in their high halves.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(block: &[u8], at: usize) -> __m256i {
    let part = &block[at..at + 16];
    // SAFETY: 16 bytes.
    let low = unsafe { _mm_loadu_si128(part.as_ptr().cast()) };
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(low), low), bytes(15))
}

/// Four bytes of fifth bits from `at` on, then nibbles.
#[inline]
#[target_feature(enable = "avx2")]
fn five(block: &[u8], at: usize) -> __m256i {
    let bits = i32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    // Byte k holds the eight bits that the k-th is among; a lane of 128 bits sees all four of them.
    let each = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let one = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), each), one), one);
    _mm256_or_si256(nibbles(block, at + 4), _mm256_and_si256(is_set, bytes(16)))
}

/// The values of `iq4` nibbles, 128 added.
#[inline]
#[target_feature(enable = "avx2")]
fn code(nibbles: __m256i) -> __m256i {
    // SAFETY: 16 bytes.
    let values = unsafe { _mm_loadu_si128(VALUES.as_ptr().cast()) };
    _mm256_xor_si256(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), nibbles), bytes(128))
}

/// Of a block of `q4_k` or `q5_k`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn scales_and_offsets(block: &[u8]) -> Scales {
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (a, b, c) = (word(4), word(8), word(12));
    let scales = [a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4];
    let mins = [b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | (b >> 6 & 0x0303_0303) << 4];
    let (d, min) = (_mm256_set1_ps(half(block, 0)), _mm256_set1_ps(-half(block, 2)));
    let mut to = [[0.0; PARTS]; 2];
    // SAFETY: eight numbers each.
    unsafe {
        _mm256_storeu_ps(to[0].as_mut_ptr(), _mm256_mul_ps(d, eight(scales)));
        _mm256_storeu_ps(to[1].as_mut_ptr(), _mm256_mul_ps(min, eight(mins)));
    }
    to
}

/// Eight bytes as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn eight(words: [u32; 2]) -> __m256 {
    let bytes = _mm_cvtsi64_si128((u64::from(words[1]) << 32 | u64::from(words[0])) as i64);
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
}

#[inline]
#[target_feature(enable = "f16c")]
fn half(block: &[u8], at: usize) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes([block[at], block[at + 1]])))))
}
