//! f32 to f16 and back as ggml does it.

use half::f16;

/// Rounded to nearest even; a NaN becomes the one NaN that ggml writes, with its sign.
pub fn to_half(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7e00 | ((x.to_bits() >> 16) as u16 & 0x8000);
    }
    f16::from_f32(x).to_bits()
}

/// Exact.
pub fn from_half(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}
