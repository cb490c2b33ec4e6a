//! The inner loops for AMX with BF16 (Xeons since Sapphire Rapids): eight registers of 16 rows of 64 bytes, and an instruction that
//! multiplies two of them.
//!
//! A product keeps 2 × 2 tiles of sums: four tiles loaded serve four multiplications. What is loaded comes from the second cache, and
//! loads of tiles do not run ahead, so that lines are asked for two steps before they are needed.
//!
//! Rust has the instructions as inline assembly only. The system has to be asked once before a process may use them (Linux:
//! `arch_prctl`), and the shapes of tiles belong to a thread: ggml's threads do other work in between, so that [`Shapes`] sets them
//! for a share of work and gives them back.

#![allow(clippy::needless_range_loop)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::LazyLock;

use super::avx512::{LANES, load, to_pairs};
use super::panel::DEPTH;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Rows that are multiplied together, and columns: two tiles of each.
pub const SIDE: usize = 2 * TILE_ROWS;

/// A register's bytes: on the left of a product `[row][32 of depth]`, on the right `[pair of depth][column][2]`, bf16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile(pub [[u8; 64]; TILE_ROWS]);

/// 32 of depth of 32 rows or columns.
pub type Tiles = [Tile; 2];

/// Sums `[row][column]`.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Sums(pub [[f32; SIDE]; SIDE]);

impl Sums {
    /// Zeros.
    pub const ZERO: Self = Sums([[0.0; SIDE]; SIDE]);
}

impl Tile {
    /// Zeros.
    pub const ZERO: Self = Tile([[0; 64]; TILE_ROWS]);
}

/// Whether this CPU has it and the system lets this process use it. Cost: asks once.
pub fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| has_tiles() && is_permitted());
    *AVAILABLE
}

/// CPUID and XGETBV, since the standard library does not tell yet. Source: Intel's manual, volume 1, chapter 18.
fn has_tiles() -> bool {
    const TILE: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    /// The system saves the shapes and the tiles of threads.
    const SAVED: u64 = 1 << 17 | 1 << 18;
    if cfg!(miri) || !is_x86_feature_detected!("avx512f") || !is_x86_feature_detected!("xsave") {
        return false;
    }
    // Some versions of the standard library have these as safe functions, others not.
    #[allow(unused_unsafe)]
    // SAFETY: a CPU with AVX-512 has CPUID and its leaf 7, and XGETBV where the system uses XSAVE.
    unsafe {
        let has = __cpuid_count(7, 0).edx;
        has & TILE != 0 && has & BF16 != 0 && _xgetbv(0) & SAVED == SAVED
    }
}

#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: asks for a permission of this process, and touches none of its memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// This thread's tiles have 16 rows of 64 bytes, until it is dropped.
pub struct Shapes(());

impl Shapes {
    /// Sets them.
    ///
    /// # Safety
    /// [`is_available`].
    pub unsafe fn set() -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(TILE_ROWS as u8);
        // SAFETY: available by this function's contract; reads 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags),
                 out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
        Shapes(())
    }
}

