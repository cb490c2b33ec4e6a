//! Writes a synthetic Qwen-VL checkpoint: the files of a Hugging Face directory, right in every name, shape and number
//! type, with random weights. For tests of the converter and the runtime at any size, the real one included, because the real
//! weights cannot be had everywhere.
//!
//! ```text
//! cargo run --release --example synth -- --config models/qwen-vl-chat/config.json --out DIR --shards 10
//! ```
//!
//! The same seed gives the same numbers, whatever the shards, the threads and (but for rounding) the dtype.

mod numbers;
mod tensors;
mod vocabulary;
mod write;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use qvl::error::{Error, Result};
use serde_json::{Value, json};

use crate::numbers::Dtype;
use crate::tensors::Config;

/// Distance from the first special id (= number of ranks) to `<img>`: 3 control ids, 205 extras, 6 ref/box/quad tags.
const RANKS_TO_IMAGE_START: u64 = 214;

/// Special ids in all: up to `<imgpad>`.
const N_SPECIAL: u64 = 217;

/// Write a synthetic Qwen-VL checkpoint (random weights, real names and shapes).
#[derive(Parser)]
struct Args {
    /// The config.json to follow; generation_config.json and tokenizer_config.json beside it are used where they exist
    #[arg(long)]
    config: PathBuf,
    /// The directory to write; made if it is missing
    #[arg(long, required_unless_present = "inventory")]
    out: Option<PathBuf>,
    /// Number type of all weights
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Number of safetensors files
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    shards: u64,
    /// Seed of all numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A qwen.tiktoken to copy; without it a vocabulary is made up
    #[arg(long)]
    vocab: Option<PathBuf>,
    /// Ranks of the vocabulary [default: what visual.image_start_id implies]
    #[arg(long)]
    ranks: Option<u64>,
    /// Only write the list of tensors (name, dtype, shape) as JSON to this file
    #[arg(long)]
    inventory: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// Everything but the arguments and the exit code.
fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let mut json = read_json(&args.config)?;
    let config = Config::from_json(&json).map_err(|e| e.at(&args.config))?;
    let tensors = tensors::list(&config);
    if let Some(path) = &args.inventory {
        return save(path, tensors::inventory(&tensors, args.dtype).as_bytes());
    }
    let Some(out) = &args.out else { return Err(Error::usage("--out says where to write")) };

    let n_ranks = n_ranks(args, &config)?;
    fs::create_dir_all(out).map_err(|e| Error::other("cannot make the directory").because(e).at(out))?;
    json["torch_dtype"] = json!(args.dtype.torch_name());
    json["visual"]["image_start_id"] = json!(n_ranks + RANKS_TO_IMAGE_START);
    save(&out.join("config.json"), pretty(&json).as_bytes())?;

    let mut generation = beside(&args.config, "generation_config.json")?.unwrap_or_else(
        || json!({"chat_format": "chatml", "do_sample": true, "max_new_tokens": 512, "max_window_size": 6144, "top_k": 0, "top_p": 0.3}),
    );
    generation["eos_token_id"] = json!(n_ranks);
    generation["pad_token_id"] = json!(n_ranks);
    save(&out.join("generation_config.json"), pretty(&generation).as_bytes())?;
    let tokenizer = beside(&args.config, "tokenizer_config.json")?
        .unwrap_or_else(|| json!({"model_max_length": 8192, "tokenizer_class": "QWenTokenizer"}));
    save(&out.join("tokenizer_config.json"), pretty(&tokenizer).as_bytes())?;
    let vocabulary = match &args.vocab {
        Some(path) => read(path)?,
        None => vocabulary::tiktoken(&vocabulary::make(n_ranks as usize, args.seed)).into_bytes(),
    };
    save(&out.join("qwen.tiktoken"), &vocabulary)?;

    let bytes = write::shards(out, &tensors, args.dtype, args.shards, args.seed)?;
    let (n, seconds) = (tensors.len(), start.elapsed().as_secs_f64());
    eprintln!("{n} tensors, {bytes} bytes, {seconds:.1} s{}", peak_rss());
    Ok(())
}

/// How many ranks the vocabulary has, checked against the file given and the rows of the embedding.
fn n_ranks(args: &Args, config: &Config) -> Result<u64> {
    let implied = config.visual.image_start_id.checked_sub(RANKS_TO_IMAGE_START);
    let in_file = match &args.vocab {
        Some(path) => {
            Some(read(path)?.split(|&b| b == b'\n').filter(|line| !line.trim_ascii().is_empty()).count() as u64)
        }
        None => None,
    };
    let n_ranks = args.ranks.or(in_file).or(implied).unwrap_or(0);
    if in_file.is_some_and(|found| found != n_ranks) {
        return Err(Error::usage(format!(
            "--ranks says {n_ranks}, but the vocabulary has {} ranks",
            in_file.unwrap_or(0)
        )));
    }
    if n_ranks < 256 || n_ranks + N_SPECIAL > config.vocab_size {
        return Err(Error::usage(format!(
            "{n_ranks} ranks do not fit: at least 256 are needed, and with {N_SPECIAL} special ids at most vocab_size = {}",
            config.vocab_size
        )));
    }
    Ok(n_ranks)
}

/// Reads a whole file.
fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::model("cannot read").because(e).at(path))
}

/// Reads a JSON file.
fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&read(path)?).map_err(|e| Error::model("is not JSON").because(e).at(path))
}

/// Reads the JSON file `name` in the folder of `path`, if there is one.
fn beside(path: &Path, name: &str) -> Result<Option<Value>> {
    let path = path.with_file_name(name);
    path.is_file().then(|| read_json(&path)).transpose()
}

/// Writes a whole file.
fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| Error::other("cannot write").because(e).at(path))
}

/// JSON for people, with a line break at the end.
fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}

/// The largest memory this process ever had, in words; nothing where the system does not tell.
fn peak_rss() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.map_or(String::new(), |peak| format!(", at most {} in memory", peak.trim()))
}
