//! Flags and subcommands. Names are promises (see the README); llama.cpp's two- and three-letter flags are accepted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{EnumValueParser, FalseyValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use qvl::ggml::has_amx;
use qvl::grounding::Selection;
use qvl::memory::parse_bytes;
use qvl::quant::GgmlType;
use qvl::session::Draft;

use super::batch::Shard;

/// Ask Qwen-VL about pictures, from GGUF files, on this machine.
#[derive(Parser)]
#[command(name = "qvl", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Print nothing but results and errors
    #[arg(short, long, global = true, overrides_with = "quiet")]
    pub quiet: bool,
    /// Print the log of llama.cpp and ggml
    #[arg(short, long, global = true, overrides_with = "verbose")]
    pub verbose: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Answer once about pictures or text, streaming
    Ask(AskArgs),
    /// Talk about pictures: a conversation in the terminal
    Chat(ChatArgs),
    /// Find things in a picture: regions in pixels, as text, JSON, COCO or CSV
    Detect(DetectArgs),
    /// Answer many questions: a JSONL file or a directory of pictures in, a JSONL file out, resumable
    Batch(BatchArgs),
    /// Measure which columns of the weights count most, on examples with pictures, for qvl-convert --imatrix
    Imatrix(ImatrixArgs),
    /// Measure what quantising cost, on examples with pictures, against a reference
    Quality(QualityArgs),
    /// Write the numbers inside (pixels, embeddings, logits) as safetensors
    Trace(TraceArgs),
    /// Turn text into token ids and back: JSON lines in, JSON lines out
    Tokenize(TokenizeArgs),
    /// Show what a GGUF file holds
    Inspect(InspectArgs),
    /// Show what a question will take of the memory, and whether it fits; nothing is loaded
    Plan(PlanArgs),
    /// Measure speed and memory on this machine
    Bench(BenchArgs),
    /// Check this build and this machine
    Doctor(DoctorArgs),
    /// Compute layers for a qvl on another machine (--rpc there)
    #[cfg(feature = "rpc")]
    Worker(WorkerArgs),
    /// Show or empty the cache of picture embeddings and prompts
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Write man pages into a directory
    Man(ManArgs),
}

impl Command {
    /// Whether it passes over a model's weights.
    pub fn computes(&self) -> bool {
        use Command::*;
        matches!(self, Ask(_) | Chat(_) | Detect(_) | Batch(_) | Trace(_) | Imatrix(_) | Quality(_) | Bench(_))
    }
}

#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct AskArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub prompt_cache: PromptCacheArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    /// Go on with the conversation in FILE, or begin one there; what was read before is not read again
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    pub session: Option<PathBuf>,
    /// Complete the prompt as it stands; all special tokens count, <img>PATH</img> loads PATH
    #[arg(long)]
    pub raw: bool,
    /// Print one JSON object instead of streaming text
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub structure: StructureArgs,
    /// With --json: each token's log-probability, and those of the K most likely ones (0 to 20, default 0)
    #[arg(
        long, value_name = "K", num_args = 0..=1, default_missing_value = "0", requires = "json",
        value_parser = clap::value_parser!(u8).range(0..=20)
    )]
    pub logprobs: Option<u8>,
    /// Write the last picture with the answer's regions drawn on it (.png, .jpg or .webp)
    #[arg(long, value_name = "FILE")]
    pub annotate: Option<PathBuf>,
    /// A part of the last picture that the question is about, in pixels of the upright picture (repeatable); K:X1,Y1,X2,Y2
    /// is one of picture K. It becomes a <box> in place of a {} in the question, or in front of it
    #[arg(long, value_name = "X1,Y1,X2,Y2", allow_hyphen_values = true, value_parser = Selection::parse)]
    pub region: Vec<Selection>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// The question (else it is read from stdin)
    pub prompt: Option<String>,
}

#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    /// Go on with the conversation in FILE, if it is there, and keep it there at the end
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
}

#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct DetectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub prompt_cache: PromptCacheArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    /// Print one JSON object
    #[arg(long, conflicts_with_all = ["coco", "csv"])]
    pub json: bool,
    /// Print COCO's JSON
    #[arg(long, conflicts_with = "csv")]
    pub coco: bool,
    /// Print a table with commas
    #[arg(long)]
    pub csv: bool,
    /// Write the picture with the regions drawn on it (.png, .jpg or .webp)
    #[arg(short, long, value_name = "ANNOTATED")]
    pub output: Option<PathBuf>,
    /// Write what is inside each region into this directory, as PNG
    #[arg(long, value_name = "DIR")]
    pub crop: Option<PathBuf>,
    /// Ask a chat model in other words, with {} for the phrase (default: Find {}.)
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// What to find: "red star", "all stars", "the word HELLO"
    pub phrase: String,
}

