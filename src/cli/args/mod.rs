//! Flags and subcommands. Names are promises (see the README); llama.cpp's two- and three-letter flags are accepted.
//!
//! A command's own flags are in `commands`, those that several share in `shared`, what their values may be in `values`.

mod commands;
mod shared;
mod values;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

pub use commands::*;
pub use shared::*;
pub use values::*;

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
    /// Who is to read prompts, where it reads any or says what that takes.
    pub fn prompt_kernels(&self) -> Option<KernelsMode> {
        use Command::*;
        let context = match self {
            Ask(args) => &args.context,
            Chat(args) => &args.context,
            Detect(args) => &args.context,
            Batch(args) => &args.context,
            Imatrix(args) => &args.context,
            Quality(args) => &args.context,
            Trace(args) => &args.context,
            Plan(args) => &args.context,
            Bench(args) => &args.context,
            #[cfg(feature = "rpc")]
            Worker(args) => return Some(args.prompt_kernels),
            Tokenize(_) | Inspect(_) | Doctor(_) | Cache(_) | Completions(_) | Man(_) => return None,
        };
        Some(context.prompt_kernels)
    }

    /// Whether it passes over a model's weights.
    pub fn computes(&self) -> bool {
        use Command::*;
        matches!(self, Ask(_) | Chat(_) | Detect(_) | Batch(_) | Trace(_) | Imatrix(_) | Quality(_) | Bench(_))
    }
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
