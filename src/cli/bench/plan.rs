//! What is to be measured, proven to be possible before the long work.

use std::fs::File;
use std::path::PathBuf;

use clap::ValueEnum;
use qvl::error::{Error, Result};
use qvl::image::{self, FileFormat, ImageSource, Picture};
use qvl::memory::human_bytes;
use qvl::session::TextFile;
use qvl::text::TextHparams;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::super::args::{BenchArgs, GpuLayers, ModelArgs, Pictured, RopeMode, kv_type};
use super::super::asked::Asked;
use super::super::mmproj::Mmproj;
use super::super::pipeline;
use super::machine::ModelFile;
use super::report::Files;

/// Asked about the pictures.
pub const QUESTION: &str = "Describe the picture.";

/// Measured when nothing else is asked for, as far as the context holds them.
const PROMPTS: [u32; 1] = [512];
/// See [`PROMPTS`].
const DEPTHS: [u32; 3] = [0, 512, 1536];

/// Width and height of the picture that is drawn if none is given: decoding it and making it smaller are measured too.
const DRAWN: (u32, u32) = (640, 480);

/// Something that is measured in a process of its own, so that its memory is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// A question about pictures, from files to the last token of the answer, as `ask` does it.
    Question {
        /// Tokens of the answer.
        n_predict: usize,
    },
    /// Reading a prompt.
    Prefill {
        /// Its tokens.
        n_prompt: usize,
    },
    /// Writing tokens after others.
    Decode {
        /// Tokens written.
        n_predict: usize,
        /// Tokens read before.
        depth: usize,
    },
    /// Writing what was read, token by token, as an answer does that copies: what guesses bring where all are right.
    Copy {
        /// Tokens read, and written again.
        n_predict: usize,
    },
}

/// Fewer tokens are no copy: two must be there before anything is guessed.
const MIN_COPY: usize = 16;

impl Case {
    /// As results call it.
    pub fn name(self) -> String {
        match self {
            Case::Question { .. } => "question".to_owned(),
            Case::Prefill { n_prompt } => format!("prefill {n_prompt}"),
            Case::Decode { n_predict, depth } => format!("decode {n_predict} @ {depth}"),
            Case::Copy { n_predict } => format!("copy {n_predict}"),
        }
    }

    /// Positions read and written, of a case without pictures. Without depth there is one token to begin with.
    pub fn positions(self) -> (usize, usize) {
        match self {
            Case::Question { n_predict } => (0, n_predict),
            Case::Prefill { n_prompt } => (n_prompt, 0),
            Case::Decode { n_predict, depth } => (depth.max(1), n_predict),
            Case::Copy { n_predict } => (n_predict, n_predict),
        }
    }
}

/// The flags that name the model. Errors (kind usage): none does.
pub fn model(args: &BenchArgs) -> Result<ModelArgs> {
    let model =
        args.model.clone().ok_or_else(|| Error::usage("name the text GGUF with -m, or a second file to compare"))?;
    Ok(ModelArgs { model, mmproj: args.mmproj.clone(), lora: Vec::new() })
}

/// All cases that the flags ask for, in order. Errors (kind usage): one is larger than the context.
pub fn cases(args: &BenchArgs, h: &TextHparams) -> Result<Vec<Case>> {
    let n_predict = args.predict as usize;
    let mut cases = Vec::new();
    if args.pictured() == Pictured::Yes {
        cases.push(Case::Question { n_predict: n_predict.max(1) });
    }
    let limit = limit(args, h);
    let mut add = |case: Case, flag: &str, asked: bool| {
        let (n_read, n_written) = case.positions();
        match n_read + n_written {
            _ if cases.contains(&case) => {}
            n if n <= limit => cases.push(case),
            _ if !asked => {}
            n => {
                return Err(Error::usage(format!(
                    "{} takes {n} positions but the context holds {limit}; use a smaller {flag}",
                    case.name()
                )));
            }
        }
        Ok(())
    };
    for n in args.prompts.as_deref().unwrap_or(&PROMPTS).iter().filter(|n| **n > 0) {
        add(Case::Prefill { n_prompt: *n as usize }, "-p", args.prompts.is_some())?;
    }
    for depth in args.depths.as_deref().unwrap_or(&DEPTHS).iter().filter(|_| n_predict > 0) {
        add(Case::Decode { n_predict, depth: *depth as usize }, "-d or -n", args.depths.is_some() || *depth == 0)?;
    }
    if n_predict >= MIN_COPY {
        add(Case::Copy { n_predict }, "-n", false)?;
    }
    match cases.is_empty() {
        true => Err(Error::usage("nothing is left to measure; see -p, -n and --text-only")),
        false => Ok(cases),
    }
}

