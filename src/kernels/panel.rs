//! Weights as the product reads them: 32 rows of a quantised matrix side by side.
//!
//! A row's blocks of 32 values become unsigned bytes, 128 being zero, because the dot-product instructions multiply unsigned
//! with signed bytes; a panel holds four consecutive values of each of its rows next to each other, which is what one
//! lane of those instructions takes. Nothing is rounded: `(byte − 128) · scale (+ other)` is what ggml dequantises.
//! Block layouts: `ggml-common.h`.

use half::f16;

use crate::quant::GgmlType;

/// Rows of a panel.
pub const ROWS: usize = 32;
/// Values along a row that share a scale.
pub const DEPTH: usize = 32;

/// 32 × 32 weights.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct PanelBlock {
    /// `[k / 4][row][k % 4]`.
    pub bytes: [[[u8; 4]; ROWS]; DEPTH / 4],
    /// A row's scale; of its first 16 values in [`Form::Halves`].
    pub scale: [f32; ROWS],
    /// What is added to each of a row's values in [`Form::Offset`]; the scale of its last 16 values in [`Form::Halves`].
    pub other: [f32; ROWS],
}

/// What the 32 values of a row have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A scale.
    Scale,
    /// A scale and an offset.
    Offset,
    /// A scale for each half.
    Halves,
}

impl Form {
    /// That of a type; none for types that no panel can be made of.
    pub fn of(ty: GgmlType) -> Option<Self> {
        use GgmlType::*;
        match ty {
            Q8_0 | Q5_0 | Q4_0 | IQ4_NL | IQ4_XS => Some(Form::Scale),
            Q5_1 | Q4_1 | Q5_K | Q4_K => Some(Form::Offset),
            Q6_K => Some(Form::Halves),
            _ => None,
        }
    }
}

impl PanelBlock {
    /// Zeros.
    pub const ZERO: Self = PanelBlock { bytes: [[[128; 4]; ROWS]; DEPTH / 4], scale: [0.0; ROWS], other: [0.0; ROWS] };

    fn put(&mut self, row: usize, values: &[u8; DEPTH], scale: f32, other: f32) {
        for (quad, four) in self.bytes.iter_mut().zip(values.as_chunks::<4>().0) {
            quad[row] = *four;
        }
        (self.scale[row], self.other[row]) = (scale, other);
    }
}

/// Fills `panel` with the beginnings of `rows` (bytes of type `ty`, at most 32 rows, each long enough for the panel);
/// missing rows become zeros. Cost: a pass over both, no allocation.
pub fn fill<'a>(panel: &mut [PanelBlock], ty: GgmlType, rows: impl Iterator<Item = &'a [u8]>) {
    let (mut list, mut n_rows) = ([&[][..]; ROWS], 0);
    for (to, row) in list.iter_mut().zip(rows) {
        *to = row;
        n_rows += 1;
    }
    let rows = &list[..n_rows];
    #[cfg(target_arch = "x86_64")]
    if super::unpack::is_available() {
        // SAFETY: it is.
        return unsafe { super::unpack::fill(panel, ty, rows) };
    }
    fill_plainly(panel, ty, rows);
}

/// As [`fill`] on any CPU, a value at a time.
fn fill_plainly(panel: &mut [PanelBlock], ty: GgmlType, rows: &[&[u8]]) {
    rows.iter().enumerate().for_each(|(i, row)| fill_row(panel, i, ty, row));
    for block in panel {
        (rows.len()..ROWS).for_each(|i| block.put(i, &[128; DEPTH], 0.0, 0.0));
    }
}

