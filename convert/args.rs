//! The command line of `qvl-convert`.

use std::path::{Path, PathBuf};

use clap::Parser;
use qvl::error::{Error, Result};
use qvl::quant::GgmlType;
use regex::Regex;

use crate::lora::Wanted;
use crate::types::{FileType, element_type};

/// Convert a Qwen-VL checkpoint to two GGUF files: the language model and its mmproj (vision tower and adapter).
///
/// CHECKPOINT_DIR is a model directory as downloaded: config.json, generation_config.json, qwen.tiktoken and weights, as
/// safetensors, as PyTorch .bin files or as GPTQ with 4 bits, in one file or in shards. Memory use does not grow with the
/// checkpoint. Existing files are kept unless --force is given.
/// MODEL.gguf, a text file made by this program with its mmproj beside it, is converted to other types.
/// `qvl-convert lora` makes a file of a LoRA adapter instead (see qvl-convert lora --help).
#[derive(Clone, Debug, Parser)]
#[command(name = "qvl-convert", version)]
pub struct Args {
    /// Directory with config.json and the weights, or a text GGUF
    #[arg(value_name = "CHECKPOINT_DIR|MODEL.gguf")]
    pub checkpoint: PathBuf,
    /// Directory for the two files, made if missing
    #[arg(short, long, value_name = "OUT_DIR", default_value = ".")]
    pub out: PathBuf,
    /// Type of the language model; of a GPTQ checkpoint, of what is not packed
    #[arg(short = 't', long = "type", value_name = "TYPE", default_value = "q4_k_m", ignore_case = true)]
    pub text_type: FileType,
    /// Type of the vision tower and the adapter
    #[arg(long, value_name = "TYPE", default_value = "q8_0", ignore_case = true)]
    pub vision_type: FileType,
    /// Element type for tensors whose GGUF name matches; the first match counts
    #[arg(long, value_name = "REGEX=TYPE", value_parser = parse_override)]
    pub tensor_type: Vec<Override>,
    /// For MODEL.gguf: its mmproj [default: the largest mmproj-*.gguf beside it that belongs to it]
    #[arg(long, value_name = "FILE")]
    pub mmproj: Option<PathBuf>,
    /// For MODEL.gguf: convert weights of less than 8 bits again, which loses more than converting the original would
    #[arg(long)]
    pub allow_requantize: bool,
    /// Merge a LoRA adapter, a directory as PEFT saves it (repeatable); SCALE is how much of it [default: 1]
    #[arg(long, value_name = "DIR[=SCALE]", value_parser = parse_lora)]
    pub lora: Vec<Wanted>,
    /// Importance matrix made by qvl imatrix (or llama-imatrix): what counts most is quantised best
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Measure on these examples (as for qvl quality) what quantising costs, and keep it in the text file
    #[arg(long, value_name = "DATA.jsonl")]
    pub report: Option<PathBuf>,
    /// What --report compares with: an f16 model, or what qvl quality --write-reference wrote [default: a conversion to f16]
    #[arg(long, value_name = "FILE", requires = "report")]
    pub reference: Option<PathBuf>,
    /// Write the language model in files of at most SIZE, NAME-00001-of-00003.gguf and so on; M and G are 10^6 and 10^9 bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub split_max_size: Option<u64>,
    /// Write the language model in files of at most N tensors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub split_max_tensors: Option<u32>,
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

/// Make a GGUF file of a LoRA adapter, for qvl's --lora: it is applied to a model of any type at run time.
///
/// DIR is an adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors or .bin. One that replaces whole weights or
/// adapts the vision tower can only be merged: qvl-convert CHECKPOINT_DIR --lora DIR.
#[derive(Debug, Parser)]
#[command(name = "qvl-convert lora", bin_name = "qvl-convert lora", version)]
pub struct LoraArgs {
    /// The adapter's directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The model that it was trained on: a checkpoint's directory (config.json is enough) or a text GGUF
    #[arg(long, value_name = "CHECKPOINT_DIR|GGUF")]
    pub base: PathBuf,
    /// Where to write
    #[arg(short, long, value_name = "FILE.gguf")]
    pub out: PathBuf,
    /// Type of the factors: f32, f16 or bf16
    #[arg(short = 't', long = "type", value_name = "TYPE", default_value = "f32", value_parser = parse_plain_type)]
    pub ty: FileType,
    /// Threads [default: all cores]
    #[arg(short = 'j', long, value_name = "THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
    /// No progress bar, no notes
    #[arg(short, long)]
    pub quiet: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// Two files of a checkpoint.
    Convert(Args),
    /// A file of an adapter.
    Lora(LoraArgs),
}

/// Parses `DIR[=SCALE]`. A directory whose own name ends like that is taken by its name.
pub fn parse_lora(text: &str) -> std::result::Result<Wanted, String> {
    let whole = || Wanted { dir: text.into(), scale: 1.0 };
    let Some((dir, scale)) = text.rsplit_once('=').filter(|_| !Path::new(text).exists()) else { return Ok(whole()) };
    match scale.parse::<f32>() {
        Ok(scale) if (-100.0..=100.0).contains(&scale) => Ok(Wanted { dir: dir.into(), scale }),
        _ => Err(format!("the scale is {scale:?} (expected a number from -100 to 100)")),
    }
}

/// Parses a size as llama.cpp's `gguf-split` has it: `500M`, `2G`, moreover `1.5G` and plain bytes.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['M', 'm']) {
        Some(number) => (number, 1e6),
        None => text.strip_suffix(['G', 'g']).map_or((text, 1.0), |number| (number, 1e9)),
    };
    match number.parse::<f64>() {
        Ok(n) if n * unit >= 1.0 && n * unit <= 1e15 => Ok((n * unit) as u64),
        _ => Err("expected a size like 500M or 2G".to_owned()),
    }
}