/// Positions that the context may hold.
fn limit(args: &BenchArgs, h: &TextHparams) -> usize {
    args.context.ctx_size.map_or(h.context_length, |n| n as usize)
}

/// A plan. Having one says: the files are sound and belong together, the pictures can be read, and every case fits into
/// the context and, as far as can be told, into memory.
pub struct Plan {
    /// In the order in which they are measured.
    pub cases: Vec<Case>,
    /// The files.
    pub files: Files,
    /// All that decides about speed but the files and the machine, by flag.
    pub settings: Map<String, Value>,
    /// What the pictures were written to, if the processes that measure cannot read them where they come from.
    pub written: Vec<PathBuf>,
    /// What the pictures are, for people; empty with `--text-only`.
    pub pictures: String,
    /// Where they were written to; gone with the plan.
    _dir: Option<TempDir>,
}

impl Plan {
    /// Proves everything. Errors: those of `ask`; kind usage: a case larger than the context.
    pub fn new(args: &BenchArgs, quiet: bool) -> Result<Plan> {
        let sources = image::sources(&args.images.image)?;
        let model = model(args)?;
        let text = pipeline::open_text(&model, quiet)?;
        let h = text.hparams();
        let cases = cases(args, h)?;
        for case in &cases {
            let (n_read, n_written) = case.positions();
            pipeline::session_settings(&text, &args.context, (n_read, n_written), n_read)?;
        }
        let mut files = Files { text: ModelFile::of(&model.model)?, vision: None };
        let mut settings = settings(args);
        let mut pictures = Pictures::default();
        if let Some(Case::Question { n_predict }) = cases.first().copied() {
            pictures = Pictures::new(args, &sources)?;
            let n_prompt = question(&text, pictures.sources.clone())?.0;
            pipeline::session_settings(&text, &args.context, (n_prompt, n_predict), n_prompt)?;
            let limit = limit(args, h);
            if n_prompt + n_predict > limit {
                return Err(Error::usage(format!(
                    "a question of {n_prompt} tokens and {n_predict} of its answer do not fit into the context of {limit}; \
                     raise -c, or use fewer pictures or a smaller -n"
                )));
            }
            files.vision = Some(ModelFile::of(Mmproj::open(&model, &text)?.path())?);
            settings.insert("answer_tokens".to_owned(), n_predict.into());
            settings.insert("pictures".to_owned(), pictures.sizes.into());
        }
        Ok(Plan { cases, files, settings, written: pictures.written, pictures: pictures.shown, _dir: pictures.dir })
    }
}

/// The length of the question's prompt in positions, the prompt, and the pictures that it shows.
pub fn question(text: &TextFile, sources: Vec<ImageSource>) -> Result<(usize, qvl::prompt::Prompt, Vec<ImageSource>)> {
    let asked = Asked {
        question: QUESTION,
        n_pictures: sources.len(),
        regions: &[],
        format: text.hparams().chat_format,
        system: None,
        past: None,
    };
    let (prompt, sources) = asked.prompt(text, sources)?;
    Ok((prompt.n_positions(text.hparams().n_queries), prompt, sources))
}

/// The pictures of the question.
#[derive(Default)]
struct Pictures {
    sources: Vec<ImageSource>,
    written: Vec<PathBuf>,
    sizes: Vec<String>,
    shown: String,
    dir: Option<TempDir>,
}