#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct BatchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub structure: StructureArgs,
    /// Items, a JSON object a line: {"id", "image" or "images", "prompt"}; or a directory of pictures
    #[arg(value_name = "INPUT.jsonl|DIR")]
    pub input: PathBuf,
    /// Where results are appended; what is there is not done again
    #[arg(short, long, value_name = "OUT.jsonl")]
    pub output: PathBuf,
    /// The question about every picture of a directory, and of lines that have none
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    pub prompt: Option<String>,
    /// Read that question from a file
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Answers written at a time
    #[arg(long, value_name = "N", default_value = "16", value_parser = parallel)]
    pub parallel: usize,
    /// Do every n-th item only, beginning with item i: i/n, one of n machines
    #[arg(long, value_name = "I/N", default_value = "1/1", value_parser = Shard::parse)]
    pub shard: Shard,
    /// Try again what failed in a run before
    #[arg(long)]
    pub retry_errors: bool,
    /// Complete the prompts as they stand; all special tokens count, <img>PATH</img> loads PATH
    #[arg(long)]
    pub raw: bool,
    /// Take pixels as they are stored, ignoring the EXIF orientation (as the reference does)
    #[arg(long)]
    pub no_auto_orient: bool,
}

#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct ImatrixArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Where to write
    #[arg(short, long, value_name = "IMATRIX.gguf")]
    pub output: PathBuf,
    /// Print one JSON object about it
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct QualityArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// What to compare with: a text GGUF of the same model (f16, f32), or what --write-reference wrote
    #[arg(long, value_name = "FILE", required_unless_present = "write_reference")]
    pub reference: Option<PathBuf>,
    /// Vision GGUF of the reference (default: the mmproj-*.gguf beside it that belongs to it)
    #[arg(long, value_name = "FILE", requires = "reference")]
    pub reference_mmproj: Option<PathBuf>,
    /// Run the model as a reference, and write what it says for comparisons to come
    #[arg(long, value_name = "FILE.qvlref", conflicts_with_all = ["reference", "save", "markdown"])]
    pub write_reference: Option<PathBuf>,
    /// Most likely tokens of each position that a reference keeps the probabilities of
    #[arg(long, value_name = "K", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub keep: u16,
    /// Tokens of an answer at most
    #[arg(short = 'n', long, visible_alias = "n-predict", value_name = "N", default_value_t = 128)]
    pub predict: usize,
    /// Write the result into the model's metadata (the file is copied and replaced when complete)
    #[arg(long)]
    pub save: bool,
    /// List the errors of all tensors, not only of the worst
    #[arg(long)]
    pub tensors: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// Print Markdown
    #[arg(long)]
    pub markdown: bool,
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

#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct TraceArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    /// Complete the prompt as it stands; all special tokens count, <img>PATH</img> loads PATH
    #[arg(long)]
    pub raw: bool,
    /// A file with the prompt as a JSON array of token ids
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["prompt", "raw"])]
    pub ids: Option<PathBuf>,
    /// Continue greedily by this many tokens
    #[arg(short = 'n', long, value_name = "N", default_value_t = 0)]
    pub predict: usize,
    /// System message of the chat format
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Where to write
    #[arg(short, long, value_name = "OUT.safetensors", required_unless_present = "ops")]
    pub output: Option<PathBuf>,
    /// Print which operation runs on which device, and how often, for the pictures and for the text
    #[arg(long)]
    pub ops: bool,
    /// With --ops: as one JSON object
    #[arg(long, requires = "ops")]
    pub json: bool,
    /// The prompt
    pub prompt: Option<String>,
}

