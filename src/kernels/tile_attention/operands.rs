//! What attention reads: vectors of heads wherever they lie, and masks.

use std::arch::x86_64::*;

use half::f16;

use crate::ggml::Operand;
use crate::kernels::avx512::LANES;
use crate::kernels::panel::ROWS;

/// What numbers are.
#[cfg_attr(not(text_kernels), allow(dead_code))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Float {
    F32,
    F16,
}

/// Vectors of heads, their values side by side.
#[derive(Clone, Copy)]
pub struct Vectors<'a> {
    pub bytes: &'a [u8],
    pub ty: Float,
    /// Bytes from one position to the next, from one head, and from one stream.
    pub strides: [usize; 3],
}

impl<'a> Vectors<'a> {
    /// Those of `[d, head, position]`, f32.
    pub fn of_heads(t: Operand<'a>) -> Self {
        Vectors { bytes: t.bytes, ty: Float::F32, strides: [t.strides[2], t.strides[1], 0] }
    }

    /// The values of a vector of a stream's head in f32; zeros behind the `n`-th.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn take(&self, [stream, head]: [usize; 2], i: usize, n: usize, to: &mut [f32]) {
        if i >= n {
            return to.fill(0.0);
        }
        let value_bytes = if self.ty == Float::F32 { size_of::<f32>() } else { size_of::<f16>() };
        let at = i * self.strides[0] + head * self.strides[1] + stream * self.strides[2];
        let bytes = &self.bytes[at..at + to.len() * value_bytes];
        if self.ty == Float::F32 {
            // SAFETY: as many bytes; any are numbers.
            return unsafe { to.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        let (lines, last) = bytes.as_chunks::<{ 2 * LANES }>();
        let n_whole = lines.len() * LANES;
        for (to, line) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(lines) {
            // SAFETY: 16 numbers of each kind.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(line.as_ptr().cast()))) };
        }
        for (to, value) in to[n_whole..].iter_mut().zip(last.as_chunks::<2>().0) {
            *to = f16::from_le_bytes(*value).to_f32();
        }
    }
}

/// What is added to scores, in f16: at `[query][key]` of each stream, or of all.
#[derive(Clone, Copy)]
pub struct Mask<'a> {
    pub bytes: &'a [u8],
    /// Bytes from one query to the next, and from one stream; keys are side by side.
    pub strides: [usize; 2],
}

/// What queries see of keys, as a mask has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// All, and as they are.
    All,
    /// Nothing: skipped, but between keys that are seen.
    None,
    /// Some, or not as they are.
    Some,
}

/// What is added to 32 scores of which `n` belong to keys, in f16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn ends(n: usize) -> __m512i {
    let infinity = _mm512_set1_epi16(f16::NEG_INFINITY.to_bits() as i16);
    _mm512_mask_mov_epi16(infinity, (1u64 << n.min(ROWS)).wrapping_sub(1) as u32, _mm512_setzero_si512())
}

impl Mask<'_> {
    /// What is added to the scores of 32 keys from `key` on; beyond the last there is nothing to see.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and BW.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn row(&self, stream: usize, query: usize, key: usize, n_kv: usize) -> __m512i {
        let at = query * self.strides[0] + stream * self.strides[1] + key * size_of::<f16>();
        let row = &self.bytes[at..at + ROWS.min(n_kv - key) * size_of::<f16>()];
        let mut values = [f16::NEG_INFINITY; ROWS];
        // SAFETY: at most 32 numbers of any bits, and 32.
        unsafe {
            if row.len() == size_of_val(&values) {
                return _mm512_loadu_si512(row.as_ptr().cast());
            }
            values.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(row.as_ptr(), row.len());
            _mm512_loadu_si512(values.as_ptr().cast())
        }
    }

    /// What a query sees of them.
    ///
    /// # Safety
    /// As [`row`](Self::row).
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn look(&self, stream: usize, query: usize, key: usize, n_kv: usize) -> Sight {
        // SAFETY: by this function's contract.
        let row = unsafe { self.row(stream, query, key, n_kv) };
        let is = |value: f16| _mm512_cmpeq_epi16_mask(row, _mm512_set1_epi16(value.to_bits() as i16));
        match (is(f16::ZERO), is(f16::NEG_INFINITY)) {
            (u32::MAX, _) => Sight::All,
            (_, u32::MAX) => Sight::None,
            _ => Sight::Some,
        }
    }
}
