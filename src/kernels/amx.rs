//! The inner loops for AMX with BF16 (Xeons since Sapphire Rapids): eight registers of 16 rows of 64 bytes, and an instruction that
//! multiplies two of them.
//!
//! A product keeps 2 × 2 tiles of sums over the whole depth: four tiles loaded serve four multiplications. What is loaded comes from
//! the second cache, and loads of tiles do not run ahead, so that lines are asked for two steps before they are needed.
//!
//! Rust has the instructions as inline assembly only. The system has to be asked once before a process may use them (Linux:
//! `arch_prctl`), and the shapes of tiles belong to a thread: ggml's threads do other work in between, so that [`Shapes`] sets them
//! for a share of work and gives them back.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::LazyLock;

use super::avx512::{LANES, load, to_pairs};
use super::panel::{DEPTH, Form, PanelBlock, ROWS};

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Columns that are multiplied together, and rows: two tiles of each.
pub const SIDE: usize = 2 * TILE_ROWS;

/// A register's bytes: of activations `[column][32 of depth]`, of weights `[pair of depth][row][2]`, bf16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile(pub [[u8; 64]; TILE_ROWS]);

/// 32 rows of weights, 32 of depth.
pub type WeightTiles = [Tile; 2];

/// Sums `[column][row]`.
#[repr(C, align(64))]
pub struct Sums(pub [[f32; ROWS]; SIDE]);

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

/// 32 rows of weights times 32 columns, both over the same depth.
pub fn multiply(_: &Shapes, weights: &[WeightTiles], columns: [&[Tile]; 2], sums: &mut Sums) {
    let n = weights.len();
    assert!(columns.iter().all(|tiles| tiles.len() == n), "the same depth");
    if n == 0 {
        sums.0 = [[0.0; ROWS]; SIDE];
        return;
    }
    // SAFETY: the shapes are set, so it is available; n tiles of each are read; 32 × 32 sums are written.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x0} + {row}]",
            ".irp line, 0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht0 [{x0} + 2048 + \\line]",
            ".endr",
            "tileloadd tmm6, [{w} + {row}]",
            "tileloadd tmm7, [{w} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            ".irp line, 0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht0 [{w} + 4096 + \\line]",
            ".endr",
            "tileloadd tmm5, [{x1} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            ".irp line, 0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht0 [{x1} + 2048 + \\line]",
            ".endr",
            "tdpbf16ps tmm2, tmm5, tmm6",
            ".irp line, 0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht0 [{w} + 5120 + \\line]",
            ".endr",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x0}, 1024", "add {x1}, 1024", "add {w}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 64], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 2112], tmm3",
            x0 = inout(reg) columns[0].as_ptr() => _,
            x1 = inout(reg) columns[1].as_ptr() => _,
            w = inout(reg) weights.as_ptr() => _,
            n = inout(reg) n => _,
            row = in(reg) 64usize,
            line = in(reg) ROWS * size_of::<f32>(),
            sums = in(reg) sums.0.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The weights of a panel's blocks, rounded to bf16, as [`multiply`] takes them.
///
/// # Safety
/// The CPU has AVX-512 F, BW and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn widen(form: Form, panel: &[PanelBlock], tiles: &mut [WeightTiles]) {
    for (block, tiles) in panel.iter().zip(tiles) {
        for (half, tile) in tiles.iter_mut().enumerate() {
            let first = half * TILE_ROWS;
            let (scale, other) = (load(&block.scale, half), load(&block.other, half));
            let minus_128 = _mm512_set1_ps(-128.0);
            // What 128 stands for, subtracted in the same rounding in which the scale is applied.
            let (start, last, start_last) = match form {
                Form::Scale => (_mm512_mul_ps(minus_128, scale), scale, _mm512_mul_ps(minus_128, scale)),
                Form::Offset => {
                    let start = _mm512_fmadd_ps(minus_128, scale, other);
                    (start, scale, start)
                }
                Form::Halves => (_mm512_mul_ps(minus_128, scale), other, _mm512_mul_ps(minus_128, other)),
            };
            let quads = DEPTH / 4;
            for k in 0..quads {
                let (scale, start) = if k < quads / 2 { (scale, start) } else { (last, start_last) };
                // SAFETY: 16 rows of a quad are 64 bytes.
                let bytes = unsafe { _mm512_loadu_si512(block.bytes[k][first..first + TILE_ROWS].as_ptr().cast()) };
                let low = _mm512_set1_epi32(255);
                let values = [
                    _mm512_and_si512(bytes, low),
                    _mm512_and_si512(_mm512_srli_epi32::<8>(bytes), low),
                    _mm512_and_si512(_mm512_srli_epi32::<16>(bytes), low),
                    _mm512_srli_epi32::<24>(bytes),
                ];
                for pair in 0..2 {
                    let a = _mm512_fmadd_ps(_mm512_cvtepi32_ps(values[2 * pair]), scale, start);
                    let b = _mm512_fmadd_ps(_mm512_cvtepi32_ps(values[2 * pair + 1]), scale, start);
                    // SAFETY: a row of a tile is 64 bytes.
                    unsafe { _mm512_storeu_si512(tile.0[2 * k + pair].as_mut_ptr().cast(), interleaved(a, b)) };
                }
            }
        }
    }
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

/// 32 values as a row of a tile of activations, rounded to bf16.
///
/// # Safety
/// The CPU has AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn round(values: &[f32; DEPTH], row: &mut [u8; 64]) {
    // SAFETY: 32 values, 64 bytes.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(LANES)));
        _mm512_storeu_si512(row.as_mut_ptr().cast(), to_pairs(low, high));
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
