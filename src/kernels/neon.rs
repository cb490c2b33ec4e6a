//! The inner loops for NEON with dot products (`dotprod`: Apple since M1, Cortex-A76 and later) and with products of small
//! matrices (`i8mm`: Apple since M2, Cortex-A710, Neoverse V1 and later).
//!
//! There are 32 registers: 2 of rows × 6 columns of integer and as many of float sums, two of weights and two of columns take
//! 28. A tile is four such parts. The two instructions are written out, since Rust has no stable intrinsics for them.
#![allow(clippy::needless_range_loop)]

use std::arch::aarch64::*;
use std::arch::asm;
use std::hint::black_box;

use super::Tile;
use super::columns::{COLUMNS, ColumnBlock};
use super::panel::{Form, PanelBlock, ROWS};

/// Lanes of a register of f32.
const LANES: usize = 4;
/// Rows of a part of a tile.
const PART: usize = 2 * LANES;

const SCALE: u8 = Form::Scale as u8;
const OFFSET: u8 = Form::Offset as u8;
const HALVES: u8 = Form::Halves as u8;

/// The loops around an instruction, once with the features of each: what has others would not be inlined. `$dots` are its dot
/// products, `$step` is the instruction, which multiplies `$products` pairs of bytes.
macro_rules! inner_loops {
    ($name:ident, $feature:literal, $dots:ident, $step:expr, $products:literal) => {
        pub mod $name {
            use super::*;

            /// Sums over all blocks of a panel times those of a group of columns.
            ///
            /// # Safety
            #[doc = concat!("The CPU has ", $feature, ".")]
            #[target_feature(enable = $feature)]
            pub unsafe fn int8_tile(form: Form, panel: &[PanelBlock], columns: &[ColumnBlock]) -> Tile {
                let mut tile = [[0.0; ROWS]; COLUMNS];
                for row in (0..ROWS).step_by(PART) {
                    match form {
                        Form::Scale => part::<SCALE>(panel, columns, row, &mut tile),
                        Form::Offset => part::<OFFSET>(panel, columns, row, &mut tile),
                        Form::Halves => part::<HALVES>(panel, columns, row, &mut tile),
                    }
                }
                tile
            }

            /// Eight rows from `row` on.
            #[target_feature(enable = $feature)]
            fn part<const FORM: u8>(panel: &[PanelBlock], columns: &[ColumnBlock], row: usize, tile: &mut Tile) {
                let mut sums = [[vdupq_n_f32(0.0); 2]; COLUMNS];
                for (w, x) in panel.iter().zip(columns) {
                    let scale = load(&w.scale, row);
                    if FORM == HALVES {
                        let other = load(&w.other, row);
                        add(&mut sums, &$dots::<0, 4>(w, x, &x.start_halves[0], row), scale, &x.scale);
                        add(&mut sums, &$dots::<4, 8>(w, x, &x.start_halves[1], row), other, &x.scale);
                        continue;
                    }
                    add(&mut sums, &$dots::<0, 8>(w, x, &x.start, row), scale, &x.scale);
                    if FORM == OFFSET {
                        let other = load(&w.other, row);
                        for j in 0..COLUMNS {
                            for i in 0..2 {
                                sums[j][i] = vfmaq_n_f32(sums[j][i], other[i], x.sum[j]);
                            }
                        }
                    }
                }
                for (to, sums) in tile.iter_mut().zip(&sums) {
                    let to = to[row..row + PART].as_mut_ptr();
                    // SAFETY: eight values.
                    unsafe {
                        vst1q_f32(to, sums[0]);
                        vst1q_f32(to.add(LANES), sums[1]);
                    }
                }
            }

            /// As many of its instructions as `n` in registers: multiplications and additions done.
            ///
            /// # Safety
            #[doc = concat!("The CPU has ", $feature, ".")]
            #[target_feature(enable = $feature)]
            pub unsafe fn peak(n: u64) -> u64 {
                const SUMS: usize = 12;
                let (a, b) = (vdupq_n_u8(black_box(1)), vdupq_n_u8(black_box(2)));
                let mut sums = [vdupq_n_s32(0); SUMS];
                for _ in 0..n / SUMS as u64 {
                    for i in 0..SUMS {
                        sums[i] = $step(sums[i], a, b);
                    }
                }
                black_box(sums);
                n / SUMS as u64 * SUMS as u64 * $products * 2
            }
        }
    };
}

inner_loops!(dotprod, "neon,dotprod", dots, sdot::<0>, 16);
inner_loops!(i8mm, "neon,i8mm", dots_of_pairs, usmmla, 32);

/// Integer dot products over the quads `FROM .. TO` of a block, `[column][row]`: a quad of four rows times that of a column.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dots<const FROM: usize, const TO: usize>(
    w: &PanelBlock,
    x: &ColumnBlock,
    _: &[i32; COLUMNS],
    row: usize,
) -> [[int32x4_t; 2]; COLUMNS] {
    let mut sums = [[vdupq_n_s32(0); 2]; COLUMNS];
    for k in FROM..TO {
        let (rows, [first, last]) = (rows_of(w, k, row), columns_of(x, k));
        for i in 0..2 {
            // Both bytes are signed here: without the 128 that were added there is nothing to start from.
            let rows = veorq_u8(rows[i], vdupq_n_u8(128));
            sums[0][i] = sdot::<0>(sums[0][i], rows, first);
            sums[1][i] = sdot::<1>(sums[1][i], rows, first);
            sums[2][i] = sdot::<2>(sums[2][i], rows, first);
            sums[3][i] = sdot::<3>(sums[3][i], rows, first);
            sums[4][i] = sdot::<2>(sums[4][i], rows, last);
            sums[5][i] = sdot::<3>(sums[5][i], rows, last);
        }
    }
    sums
}

