//! What values may be, and how they are read.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use qvl::ggml::has_amx;
use qvl::memory::parse_bytes;
use qvl::quant::GgmlType;
use qvl::session::Draft;
use qvl::text::Rope;

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum FlashMode {
    On,
    Off,
    Auto,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum RopeMode {
    Device,
    Exact,
}

impl From<RopeMode> for Rope {
    fn from(mode: RopeMode) -> Rope {
        match mode {
            RopeMode::Device => Rope::Device,
            RopeMode::Exact => Rope::Exact,
        }
    }
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum RepackMode {
    On,
    Off,
    Auto,
}

/// Refuses what crashes: ggml's AMX kernels, which are for repacked weights only, end in an illegal instruction when GCC 12
/// has compiled them (it drops the stores of the tiles' shapes), and there is no way to ask for its other ones.
pub fn repack_works(mode: RepackMode) -> Result<RepackMode, String> {
    match mode {
        RepackMode::On if has_amx() => {
            Err("ggml would compute repacked weights with AMX here, and its code for that crashes; leave it at auto"
                .into())
        }
        _ => Ok(mode),
    }
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum KernelsMode {
    Auto,
    Ggml,
    Avxvnni,
    Avx512,
    Dotprod,
    I8mm,
    Amx,
}

/// How many layers go to the GPU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum GpuLayers {
    Auto,
    All,
    Exactly(u16),
}

/// Most tokens that `--draft` may guess at a time. Each takes a row of logits.
const MAX_DRAFT: usize = 63;

pub fn kv_types() -> PossibleValuesParser {
    PossibleValuesParser::new(["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])
}

/// The type of a KV cache flag, which the parser has checked.
pub fn kv_type(name: Option<&String>) -> GgmlType {
    name.and_then(|name| GgmlType::from_name(name)).unwrap_or(GgmlType::F16)
}

pub fn parallel(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=64).contains(&n) => Ok(n),
        _ => Err("expected a number from 1 to 64".to_owned()),
    }
}

pub fn draft(text: &str) -> Result<Draft, String> {
    match text {
        "auto" => Ok(Draft::Auto),
        "off" | "0" => Ok(Draft::Off),
        number => match number.parse() {
            Ok(n) if (1..=MAX_DRAFT).contains(&n) => Ok(Draft::Exactly(n)),
            _ => Err(format!("expected auto, off or a number from 1 to {MAX_DRAFT}")),
        },
    }
}

pub fn gpu_layers(text: &str) -> Result<GpuLayers, String> {
    match text {
        "auto" => Ok(GpuLayers::Auto),
        "all" => Ok(GpuLayers::All),
        number => number.parse().map(GpuLayers::Exactly).map_err(|_| "expected a number, auto or all".to_owned()),
    }
}

/// `FILE[=SCALE]`; a file whose own name ends like that is taken by its name.
pub fn lora(text: &str) -> Result<(PathBuf, f32), String> {
    let Some((file, scale)) = text.rsplit_once('=').filter(|_| !Path::new(text).exists()) else {
        return Ok((text.into(), 1.0));
    };
    Ok((file.into(), number_in(scale, -100.0, 100.0)?))
}

pub fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "expected a size like 512M or 2G".to_owned())
}

pub fn number_in(text: &str, low: f32, high: f32) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if (low..=high).contains(&x) => Ok(x),
        _ => Err(format!("expected a number from {low} to {high}")),
    }
}

pub fn fraction(text: &str) -> Result<f32, String> {
    number_in(text, 0.0, 1.0)
}

pub fn non_negative(text: &str) -> Result<f32, String> {
    number_in(text, 0.0, 100.0)
}

pub fn penalty(text: &str) -> Result<f32, String> {
    number_in(text, 0.01, 100.0)
}
