//! The numbers: a counter-based generator, so that any block of any tensor can be made by itself, and their number types.

/// Number type of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    Bf16,
    F16,
    F32,
}

impl Dtype {
    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// As safetensors writes it.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Dtype::Bf16 => "BF16",
            Dtype::F16 => "F16",
            Dtype::F32 => "F32",
        }
    }

    /// As `config.json` writes it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Dtype::Bf16 => "bfloat16",
            Dtype::F16 => "float16",
            Dtype::F32 => "float32",
        }
    }
}

/// What a tensor holds.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Nearly normal, within 3.46 deviations.
    Normal { mean: f32, std: f32 },
    /// The adapter's table of positions, `[side², channels]`.
    SinCos { side: u64, channels: u64 },
}

/// Values `begin..end` (row-major) of a tensor as little-endian bytes of `dtype`.
pub fn block(fill: Fill, key: u64, begin: u64, end: u64, dtype: Dtype) -> Vec<u8> {
    match fill {
        Fill::Normal { mean, std } => encode(begin..end, dtype, |i| mean + std * normal(key, i)),
        Fill::SinCos { side, channels } => encode(begin..end, dtype, |i| sin_cos(side, channels, i)),
    }
}

/// `values(i)` for each index, rounded to nearest in `dtype`.
fn encode(indices: std::ops::Range<u64>, dtype: Dtype, value: impl Fn(u64) -> f32) -> Vec<u8> {
    let mut bytes = vec![0; ((indices.end - indices.start) * dtype.bytes()) as usize];
    match dtype {
        Dtype::Bf16 => {
            for (out, i) in bytes.as_chunks_mut().0.iter_mut().zip(indices) {
                // To the nearest, ties to even; the values are finite.
                let bits = value(i).to_bits();
                *out = (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16).to_le_bytes();
            }
        }
        Dtype::F16 => {
            for (out, i) in bytes.as_chunks_mut().0.iter_mut().zip(indices) {
                *out = half::f16::from_f32(value(i)).to_le_bytes();
            }
        }
        Dtype::F32 => {
            for (out, i) in bytes.as_chunks_mut().0.iter_mut().zip(indices) {
                *out = value(i).to_le_bytes();
            }
        }
    }
    bytes
}

/// The generator's key of the tensor `name`: FNV-1a of the name, mixed with the seed.
pub fn key(name: &str, seed: u64) -> u64 {
    let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    mix(hash ^ mix(seed))
}

/// Value `i` of a sequence that is nearly normal with mean 0 and deviation 1: the sum of four uniform 16-bit numbers.
fn normal(key: u64, i: u64) -> f32 {
    let bits = mix(key.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let sum = (bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48);
    // Mean 2 · 65535; variance 4 · 65536² / 12.
    (sum as i32 - 131_070) as f32 * (1.732_050_8 / 65_536.0)
}

/// SplitMix64's output function (Steele, Lea, Flood 2014): a bijection of 64 bits that looks random.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Value `i` of the 2-D sine/cosine table: of each row's channels the first half tells the column x, the second half the row
/// y of its grid place, each as sines and then cosines of `p · 10000^(−j / (channels/4))`. Source: `visual.py`,
/// `get_2d_sincos_pos_embed`.
fn sin_cos(side: u64, channels: u64, i: u64) -> f32 {
    let (place, channel) = (i / channels, i % channels);
    let (half, quarter) = (channels / 2, channels / 4);
    let p = if channel < half { place % side } else { place / side };
    let omega = 10_000f64.powf(-((channel % quarter) as f64) / quarter as f64);
    let angle = p as f64 * omega;
    (if channel % half < quarter { angle.sin() } else { angle.cos() }) as f32
}
