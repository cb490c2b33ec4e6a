//! What `panel::fill` does, with AVX2, eight rows at a time: their blocks become bytes in one register each, and eight registers of
//! eight quads are transposed into eight lines of a panel. The scalar code is the fallback elsewhere and what a test holds this against.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::panel::{DEPTH, PanelBlock, ROWS, VALUES, scale_and_min};
use crate::quant::GgmlType;

/// Rows that are transposed together.
const GROUP: usize = 8;

/// Whether this CPU has what [`fill`] needs.
pub fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// Fills `panel` with the beginnings of at most 32 `rows` of a type that [`Form::of`](super::panel::Form::of) names; missing ones
/// become zeros.
///
/// # Safety
/// [`is_available`].
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn fill(panel: &mut [PanelBlock], ty: GgmlType, rows: &[&[u8]]) {
    use GgmlType::*;
    match ty {
        Q8_0 => fill_with::<Plain8>(panel, rows),
        Q5_0 => fill_with::<Plain5>(panel, rows),
        Q4_0 => fill_with::<Plain4>(panel, rows),
        Q5_1 => fill_with::<Offset5>(panel, rows),
        Q4_1 => fill_with::<Offset4>(panel, rows),
        Q6_K => fill_with::<Super6>(panel, rows),
        Q5_K => fill_with::<Super5>(panel, rows),
        Q4_K => fill_with::<Super4>(panel, rows),
        IQ4_NL => fill_with::<Codes>(panel, rows),
        _ => fill_with::<SuperCodes>(panel, rows),
    }
}

/// A row's 32 values, 128 being zero, its scale, and the other number of a panel's block.
type Unpacked = (__m256i, f32, f32);

/// A type's blocks.
trait Blocks {
    /// Bytes of a block.
    const BYTES: usize;
    /// Parts of 32 values of a block.
    const PARTS: usize;

    /// The `j`-th part.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C.
    unsafe fn unpack(block: &[u8], j: usize) -> Unpacked;
}

#[target_feature(enable = "avx2,f16c")]
fn fill_with<T: Blocks>(panel: &mut [PanelBlock], rows: &[&[u8]]) {
    for first in (0..ROWS).step_by(GROUP) {
        for (b, to) in panel.iter_mut().enumerate() {
            let (start, j) = (b / T::PARTS * T::BYTES, b % T::PARTS);
            let mut values = [_mm256_set1_epi8(-128); GROUP];
            for i in 0..GROUP {
                let row = first + i;
                (to.scale[row], to.other[row]) = (0.0, 0.0);
                if let Some(bytes) = rows.get(row) {
                    // SAFETY: this function has the features.
                    let unpacked = unsafe { T::unpack(&bytes[start..start + T::BYTES], j) };
                    (values[i], to.scale[row], to.other[row]) = unpacked;
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

/// Defines a type's blocks; the expression sees `block` and `j`.
macro_rules! blocks {
    ($name:ident, $bytes:literal, $parts:literal, |$block:ident, $j:ident| $unpack:expr) => {
        struct $name;
        impl Blocks for $name {
            const BYTES: usize = $bytes;
            const PARTS: usize = $parts;

            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn unpack($block: &[u8], $j: usize) -> Unpacked {
                let _ = $j;
                $unpack
            }
        }
    };
}

blocks!(Plain8, 34, 1, |b, j| (_mm256_xor_si256(load(b, 2), bytes(128)), half(b, 0), 0.0));
blocks!(Plain5, 22, 1, |b, j| (_mm256_add_epi8(five(b, 2), bytes(112)), half(b, 0), 0.0));
blocks!(Plain4, 18, 1, |b, j| (_mm256_add_epi8(nibbles(b, 2), bytes(120)), half(b, 0), 0.0));
blocks!(Offset5, 24, 1, |b, j| (_mm256_add_epi8(five(b, 4), bytes(128)), half(b, 0), half(b, 2)));
blocks!(Offset4, 20, 1, |b, j| (_mm256_add_epi8(nibbles(b, 4), bytes(128)), half(b, 0), half(b, 2)));
blocks!(Codes, 18, 1, |b, j| (code(nibbles(b, 2)), half(b, 0), 0.0));
blocks!(Super4, 144, 8, |b, j| {
    let (scale, other) = scale_and_offset(b, j);
    (_mm256_or_si256(shifted(load(b, 16 + 32 * (j / 2)), 4 * (j % 2), 15), bytes(128)), scale, other)
});
blocks!(Super5, 176, 8, |b, j| {
    let (scale, other) = scale_and_offset(b, j);
    let fifth = _mm256_slli_epi16::<4>(shifted(load(b, 16), j, 1));
    let low = shifted(load(b, 48 + 32 * (j / 2)), 4 * (j % 2), 15);
    (_mm256_or_si256(_mm256_or_si256(low, fifth), bytes(128)), scale, other)
});
blocks!(Super6, 210, 8, |b, j| {
    let (part, quarter) = (j / 4, j % 4);
    let low = shifted(load(b, 64 * part + 32 * (quarter % 2)), 4 * (quarter / 2), 15);
    let high = _mm256_slli_epi16::<4>(shifted(load(b, 128 + 32 * part), 2 * quarter, 3));
    let (d, first, last) = (half(b, 208), b[192 + 2 * j] as i8, b[193 + 2 * j] as i8);
    (_mm256_add_epi8(_mm256_or_si256(low, high), bytes(96)), d * f32::from(first), d * f32::from(last))
});
blocks!(SuperCodes, 136, 8, |b, j| {
    let high = u16::from_le_bytes([b[2], b[3]]) >> (2 * j) & 3;
    let scale = (b[4 + j / 2] >> (4 * (j % 2)) & 15) as i32 | i32::from(high) << 4;
    (code(nibbles(b, 8 + 16 * j)), half(b, 0) * (scale - 32) as f32, 0.0)
});

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

/// Of the `j`-th part of a block of `q4_k` or `q5_k`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn scale_and_offset(block: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = scale_and_min(&block[4..16], j);
    (half(block, 0) * scale, -(half(block, 2) * min))
}

#[inline]
#[target_feature(enable = "f16c")]
fn half(block: &[u8], at: usize) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes([block[at], block[at + 1]])))))
}
