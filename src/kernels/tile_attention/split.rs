//! Numbers as one or two of bf16, in tiles.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::kernels::amx::{self, Shapes, Sums, TILE_ROWS, Tile, Tiles};
use crate::kernels::avx512;

/// How many bf16 a number is made of.
#[cfg_attr(not(text_kernels), allow(dead_code))] // Two are those of texts, and so is F16.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Digits {
    /// Rounded to one.
    One,
    /// And what that leaves, rounded to another.
    Two,
}

/// Numbers as tiles: rounded to bf16, and, if they have two digits, what that leaves.
pub struct Split {
    high: Vec<Tiles>,
    low: Vec<Tiles>,
}

impl Split {
    pub fn new(digits: Digits, n: usize) -> Self {
        let tiles = |n| vec![[Tile::ZERO; 2]; n];
        Split { high: tiles(n), low: tiles(if digits == Digits::Two { n } else { 0 }) }
    }

    /// 32 values as a row of the `i`-th tile on the left.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and BF16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn put_row(&mut self, i: usize, row: usize, values: [__m512; 2]) {
        // SAFETY: by this function's contract.
        unsafe {
            amx::put_row(&mut self.high[i][row / TILE_ROWS], row % TILE_ROWS, values);
            if let Some(tiles) = self.low.get_mut(i) {
                amx::put_row(&mut tiles[row / TILE_ROWS], row % TILE_ROWS, rests(values));
            }
        }
    }

    /// 32 values of each of two positions as a line of the `i`-th tile on the right.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn put_pair(&mut self, i: usize, line: usize, even: [__m512; 2], odd: [__m512; 2]) {
        put_pairs(&mut self.high[i], line, even, odd);
        if let Some(tiles) = self.low.get_mut(i) {
            put_pairs(tiles, line, rests(even), rests(odd));
        }
    }

    /// Makes tiles on the left tiles on the right: rows are columns then.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn turn(&mut self, tiles: Range<usize>) {
        for all in [&mut self.high, &mut self.low] {
            if let Some(tiles) = all.get_mut(tiles.clone()) {
                // SAFETY: by this function's contract.
                tiles.as_flattened_mut().iter_mut().for_each(|tile| unsafe { amx::turn(tile) });
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn put_pairs(tiles: &mut Tiles, line: usize, even: [__m512; 2], odd: [__m512; 2]) {
    for (half, tile) in tiles.iter_mut().enumerate() {
        let pairs = amx::interleaved(even[half], odd[half]);
        // SAFETY: a row of a tile is 64 bytes.
        unsafe { _mm512_storeu_si512(tile.0[line].as_mut_ptr().cast(), pairs) };
    }
}

/// Some tiles, in all their digits.
#[derive(Clone)]
pub struct Part<'a>(pub &'a Split, pub Range<usize>);

/// Adds rows times columns to `sums`, or sets them, where they are the `first`: products of all digits, but for low with low, which
/// are too small to matter.
pub fn multiply(shapes: &Shapes, rows: Part<'_>, columns: Part<'_>, sums: &mut Sums, first: bool) {
    let (Part(rows, i), Part(columns, j)) = (rows, columns);
    amx::multiply(shapes, &rows.high[i.clone()], &columns.high[j.clone()], sums, first);
    if let (Some(low_rows), Some(low_columns)) = (rows.low.get(i.clone()), columns.low.get(j.clone())) {
        amx::multiply(shapes, &rows.high[i], low_columns, sums, false);
        amx::multiply(shapes, low_rows, &columns.high[j], sums, false);
    }
}

/// What rounding to bf16 leaves.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rests(values: [__m512; 2]) -> [__m512; 2] {
    values.map(|values| _mm512_sub_ps(values, avx512::rounded(values)))
}