impl Drop for Shapes {
    fn drop(&mut self) {
        // SAFETY: available, or it would not have been set.
        unsafe {
            asm!("tilerelease", options(nostack, nomem, preserves_flags),
                 out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

/// Adds to `sums` 32 rows times 32 columns, both over the same depth; or sets them, where they are the `first`.
pub fn multiply(_: &Shapes, rows: &[Tiles], columns: &[Tiles], sums: &mut Sums, first: bool) {
    let n = rows.len();
    assert!(columns.len() == n, "the same depth");
    if n == 0 {
        if first {
            *sums = Sums::ZERO;
        }
        return;
    }
    // SAFETY: the shapes are set, so it is available; n tiles of each are read; 32 × 32 sums are read and written.
    unsafe {
        asm!(
            "test {first:e}, {first:e}",
            "jz 3f",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "jmp 2f",
            "3:",
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm1, [{sums} + {line} + 64]",
            "tileloadd tmm2, [{sums} + {line} + 2048]",
            "tileloadd tmm3, [{sums} + {line} + 2112]",
            "2:",
            "tileloadd tmm4, [{a} + {row}]",
            ".irp line, 0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht0 [{a} + 4096 + \\line]",
            ".endr",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            ".irp line, 0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht0 [{b} + 4096 + \\line]",
            ".endr",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            ".irp line, 0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht0 [{a} + 5120 + \\line]",
            ".endr",
            "tdpbf16ps tmm2, tmm5, tmm6",
            ".irp line, 0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht0 [{b} + 5120 + \\line]",
            ".endr",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048", "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 64], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 2112], tmm3",
            a = inout(reg) rows.as_ptr() => _,
            b = inout(reg) columns.as_ptr() => _,
            n = inout(reg) n => _,
            first = in(reg) u32::from(first),
            row = in(reg) 64usize,
            line = in(reg) SIDE * size_of::<f32>(),
            sums = in(reg) sums.0.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// `[column][row]` of `[row][column]`.
///
/// # Safety
/// The CPU has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub unsafe fn transpose(sums: &Sums, to: &mut [[f32; SIDE]; SIDE]) {
    for corner in 0..4 {
        let (row, column) = (corner / 2 * LANES, corner % 2 * LANES);
        let mut lines = [_mm512_setzero_ps(); LANES];
        for i in 0..LANES {
            lines[i] = load(&sums.0[row + i], column / LANES);
        }
        let lines = transposed(&lines);
        for i in 0..LANES {
            // SAFETY: 16 of 32 numbers.
            unsafe { _mm512_storeu_ps(to[column + i][row..row + LANES].as_mut_ptr(), lines[i]) };
        }
    }
}

/// 16 registers of 16 numbers: in fours of lanes first, and then those.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(lines: &[__m512; LANES]) -> [__m512; LANES] {
    let mut a = *lines;
    for i in (0..LANES).step_by(2) {
        a[i] = _mm512_unpacklo_ps(lines[i], lines[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(lines[i], lines[i + 1]);
    }
    // Of lines 4 i to 4 i + 3, those numbers j of every four lanes.
    let mut b = a;
    for i in (0..LANES).step_by(4) {
        for half in 0..2 {
            let (low, high) = (_mm512_castps_pd(a[i + half]), _mm512_castps_pd(a[i + 2 + half]));
            b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    let mut c = b;
    for j in 0..4 {
        let [p, q, r, s] = [b[j], b[4 + j], b[8 + j], b[12 + j]];
        let (even_low, odd_low) = (_mm512_shuffle_f32x4::<0x88>(p, q), _mm512_shuffle_f32x4::<0xdd>(p, q));
        let (even_high, odd_high) = (_mm512_shuffle_f32x4::<0x88>(r, s), _mm512_shuffle_f32x4::<0xdd>(r, s));
        c[j] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
        c[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even_low, even_high);
        c[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
        c[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high);
    }
    c
}

/// Lanes of `a` and `b` as pairs of bf16, `a` in the low halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn interleaved(a: __m512, b: __m512) -> __m512i {
    const ORDER: [u16; 2 * LANES] = {
        let mut order = [0; 2 * LANES];
        let mut i = 0;
        while i < 2 * LANES {
            order[i] = (i / 2 + i % 2 * LANES) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: 32 numbers of 16 bits.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    _mm512_permutexvar_epi16(order, to_pairs(a, b))
}

/// 32 values as a row of a tile on the left, rounded to bf16.
///
/// # Safety
/// The CPU has AVX-512 F and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn put_row(tile: &mut Tile, row: usize, values: [__m512; 2]) {
    // SAFETY: a row is 64 bytes.
    unsafe { _mm512_storeu_si512(tile.0[row].as_mut_ptr().cast(), to_pairs(values[0], values[1])) };
}

/// Makes rows of a tile on the left the columns of one on the right.
///
/// # Safety
/// The CPU has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub unsafe fn turn(tile: &mut Tile) {
    let mut lines = [_mm512_setzero_ps(); TILE_ROWS];
    for i in 0..TILE_ROWS {
        // SAFETY: a row is 64 bytes.
        lines[i] = unsafe { _mm512_loadu_ps(tile.0[i].as_ptr().cast()) };
    }
    let lines = transposed(&lines);
    for i in 0..TILE_ROWS {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(tile.0[i].as_mut_ptr().cast(), lines[i]) };
    }
}

/// As many multiplications of tiles as `n` in registers: multiplications and additions done.
///
/// # Safety
/// [`is_available`].
pub unsafe fn peak(n: u64) -> u64 {
    // A tile's multiplication takes as long as eight or sixteen of other registers.
    let n = (n / 64).max(1);
    // SAFETY: available by this function's contract.
    unsafe {
        let _shapes = Shapes::set();
        asm!(
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) n => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
    n * 4 * (2 * TILE_ROWS * TILE_ROWS * DEPTH) as u64
}