fn fill_row(panel: &mut [PanelBlock], i: usize, ty: GgmlType, row: &[u8]) {
    use GgmlType::*;
    let block_bytes = ty.block_bytes() as usize;
    if ty.block_size() == DEPTH as u64 {
        for (to, block) in panel.iter_mut().zip(row.chunks_exact(block_bytes)) {
            let (d, rest) = (half(block, 0), &block[2..]);
            match ty {
                Q8_0 => to.put(i, &signed(rest), d, 0.0),
                Q5_0 => to.put(i, &five(rest, 112), d, 0.0),
                Q4_0 => to.put(i, &nibbles(rest).map(|q| q + 120), d, 0.0),
                IQ4_NL => to.put(i, &nibbles(rest).map(code), d, 0.0),
                Q5_1 => to.put(i, &five(&rest[2..], 128), d, half(block, 2)),
                _ => to.put(i, &nibbles(&rest[2..]).map(|q| q + 128), d, half(block, 2)),
            }
        }
        return;
    }
    for (to, block) in panel.chunks_mut(256 / DEPTH).zip(row.chunks_exact(block_bytes)) {
        for (j, to) in to.iter_mut().enumerate() {
            match ty {
                Q6_K => {
                    let (scales, d) = (&block[192..208], half(block, 208));
                    let [first, last] = [scales[2 * j], scales[2 * j + 1]].map(|s| d * f32::from(s as i8));
                    to.put(i, &six(block, j), first, last);
                }
                IQ4_XS => {
                    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * j) & 3;
                    let scale = (block[4 + j / 2] >> (4 * (j % 2)) & 15) as i32 | i32::from(high) << 4;
                    to.put(i, &nibbles(&block[8 + 16 * j..]).map(code), half(block, 0) * (scale - 32) as f32, 0.0);
                }
                _ => {
                    let (scale, min) = scale_and_min(&block[4..16], j);
                    let (scale, offset) = (half(block, 0) * scale, -(half(block, 2) * min));
                    let quads = &block[if ty == Q5_K { 48 } else { 16 } + 32 * (j / 2)..];
                    let mut values: [u8; DEPTH] = std::array::from_fn(|k| 128 + (quads[k] >> (4 * (j % 2)) & 15));
                    if ty == Q5_K {
                        values.iter_mut().zip(&block[16..48]).for_each(|(q, high)| *q += (high >> j & 1) << 4);
                    }
                    to.put(i, &values, scale, offset);
                }
            }
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 signed bytes.
fn signed(bytes: &[u8]) -> [u8; DEPTH] {
    std::array::from_fn(|k| bytes[k] ^ 128)
}

/// 16 bytes hold the values k in their low and k + 16 in their high halves.
fn nibbles(bytes: &[u8]) -> [u8; DEPTH] {
    std::array::from_fn(|k| bytes[k % 16] >> (4 * (k / 16)) & 15)
}

/// Four bytes of fifth bits, then nibbles; `zero` is added.
fn five(bytes: &[u8], zero: u8) -> [u8; DEPTH] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let low = nibbles(&bytes[4..]);
    std::array::from_fn(|k| low[k] + ((high >> k & 1) << 4) as u8 + zero)
}

/// The j-th 32 of the 256 values of a `q6_k` block: low nibbles at 0, two high bits at 128.
fn six(block: &[u8], j: usize) -> [u8; DEPTH] {
    let (half, quarter) = (j / 4, j % 4);
    let low = &block[64 * half + 32 * (quarter % 2)..];
    let high = &block[128 + 32 * half..];
    std::array::from_fn(|k| {
        let q = (low[k] >> (4 * (quarter / 2)) & 15) | (high[k] >> (2 * quarter) & 3) << 4;
        q + 96
    })
}

/// The 6-bit scale and minimum of the j-th of 8 parts, from the 12 bytes of `q4_k` and `q5_k`.
pub(super) fn scale_and_min(bytes: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (bytes[j] & 63, bytes[j + 4] & 63)
    } else {
        (bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4, bytes[j + 4] >> 4 | bytes[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// What `iq4` nibbles stand for: `kvalues_iq4nl` of `ggml-common.h`.
pub(super) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The value of an `iq4` nibble, 128 added.
fn code(nibble: u8) -> u8 {
    VALUES[nibble as usize] as u8 ^ 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::{dequantize_row, quantize_rows};

    const N: usize = 512;

    /// So many rows, one behind the other, and the bytes of each.
    fn stored(ty: GgmlType, n_rows: usize) -> (Vec<u8>, usize) {
        let n = (n_rows * N) as u32;
        let values: Vec<f32> = (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0).collect();
        let row_bytes = ty.row_bytes(N as u64).expect("whole blocks") as usize;
        let mut stored = vec![0; n_rows * row_bytes];
        quantize_rows(ty, &values, N, None, &mut stored);
        (stored, row_bytes)
    }

    /// What a block's `k`-th value of the `i`-th row is.
    fn value(form: Form, block: &PanelBlock, i: usize, k: usize) -> f32 {
        let q = f32::from(block.bytes[k / 4][i][k % 4]) - 128.0;
        match form {
            Form::Scale => q * block.scale[i],
            Form::Offset => q.mul_add(block.scale[i], block.other[i]),
            Form::Halves => q * if k < 16 { block.scale[i] } else { block.other[i] },
        }
    }

    /// Every type's panel says what ggml's dequantisation says, to the last bit where there is one rounding (a scale) and
    /// within one where ggml rounds product and offset apart.
    #[test]
    fn panels_hold_what_ggml_dequantises() {
        use GgmlType::*;
        for ty in [Q8_0, Q5_0, Q4_0, IQ4_NL, IQ4_XS, Q5_1, Q4_1, Q5_K, Q4_K, Q6_K] {
            let form = Form::of(ty).expect("has a form");
            let (stored, row_bytes) = stored(ty, 5);
            let mut panel = vec![PanelBlock::ZERO; N / DEPTH];
            fill(&mut panel, ty, stored.chunks_exact(row_bytes));
            let mut expect = vec![0.0; N];
            for (i, row) in stored.chunks_exact(row_bytes).enumerate() {
                dequantize_row(ty, row, &mut expect);
                for (k, expect) in expect.iter().enumerate() {
                    let got = value(form, &panel[k / DEPTH], i, k % DEPTH);
                    assert!((got - expect).abs() <= 2e-7, "{ty}: row {i}, value {k}: {got}, ggml {expect}");
                }
            }
            assert_eq!(panel[3].scale[5..], [0.0; ROWS - 5], "{ty}: missing rows are zeros");
        }
    }

    /// Any bits are rows, whatever their scales stand for; panels are compared by theirs.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn unpacking_with_simd_gives_the_same_panel() {
        use crate::kernels::unpack;
        use GgmlType::*;
        if !unpack::is_available() {
            return;
        }
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for ty in [Q8_0, Q5_0, Q4_0, IQ4_NL, IQ4_XS, Q5_1, Q4_1, Q5_K, Q4_K, Q6_K] {
            let row_bytes = ty.row_bytes(N as u64).expect("whole blocks") as usize;
            for n_rows in [0, 1, 7, 8, 9, 31, 32] {
                let stored: Vec<u8> = (0..n_rows * row_bytes).map(|_| next()).collect();
                let rows: Vec<&[u8]> = stored.chunks_exact(row_bytes).collect();
                // Shorter than the rows, and with something in it.
                let garbage = PanelBlock { bytes: [[[7; 4]; ROWS]; DEPTH / 4], scale: [3.0; ROWS], other: [5.0; ROWS] };
                let [mut got, mut want] = [(); 2].map(|()| vec![garbage.clone(); N / DEPTH - 3]);
                // SAFETY: it is available.
                unsafe { unpack::fill(&mut got, ty, &rows) };
                fill_plainly(&mut want, ty, &rows);
                for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                    let bits = |numbers: &[f32; ROWS]| numbers.map(f32::to_bits);
                    assert_eq!(got.bytes, want.bytes, "{ty}: {n_rows} rows, block {k}");
                    // A NaN may have any bits.
                    let same = |got: &[f32; ROWS], want: &[f32; ROWS]| {
                        bits(got)
                            .iter()
                            .zip(bits(want))
                            .all(|(g, w)| *g == w || f32::from_bits(*g).is_nan() && f32::from_bits(w).is_nan())
                    };
                    assert!(same(&got.scale, &want.scale), "{ty}: {n_rows} rows, block {k}, scales");
                    assert!(same(&got.other, &want.other), "{ty}: {n_rows} rows, block {k}, others");
                }
            }
        }
    }

    /// Tiles for AMX have the panel's values, rounded to bf16.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn tiles_hold_what_panels_hold() {
        use crate::kernels::amx::{TILE_ROWS, Tile};
        use crate::kernels::{Kernels, unpack};
        use GgmlType::*;
        if !Kernels::Avx512.is_available() {
            return;
        }
        let bf16 = |x: f32| half::bf16::from_f32(x).to_bits();
        for ty in [Q8_0, Q5_0, Q4_0, IQ4_NL, IQ4_XS, Q5_1, Q4_1, Q5_K, Q4_K, Q6_K] {
            let form = Form::of(ty).expect("has a form");
            let (stored, row_bytes) = stored(ty, 29);
            let rows: Vec<&[u8]> = stored.chunks_exact(row_bytes).collect();
            let mut panel = vec![PanelBlock::ZERO; N / DEPTH];
            fill(&mut panel, ty, rows.iter().copied());
            let (first, mut tiles) = (8, vec![[Tile([[7; 64]; TILE_ROWS]); 2]; N / DEPTH - 8]);
            // SAFETY: it is available.
            unsafe { unpack::widen(ty, &rows, first, &mut tiles) };
            for (block, tiles) in panel[first..].iter().zip(&tiles) {
                for (i, k) in (0..ROWS).flat_map(|i| (0..DEPTH).map(move |k| (i, k))) {
                    let want = value(form, block, i, k);
                    let row = &tiles[i / TILE_ROWS].0[i % TILE_ROWS];
                    let got = u16::from_le_bytes([row[2 * k], row[2 * k + 1]]);
                    assert_eq!(got, bf16(want), "{ty}: row {i}, value {k}: {want}");
                }
            }
        }
    }
}
