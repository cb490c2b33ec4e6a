//! The command line of `qvl-convert`.

use std::path::PathBuf;

use clap::Parser;
use qvl::error::{Error, Result};
use qvl::quant::GgmlType;
use regex::Regex;

use crate::types::{FileType, element_type};

/// Convert a Qwen-VL checkpoint to two GGUF files: the language model and its mmproj (vision tower and adapter).
///
/// CHECKPOINT_DIR is a model directory as downloaded: config.json, generation_config.json, qwen.tiktoken and safetensors
/// weights. Memory use does not grow with the checkpoint. Existing files are kept unless --force is given.
#[derive(Clone, Debug, Parser)]
#[command(name = "qvl-convert", version)]
pub struct Args {
    /// Directory with config.json and the weights
    #[arg(value_name = "CHECKPOINT_DIR")]
    pub checkpoint: PathBuf,
    /// Directory for the two files, made if missing
    #[arg(short, long, value_name = "OUT_DIR", default_value = ".")]
    pub out: PathBuf,
    /// Type of the language model
    #[arg(short = 't', long = "type", value_name = "TYPE", default_value = "q4_k_m", ignore_case = true)]
    pub text_type: FileType,
    /// Type of the vision tower and the adapter
    #[arg(long, value_name = "TYPE", default_value = "q8_0", ignore_case = true)]
    pub vision_type: FileType,
    /// Element type for tensors whose GGUF name matches; the first match counts
    #[arg(long, value_name = "REGEX=TYPE", value_parser = parse_override)]
    pub tensor_type: Vec<Override>,
    /// Importance matrix made by qvl imatrix (or llama-imatrix): what counts most is quantised best
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Measure on these examples (as for qvl quality) what quantising costs, and keep it in the text file
    #[arg(long, value_name = "DATA.jsonl")]
    pub report: Option<PathBuf>,
    /// What --report compares with: an f16 model, or what qvl quality --write-reference wrote [default: a conversion to f16]
    #[arg(long, value_name = "FILE", requires = "report")]
    pub reference: Option<PathBuf>,
    /// Threads [default: all cores]
    #[arg(short = 'j', long, value_name = "THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Name of the model in metadata and file names [default: the directory's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Replace existing files
    #[arg(long)]
    pub force: bool,
    /// No progress bar, no notes
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the plan to stderr before executing it
    #[arg(short, long)]
    pub verbose: bool,
}

/// `--tensor-type`: an element type for the tensors whose names match.
#[derive(Clone, Debug)]
pub struct Override {
    /// Matches anywhere in a GGUF tensor name.
    pub pattern: Regex,
    /// The type for them.
    pub ty: GgmlType,
}

/// Parses `REGEX=TYPE`; the last `=` separates.
pub fn parse_override(text: &str) -> std::result::Result<Override, String> {
    let (pattern, ty) = text.rsplit_once('=').ok_or("expected REGEX=TYPE, such as ffn_down=q6_k")?;
    let ty = element_type(ty).ok_or_else(|| {
        format!("unknown type {ty:?} (f32 f16 bf16 q8_0 q6_k q5_k q5_1 q5_0 q4_k q4_1 q4_0 iq4_nl iq4_xs)")
    })?;
    let pattern = Regex::new(pattern).map_err(|e| one_line(&e.to_string()))?;
    Ok(Override { pattern, ty })
}

/// Parses the process's arguments. `Ok(None)`: help or the version was printed. Errors are of kind usage, in one line.
pub fn parse() -> Result<Option<Args>> {
    match Args::try_parse() {
        Ok(args) => Ok(Some(args)),
        Err(e) if e.use_stderr() => {
            let text = e.to_string();
            let message = text.split("\n\nUsage:").next().unwrap_or(&text).trim_start_matches("error: ");
            let message = message.split("\n\nFor more information").next().unwrap_or(message);
            Err(Error::usage(format!("{} (see qvl-convert --help)", one_line(message))))
        }
        Err(e) => {
            // Printing help into a closed pipe is nobody's error.
            let _ = e.print();
            Ok(None)
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_and_upper_case() {
        let args = Args::try_parse_from(["qvl-convert", "dir"]).unwrap();
        assert_eq!((args.text_type, args.vision_type), (FileType::Q4_K_M, FileType::Q8_0));
        let args = Args::try_parse_from(["qvl-convert", "dir", "-t", "Q5_K_S", "--vision-type", "F16"]).unwrap();
        assert_eq!((args.text_type, args.vision_type), (FileType::Q5_K_S, FileType::F16));
        assert!(Args::try_parse_from(["qvl-convert", "dir", "-t", "q3_k"]).is_err());
        assert!(Args::try_parse_from(["qvl-convert", "dir", "-j", "0"]).is_err());
    }

    #[test]
    fn overrides_split_at_the_last_equals_sign() {
        let found = parse_override("a=b$=Q6_K").unwrap();
        assert_eq!((found.pattern.as_str(), found.ty), ("a=b$", GgmlType::Q6_K));
        assert!(parse_override("ffn_down").is_err());
        assert!(parse_override("(=q6_k").is_err());
        assert!(parse_override("ffn=q2_k").is_err());
    }
}