/// The same with two quads of two rows times those of two columns at a time.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn dots_of_pairs<const FROM: usize, const TO: usize>(
    w: &PanelBlock,
    x: &ColumnBlock,
    start: &[i32; COLUMNS],
    row: usize,
) -> [[int32x4_t; 2]; COLUMNS] {
    // `[pair of columns][pair of rows]`, in a register `[row][column]`.
    let mut sums = [[vdupq_n_s32(0); PART / 2]; COLUMNS / 2];
    for (sums, start) in sums.iter_mut().zip(start.as_chunks::<2>().0) {
        // SAFETY: two values.
        let start = unsafe { vld1_s32(start.as_ptr()) };
        *sums = [vcombine_s32(start, start); PART / 2];
    }
    for k in (FROM..TO).step_by(2) {
        let (a, b) = (rows_of(w, k, row), rows_of(w, k + 1, row));
        let rows = [zip_low(a[0], b[0]), zip_high(a[0], b[0]), zip_low(a[1], b[1]), zip_high(a[1], b[1])];
        let (a, b) = (columns_of(x, k), columns_of(x, k + 1));
        let columns = [zip_low(a[0], b[0]), zip_high(a[0], b[0]), zip_high(a[1], b[1])];
        for j in 0..COLUMNS / 2 {
            for i in 0..PART / 2 {
                sums[j][i] = usmmla(sums[j][i], rows[i], columns[j]);
            }
        }
    }
    let mut apart = [[vdupq_n_s32(0); 2]; COLUMNS];
    for j in 0..COLUMNS / 2 {
        for i in 0..2 {
            apart[2 * j][i] = vuzp1q_s32(sums[j][2 * i], sums[j][2 * i + 1]);
            apart[2 * j + 1][i] = vuzp2q_s32(sums[j][2 * i], sums[j][2 * i + 1]);
        }
    }
    apart
}

/// The k-th quads of eight rows.
#[inline]
#[target_feature(enable = "neon")]
fn rows_of(w: &PanelBlock, k: usize, row: usize) -> [uint8x16_t; 2] {
    let rows = w.bytes[k][row..row + PART].as_flattened().as_ptr();
    // SAFETY: eight rows are 32 bytes.
    unsafe { [vld1q_u8(rows), vld1q_u8(rows.add(16))] }
}

/// The k-th quads of the columns 0 to 3 and 2 to 5.
#[inline]
#[target_feature(enable = "neon")]
fn columns_of(x: &ColumnBlock, k: usize) -> [uint8x16_t; 2] {
    let columns = x.bytes[k].as_flattened().as_ptr().cast();
    // SAFETY: six columns are 24 bytes.
    unsafe { [vld1q_u8(columns), vld1q_u8(columns.add(8))] }
}

/// The quads of rows or columns 0 and 1 from `a` and `b`, side by side.
#[inline]
#[target_feature(enable = "neon")]
fn zip_low(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)))
}

/// Those of 2 and 3.
#[inline]
#[target_feature(enable = "neon")]
fn zip_high(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)))
}

/// `sums += ints · w · x`: `w` a scale a row, `x` one a column.
#[inline]
#[target_feature(enable = "neon")]
fn add(
    sums: &mut [[float32x4_t; 2]; COLUMNS],
    ints: &[[int32x4_t; 2]; COLUMNS],
    w: [float32x4_t; 2],
    x: &[f32; COLUMNS],
) {
    for j in 0..COLUMNS {
        for i in 0..2 {
            sums[j][i] = vfmaq_f32(sums[j][i], vcvtq_f32_s32(ints[j][i]), vmulq_n_f32(w[i], x[j]));
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(values: &[f32; ROWS], row: usize) -> [float32x4_t; 2] {
    let values = values[row..row + PART].as_ptr();
    // SAFETY: eight values.
    unsafe { [vld1q_f32(values), vld1q_f32(values.add(LANES))] }
}

/// Adds to each of four sums the dot product of four signed bytes of `rows` with the `COLUMN`-th four of `columns`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const COLUMN: u8>(mut sums: int32x4_t, rows: uint8x16_t, columns: uint8x16_t) -> int32x4_t {
    // SAFETY: the instruction touches these registers only, and the CPU has it by this function's feature.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {rows:v}.16b, {columns:v}.4b[{column}]",
            sums = inout(vreg) sums, rows = in(vreg) rows, columns = in(vreg) columns, column = const COLUMN,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Adds to `sums`, `[row][column]`, the dot products of eight unsigned bytes of two rows with eight signed bytes of two columns.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usmmla(mut sums: int32x4_t, rows: uint8x16_t, columns: uint8x16_t) -> int32x4_t {
    // SAFETY: the instruction touches these registers only, and the CPU has it by this function's feature.
    unsafe {
        asm!(
            "usmmla {sums:v}.4s, {rows:v}.16b, {columns:v}.16b",
            sums = inout(vreg) sums, rows = in(vreg) rows, columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
