//! Flags that several commands share.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{EnumValueParser, FalseyValueParser, TypedValueParser};
use qvl::session::Draft;

use super::values::*;

#[derive(Args)]
pub struct ModelArgs {
    /// Text GGUF
    #[arg(short, long, env = "QVL_MODEL", value_name = "FILE")]
    pub model: PathBuf,
    /// Vision GGUF (default: the mmproj-*.gguf beside the model that belongs to it)
    #[arg(long, env = "QVL_MMPROJ", value_name = "FILE")]
    pub mmproj: Option<PathBuf>,
    /// Apply a LoRA adapter, made by qvl-convert lora (repeatable); SCALE is how much of it (default: 1)
    #[arg(long, value_name = "FILE[=SCALE]", value_parser = lora)]
    pub lora: Vec<(PathBuf, f32)>,
}

#[derive(Args)]
pub struct ImageArgs {
    /// A picture (repeatable): a path, a pattern in quotes, - for stdin, a data: or file: address, or an http(s)://
    /// address, which is fetched
    #[arg(short, long = "image", value_name = "IMAGE")]
    pub image: Vec<PathBuf>,
    /// Take pixels as they are stored, ignoring the EXIF orientation (as the reference does)
    #[arg(long)]
    pub no_auto_orient: bool,
}

#[derive(Args, Clone)]
pub struct GenerationArgs {
    /// Tokens to generate at most (default: the model's)
    #[arg(short = 'n', long, visible_alias = "n-predict", value_name = "N")]
    pub predict: Option<usize>,
    /// Temperature; 0 is greedy (default: the model's)
    #[arg(long, value_name = "T", value_parser = non_negative)]
    pub temp: Option<f32>,
    /// Keep the K most likely tokens; 0 keeps all (default: the model's)
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Keep this probability mass (default: the model's)
    #[arg(long, value_name = "P", value_parser = fraction)]
    pub top_p: Option<f32>,
    /// Drop tokens less likely than this fraction of the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = fraction)]
    pub min_p: f32,
    /// Penalty for repeated tokens; 1 is none (default: the model's)
    #[arg(long, value_name = "X", value_parser = penalty)]
    pub repeat_penalty: Option<f32>,
    /// Seed of the random numbers (default: another one each time)
    #[arg(short, long, value_name = "SEED")]
    pub seed: Option<u32>,
    /// End the answer at this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// System message of the chat format [-sys]
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
}

#[derive(Args)]
pub struct StructureArgs {
    /// Let the answer follow a grammar (GBNF, as llama.cpp reads it)
    #[arg(long, value_name = "FILE", conflicts_with = "json_schema")]
    pub grammar: Option<PathBuf>,
    /// Let the answer be JSON that fits a JSON Schema
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
}

#[derive(Args)]
pub struct ContextArgs {
    /// Positions of the context (default: what prompt and answer need, up to the model's)
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32767))]
    pub ctx_size: Option<u32>,
    /// Threads (default: physical cores)
    #[arg(short, long, env = "QVL_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Option<u16>,
    /// Type of cached keys (default: f16) [-ctk]
    #[arg(long, value_name = "TYPE", value_parser = kv_types())]
    pub cache_type_k: Option<String>,
    /// Type of cached values (default: f16) [-ctv]
    #[arg(long, value_name = "TYPE", value_parser = kv_types())]
    pub cache_type_v: Option<String>,
    /// Fused attention [-fa]; off computes it in f32
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub flash_attn: FlashMode,
    /// Layers on devices: a number, all, or as many as fit (auto) [-ngl]
    #[arg(long, value_name = "N", default_value = "auto", value_parser = gpu_layers)]
    pub gpu_layers: GpuLayers,
    /// Devices for layers [-dev], as qvl doctor names them: cpu is none, auto all there are
    #[arg(long, env = "QVL_DEVICE", value_name = "NAME,..", default_value = "auto", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Device that looks at pictures (auto: the first that has layers, but no worker; else the CPU)
    #[arg(long, env = "QVL_VISION_DEVICE", value_name = "NAME", default_value = "auto")]
    pub vision_device: String,
    /// Who turns queries and keys by their positions: each device those of its layers (device), or the CPU all of them, to the last
    /// bit alike on every device and slower (exact)
    #[arg(long, value_name = "WHO", default_value = "device")]
    pub rope: RopeMode,
    /// Machines that run qvl worker, as devices for layers; only where every machine is trusted
    #[arg(long, env = "QVL_RPC", value_name = "HOST:PORT,..", value_delimiter = ',')]
    pub rpc: Vec<String>,
    /// Copy text weights into layouts that ggml's CPU kernels prefer: more memory, faster or slower by CPU (auto: never on
    /// x86-64, whose kernels read prompts faster without; elsewhere where there is room)
    #[arg(
        long, value_name = "MODE", default_value = "auto",
        value_parser = EnumValueParser::<RepackMode>::new().try_map(repack_works)
    )]
    pub repack: RepackMode,
    /// Kernels of the vision tower: ours for AMX or AVX-512 where the CPU has it, else ggml's (auto); or by name, also ours for AVX-VNNI
    /// and for ARM with dotprod or i8mm
    #[arg(long, env = "QVL_VISION_KERNELS", value_name = "NAME", default_value = "auto")]
    pub vision_kernels: KernelsMode,
    /// Kernels that multiply a prompt's tokens with quantised weights on x86-64 Linux: as --vision-kernels
    #[arg(long, env = "QVL_PROMPT_KERNELS", value_name = "NAME", default_value = "auto")]
    pub prompt_kernels: KernelsMode,
    /// Memory to take at most, like 4.5G (default: what is there); ask, chat and detect choose what fits, and tell it
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_memory: Option<u64>,
    /// Read weights into memory instead of mapping them
    #[arg(long)]
    pub no_mmap: bool,
    /// Lock weights in memory
    #[arg(long)]
    pub mlock: bool,
}