#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct BenchArgs {
    /// Text GGUF
    #[arg(short, long, env = "QVL_MODEL", value_name = "FILE", required_unless_present_any = ["compare", "kernels"])]
    pub model: Option<PathBuf>,
    /// Vision GGUF (default: the mmproj-*.gguf beside the model that belongs to it)
    #[arg(long, env = "QVL_MMPROJ", value_name = "FILE")]
    pub mmproj: Option<PathBuf>,
    #[command(flatten)]
    pub images: ImageArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    /// Measure text only: no picture, no mmproj
    #[arg(long, conflicts_with = "image")]
    pub text_only: bool,
    /// Lengths of prompts to read, in tokens; 0 is none (default: 512)
    #[arg(
        short = 'p', long = "n-prompt", value_name = "N,..", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(0..=32767)
    )]
    pub prompts: Option<Vec<u32>>,
    /// Tokens to write; 0 is none
    #[arg(
        short = 'n', long = "n-gen", value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(0..=32767)
    )]
    pub predict: u32,
    /// Tokens that stand in the context before (default: 0,512,1536)
    #[arg(
        short = 'd', long = "n-depth", value_name = "N,..", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(0..=32767)
    )]
    pub depths: Option<Vec<u32>>,
    /// Runs of each; the median counts
    #[arg(
        short = 'r', long = "repetitions", value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(1..=100)
    )]
    pub runs: u8,
    /// Print one JSON object
    #[arg(long, conflicts_with_all = ["csv", "markdown"])]
    pub json: bool,
    /// Print a table with commas
    #[arg(long, conflicts_with = "markdown")]
    pub csv: bool,
    /// Print Markdown
    #[arg(long)]
    pub markdown: bool,
    /// Write the result as JSON, to compare others with
    #[arg(short, long, value_name = "FILE.json")]
    pub output: Option<PathBuf>,
    /// Hold the result against an old one; with two files nothing is measured
    #[arg(long, value_names = ["OLD.json", "NEW.json"], num_args = 1..=2)]
    pub compare: Vec<PathBuf>,
    /// Compare results of different models or settings
    #[arg(long, requires = "compare")]
    pub force: bool,
    /// Measure kernels instead of a model: products of pictures and tokens by type, beside what the machine can do
    #[arg(long, conflicts_with_all = ["compare", "output", "text_only"])]
    pub kernels: bool,
    /// For the processes that measure: what
    #[arg(long, hide = true)]
    pub measure: Option<String>,
    /// For the processes that measure: pictures instead of those of -i
    #[arg(long, hide = true)]
    pub picture: Vec<PathBuf>,
}

/// Whether a picture is part of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pictured {
    Yes,
    No,
}

impl BenchArgs {
    /// Whether a question about a picture is measured.
    pub fn pictured(&self) -> Pictured {
        if self.text_only { Pictured::No } else { Pictured::Yes }
    }
}

#[derive(Args)]
pub struct TokenizeArgs {
    /// Text GGUF
    #[arg(short, long, env = "QVL_MODEL", value_name = "FILE")]
    pub model: PathBuf,
}

#[derive(Args)]
pub struct InspectArgs {
    /// GGUF file, text or mmproj
    pub file: PathBuf,
    /// The other one, for --diff
    #[arg(requires = "diff")]
    pub other: Option<PathBuf>,
    /// Compare two files: metadata, tensors, and how far apart the values are. Exit code 0 if they are equal, 1 if not
    #[arg(long, requires = "other", conflicts_with_all = ["tensors", "verify"])]
    pub diff: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Read every weight: check that it is finite, and the file its checksum
    #[arg(long)]
    pub verify: bool,
}

#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    /// Pictures in the prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub pictures: u16,
    /// Tokens of text in the prompt
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub prompt_tokens: u32,
    /// Tokens to generate at most (default: the model's)
    #[arg(short = 'n', long, visible_alias = "n-predict", value_name = "N")]
    pub predict: Option<usize>,
    #[command(flatten)]
    pub draft: DraftArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "rpc")]
#[derive(Args)]
pub struct WorkerArgs {
    /// Address to listen at; others than this machine's own let anybody in who can reach it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen at
    #[arg(long, value_name = "N", default_value_t = 50052, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Devices to serve, as qvl doctor names them (auto: all but the CPU, or the CPU where there is no other) [-dev]
    #[arg(long, value_name = "NAME,..", default_value = "auto", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Threads of the CPU (default: physical cores)
    #[arg(short, long, env = "QVL_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Option<u16>,
    /// Kernels that multiply a prompt's tokens with quantised weights on x86-64 Linux: ours for AMX or AVX-512 where the CPU has it, else
    /// ggml's (auto); or by name
    #[arg(long, env = "QVL_PROMPT_KERNELS", value_name = "NAME", default_value = "auto")]
    pub prompt_kernels: KernelsMode,
    /// Keep weights that were sent once in this directory, so that they need not be sent again
    #[arg(long, value_name = "DIR")]
    pub weights_cache: Option<PathBuf>,
}

#[derive(Args)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum CacheCommand {
    /// Show where it is and what it holds
    Info(CacheInfoArgs),
    /// Remove all embeddings, and nothing else in its directory
    Clear,
}

