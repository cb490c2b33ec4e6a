//! The inner loops for AVX-VNNI: 256 bits wide, in Intel's laptops since Alder Lake, AMD's since Zen 5, and small cores.
//!
//! There are 16 registers: 2 of rows × 3 columns of integer and as many of float sums, two of weights and one of a column take
//! 15. A tile is four such parts.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;
use std::hint::black_box;

use super::columns::{COLUMNS, ColumnBlock};
use super::panel::{DEPTH, Form, PanelBlock, ROWS};
use super::{Tile, portable};

/// Lanes of a register of f32.
const LANES: usize = 8;
/// Columns of a part of a tile.
const PART: usize = 3;

/// Sums over all blocks of a panel times those of a group of columns.
///
/// # Safety
/// The CPU has AVX2, FMA and AVX-VNNI.
pub unsafe fn int8_tile(form: Form, panel: &[PanelBlock], columns: &[ColumnBlock]) -> Tile {
    let mut tile = [[0.0; ROWS]; COLUMNS];
    for row in (0..ROWS).step_by(2 * LANES) {
        for column in (0..COLUMNS).step_by(PART) {
            // SAFETY: by this function's contract.
            let sums = unsafe {
                match form {
                    Form::Scale => part_of::<SCALE>(panel, columns, row, column),
                    Form::Offset => part_of::<OFFSET>(panel, columns, row, column),
                    Form::Halves => part_of::<HALVES>(panel, columns, row, column),
                }
            };
            for (to, sums) in tile[column..].iter_mut().zip(sums) {
                to[row..][..2 * LANES].copy_from_slice(&sums);
            }
        }
    }
    tile
}

const SCALE: u8 = Form::Scale as u8;
const OFFSET: u8 = Form::Offset as u8;
const HALVES: u8 = Form::Halves as u8;

/// Three columns from `column` on times 16 rows from `row` on.
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn part_of<const FORM: u8>(
    panel: &[PanelBlock],
    columns: &[ColumnBlock],
    row: usize,
    column: usize,
) -> [[f32; 2 * LANES]; PART] {
    let mut sums = [[_mm256_setzero_ps(); 2]; PART];
    for (w, x) in panel.iter().zip(columns) {
        let (scale, x_scale) = (load(&w.scale, row), &x.scale[column..column + PART]);
        if FORM == HALVES {
            let other = load(&w.other, row);
            add(&mut sums, &dots::<0, 4>(w, x, &x.start_halves[0], row, column), scale, x_scale);
            add(&mut sums, &dots::<4, 8>(w, x, &x.start_halves[1], row, column), other, x_scale);
            continue;
        }
        add(&mut sums, &dots::<0, 8>(w, x, &x.start, row, column), scale, x_scale);
        if FORM == OFFSET {
            let other = load(&w.other, row);
            for j in 0..PART {
                let sum = _mm256_set1_ps(x.sum[column + j]);
                for i in 0..2 {
                    sums[j][i] = _mm256_fmadd_ps(other[i], sum, sums[j][i]);
                }
            }
        }
    }
    let mut part = [[0.0; 2 * LANES]; PART];
    for (to, sums) in part.iter_mut().zip(&sums) {
        // SAFETY: 16 values.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(LANES), sums[1]);
        }
    }
    part
}

/// Integer dot products over the quads `FROM .. TO` of a block.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn dots<const FROM: usize, const TO: usize>(
    w: &PanelBlock,
    x: &ColumnBlock,
    start: &[i32; COLUMNS],
    row: usize,
    column: usize,
) -> [[__m256i; 2]; PART] {
    let mut sums = [[_mm256_setzero_si256(); 2]; PART];
    for j in 0..PART {
        sums[j] = [_mm256_set1_epi32(start[column + j]); 2];
    }
    for k in FROM..TO {
        let rows = w.bytes[k][row..row + 2 * LANES].as_ptr().cast::<__m256i>();
        // SAFETY: 16 rows are 64 bytes, aligned to as many.
        let rows = unsafe { [_mm256_load_si256(rows), _mm256_load_si256(rows.add(1))] };
        for j in 0..PART {
            let [a, b, c, d] = x.bytes[k][column + j];
            let column = _mm256_set1_epi32(i32::from_ne_bytes([a as u8, b as u8, c as u8, d as u8]));
            for i in 0..2 {
                sums[j][i] = _mm256_dpbusd_avx_epi32(sums[j][i], rows[i], column);
            }
        }
    }
    sums
}

/// `sums += ints · w · x`: `w` a scale a row, `x` one a column.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add(sums: &mut [[__m256; 2]; PART], ints: &[[__m256i; 2]; PART], w: [__m256; 2], x: &[f32]) {
    for j in 0..PART {
        let x = _mm256_set1_ps(x[j]);
        for i in 0..2 {
            sums[j][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints[j][i]), _mm256_mul_ps(w[i], x), sums[j][i]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(values: &[f32; ROWS], row: usize) -> [__m256; 2] {
    let values = values[row..row + 2 * LANES].as_ptr();
    // SAFETY: 16 values.
    unsafe { [_mm256_loadu_ps(values), _mm256_loadu_ps(values.add(LANES))] }
}

/// As that of `portable`.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub unsafe fn to_int8(values: &[f32; DEPTH]) -> ([i8; DEPTH], f32) {
    portable::to_int8(values)
}

/// GELU of every value.
///
/// # Safety
/// The CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn gelu(columns: &mut [[f32; ROWS]]) {
    portable::gelu(columns);
}

/// As many dot products as `n` in registers: multiplications and additions done.
///
/// # Safety
/// The CPU has AVX2 and AVX-VNNI.
#[target_feature(enable = "avx2,avxvnni")]
pub unsafe fn peak(n: u64) -> u64 {
    const SUMS: usize = 12;
    let (a, b) = (_mm256_set1_epi32(black_box(0x0102_0304)), _mm256_set1_epi32(black_box(0x0101_0101)));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for _ in 0..n / SUMS as u64 {
        for i in 0..SUMS {
            sums[i] = _mm256_dpbusd_avx_epi32(sums[i], a, b);
        }
    }
    black_box(sums);
    n / SUMS as u64 * SUMS as u64 * 32 * 2
}
