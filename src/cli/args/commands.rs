//! Each command's flags.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use qvl::grounding::Selection;

use super::shared::*;
use super::values::*;
use crate::cli::batch::Shard;

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