fn parse_plain_type(text: &str) -> std::result::Result<FileType, String> {
    let types = [FileType::F32, FileType::F16, FileType::BF16];
    types.into_iter().find(|ty| ty.name().eq_ignore_ascii_case(text)).ok_or("expected f32, f16 or bf16".to_owned())
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
pub fn parse() -> Result<Option<Asked>> {
    let mut args = std::env::args_os();
    let program = args.next();
    let mut args = args.peekable();
    // A directory of this name is ./lora.
    let lora = args.next_if(|arg| arg == "lora");
    let of = if lora.is_some() { " lora" } else { "" };
    let parsed = match lora {
        Some(_) => LoraArgs::try_parse_from(program.into_iter().chain(args)).map(Asked::Lora),
        None => Args::try_parse_from(program.into_iter().chain(args)).map(Asked::Convert),
    };
    match parsed {
        Ok(asked) => Ok(Some(asked)),
        Err(e) if e.use_stderr() => {
            let text = e.to_string();
            let message = text.split("\n\nUsage:").next().unwrap_or(&text).trim_start_matches("error: ");
            let message = message.split("\n\nFor more information").next().unwrap_or(message);
            Err(Error::usage(format!("{} (see qvl-convert{of} --help)", one_line(message))))
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
        LoraArgs::command().debug_assert();
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
    fn scales_follow_the_last_equals_sign() {
        let check = |text: &str, dir: &str, scale: f32| {
            assert_eq!(parse_lora(text).unwrap(), Wanted { dir: dir.into(), scale });
        };
        check("a/b", "a/b", 1.0);
        check("a=b=0.5", "a=b", 0.5);
        check("a=-1", "a", -1.0);
        for text in ["a=b", "a=", "a=nan", "a=1e9"] {
            assert!(parse_lora(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_decimal() {
        let check = |text: &str, n: u64| assert_eq!(parse_size(text), Ok(n), "{text}");
        check("2G", 2_000_000_000);
        check("500m", 500_000_000);
        check("1.5G", 1_500_000_000);
        check("4096", 4096);
        for text in ["", "G", "0", "-1G", "nan", "inf", "2T", "1e30"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
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