impl Pictures {
    /// Reads them all. What is no file (stdin, an address, the drawn one) is written to one, since it is read anew in each
    /// process that measures.
    fn new(args: &BenchArgs, sources: &[ImageSource]) -> Result<Pictures> {
        let read = pipeline::load_pictures(sources, &args.images)?;
        let drawn = if read.is_empty() { Some(drawn()?) } else { None };
        let all: Vec<&Picture> = read.iter().chain(&drawn).collect();
        let mut pictures = Pictures {
            sizes: all.iter().map(|p| format!("{} x {}", p.width(), p.height())).collect(),
            ..Pictures::default()
        };
        let how = if drawn.is_some() { ", drawn" } else { "" };
        pictures.shown = format!("{}{how}", pictures.sizes.join(", "));
        if drawn.is_none() && sources.iter().all(|source| source.path().is_some()) {
            pictures.sources = sources.to_vec();
            return Ok(pictures);
        }
        let dir =
            tempfile::tempdir().map_err(|e| Error::other("cannot make a directory for the pictures").because(e))?;
        for (k, picture) in all.into_iter().enumerate() {
            let path = dir.path().join(format!("{k}.png"));
            let file = File::create(&path).map_err(|e| Error::other("cannot write").because(e).at(&path))?;
            image::encode(picture, FileFormat::Png, std::io::BufWriter::new(file)).map_err(|e| e.at(&path))?;
            pictures.sources.push(ImageSource::Path(path.clone()));
            pictures.written.push(path);
        }
        pictures.dir = Some(dir);
        Ok(pictures)
    }
}

/// A picture that is always the same: soft colours with some noise, as photographs have.
fn drawn() -> Result<Picture> {
    let (width, height) = DRAWN;
    let mut pixels = Vec::with_capacity((width * height * 3) as usize);
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let noise = noise(u64::from(y * width + x));
        let soft = [x * 200 / width, y * 200 / height, (x + y) * 200 / (width + height)];
        pixels.extend(soft.iter().enumerate().map(|(i, v)| *v as u8 + (noise >> (8 * i) & 31) as u8));
    }
    Picture::new(width, height, pixels)
}

/// A number that looks random and depends on `seed` alone (splitmix64).
pub fn noise(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Flags that decide how fast it is, with the numbers that they mean here.
fn settings(args: &BenchArgs) -> Map<String, Value> {
    let c = &args.context;
    let name = |value: Option<clap::builder::PossibleValue>| value.map(|v| v.get_name().to_owned());
    let gpu_layers = match c.gpu_layers {
        GpuLayers::Auto => json!("auto"),
        GpuLayers::All => json!("all"),
        GpuLayers::Exactly(n) => json!(n),
    };
    let load = match (c.no_mmap, c.mlock) {
        (true, _) => "read",
        (false, true) => "mapped and locked",
        (false, false) => "mapped",
    };
    let list = [
        ("threads", json!(pipeline::n_threads(c))),
        ("ctx_size", json!(c.ctx_size)),
        ("cache_type_k", json!(kv_type(c.cache_type_k.as_ref()).name())),
        ("cache_type_v", json!(kv_type(c.cache_type_v.as_ref()).name())),
        ("flash_attn", json!(name(c.flash_attn.to_possible_value()))),
        ("device", json!(c.device.join(","))),
        ("vision_device", json!((!args.text_only).then_some(&c.vision_device))),
        ("rpc", json!((!c.rpc.is_empty()).then(|| c.rpc.join(",")))),
        ("rope", json!((c.rope == RopeMode::Exact).then_some("exact"))),
        ("gpu_layers", gpu_layers),
        ("repack", json!(name(c.repack.to_possible_value()))),
        ("weights", json!(load)),
        ("max_memory", json!(c.max_memory)),
    ];
    list.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A file for people: its path, type and size.
pub fn shown(file: &ModelFile) -> String {
    format!("{} ({}, {})", file.path, file.ty, human_bytes(file.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drawn_picture_is_always_the_same() {
        let picture = drawn().expect("has its length");
        assert_eq!((picture.width(), picture.height()), DRAWN);
        assert_eq!(drawn().expect("has its length"), picture);
        let pixels = picture.pixels();
        assert!(pixels.iter().any(|p| *p < 20) && pixels.iter().any(|p| *p > 200));
    }

    #[test]
    fn cases_are_named_by_what_they_do() {
        let names = [
            Case::Question { n_predict: 3 },
            Case::Prefill { n_prompt: 512 },
            Case::Decode { n_predict: 32, depth: 0 },
            Case::Copy { n_predict: 32 },
        ];
        assert_eq!(names.map(Case::name), ["question", "prefill 512", "decode 32 @ 0", "copy 32"]);
        assert_eq!(names[2].positions(), (1, 32));
    }
}