#[derive(Args)]
pub struct CacheInfoArgs {
    #[command(flatten)]
    pub limit: CacheLimitArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
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

#[derive(Args)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

#[derive(Args)]
pub struct ManArgs {
    /// Directory for the pages
    pub dir: PathBuf,
}

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

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum FlashMode {
    On,
    Off,
    Auto,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum RepackMode {
    On,
    Off,
    Auto,
}

/// Refuses what crashes: ggml's AMX kernels, which are for repacked weights only, end in an illegal instruction when GCC 12
/// has compiled them (it drops the stores of the tiles' shapes), and there is no way to ask for its other ones.
fn repack_works(mode: RepackMode) -> Result<RepackMode, String> {
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

/// llama.cpp's flags of more than one letter behind one dash, which clap has not.
const LONG_FLAGS: [(&str, &str); 6] = [
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-fa", "--flash-attn"),
    ("-ngl", "--gpu-layers"),
    ("-dev", "--device"),
    ("-sys", "--system"),
];

/// Replaces [`LONG_FLAGS`] up to a `--`, and writes out the number that `--logprobs` may go without: what follows it is
/// the question otherwise.
pub fn with_long_flags(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.peekable();
    let mut plain = false;
    let mut long = |arg: OsString, next: Option<&OsString>| {
        plain |= arg == "--";
        if arg == "--logprobs" && !plain && next.is_none_or(|next| next.to_string_lossy().parse::<i64>().is_err()) {
            return "--logprobs=0".into();
        }
        let text = arg.to_str().filter(|_| !plain).unwrap_or_default();
        let (flag, value) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
        match (LONG_FLAGS.iter().find(|(short, _)| *short == flag), value) {
            (Some((_, long)), Some(value)) => format!("{long}={value}").into(),
            (Some((_, long)), None) => long.into(),
            (None, _) => arg,
        }
    };
    let mut out = Vec::new();
    while let Some(arg) = args.next() {
        out.push(long(arg, args.peek()));
    }
    out
}

/// Most tokens that `--draft` may guess at a time. Each takes a row of logits.
const MAX_DRAFT: usize = 63;

fn kv_types() -> PossibleValuesParser {
    PossibleValuesParser::new(["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])
}

/// The type of a KV cache flag, which the parser has checked.
pub fn kv_type(name: Option<&String>) -> GgmlType {
    name.and_then(|name| GgmlType::from_name(name)).unwrap_or(GgmlType::F16)
}

fn parallel(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=64).contains(&n) => Ok(n),
        _ => Err("expected a number from 1 to 64".to_owned()),
    }
}

fn draft(text: &str) -> Result<Draft, String> {
    match text {
        "auto" => Ok(Draft::Auto),
        "off" | "0" => Ok(Draft::Off),
        number => match number.parse() {
            Ok(n) if (1..=MAX_DRAFT).contains(&n) => Ok(Draft::Exactly(n)),
            _ => Err(format!("expected auto, off or a number from 1 to {MAX_DRAFT}")),
        },
    }
}

fn gpu_layers(text: &str) -> Result<GpuLayers, String> {
    match text {
        "auto" => Ok(GpuLayers::Auto),
        "all" => Ok(GpuLayers::All),
        number => number.parse().map(GpuLayers::Exactly).map_err(|_| "expected a number, auto or all".to_owned()),
    }
}

/// `FILE[=SCALE]`; a file whose own name ends like that is taken by its name.
fn lora(text: &str) -> Result<(PathBuf, f32), String> {
    let Some((file, scale)) = text.rsplit_once('=').filter(|_| !Path::new(text).exists()) else {
        return Ok((text.into(), 1.0));
    };
    Ok((file.into(), number_in(scale, -100.0, 100.0)?))
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "expected a size like 512M or 2G".to_owned())
}

fn number_in(text: &str, low: f32, high: f32) -> Result<f32, String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn llama_flags_become_long_ones() {
        let args = ["qvl", "-fa", "off", "-ctk=f32", "-f", "x", "--", "-fa"].map(OsString::from);
        let expect = ["qvl", "--flash-attn", "off", "--cache-type-k=f32", "-f", "x", "--", "-fa"];
        assert_eq!(with_long_flags(args.into_iter()), expect.map(OsString::from));
        let args = ["--logprobs", "3", "--logprobs", "What?", "--", "--logprobs"].map(OsString::from);
        let expect = ["--logprobs", "3", "--logprobs=0", "What?", "--", "--logprobs"];
        assert_eq!(with_long_flags(args.into_iter()), expect.map(OsString::from));
    }
}