/// Examples that a model reads.
#[derive(Args)]
pub struct DataArgs {
    /// Examples, a JSON object a line: {"image" or "images", "prompt", "answer"}, as for batch; the answer may be missing
    #[arg(value_name = "DATA.jsonl")]
    pub data: PathBuf,
    /// The question about every picture of a directory, and of lines that have none
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// System message of the chat format [-sys]
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Read the prompts as they stand; all special tokens count, <img>PATH</img> loads PATH
    #[arg(long)]
    pub raw: bool,
    /// Take pixels as they are stored, ignoring the EXIF orientation (as the reference does)
    #[arg(long)]
    pub no_auto_orient: bool,
}

/// For everything that encodes pictures but `trace`.
#[derive(Args)]
pub struct CacheArgs {
    /// Encode every picture anew and keep nothing; embeddings are not rounded to f16 then
    #[arg(long)]
    pub no_cache: bool,
    #[command(flatten)]
    pub limit: CacheLimitArgs,
}

/// For commands that ask one question.
#[derive(Args)]
pub struct PromptCacheArgs {
    /// Keep what was read of the prompt up to its last picture in the cache, too: the next question about the picture, in
    /// another process, is read from there on (0.5 MiB a position for the real model in f16)
    #[arg(long, env = "QVL_CACHE_PROMPT", value_parser = FalseyValueParser::new())]
    pub cache_prompt: bool,
}

/// For commands that write one answer at a time: in a batch a pass over the weights has enough to do with the others.
#[derive(Args)]
pub struct DraftArgs {
    /// Guess what comes next where prompt or answer repeat themselves, and read several tokens at a time: auto as many as
    /// pays, off, or always N. The model decides on each (default: auto for K-quants on CPUs with AVX-512 VNNI, else off)
    #[arg(long, env = "QVL_DRAFT", value_name = "auto|off|N", value_parser = draft)]
    pub draft: Option<Draft>,
}

#[derive(Args)]
pub struct CacheLimitArgs {
    /// Disk space for embeddings of pictures and for prompts, like 512M or 2G; 0 is as --no-cache
    #[arg(long, env = "QVL_CACHE_SIZE", value_name = "SIZE", default_value = "1G", value_parser = size)]
    pub cache_size: u64,
}
