//! `qvl trace`: the numbers inside, as one safetensors file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use qvl::error::{Error, Result};
use qvl::ggml::OpCounts;
use qvl::image;
use qvl::llama::{Sampler, SamplerSettings};
use qvl::prompt::{self, Prompt};
use qvl::session::{Seen, Session, TextFile, too_long};
use qvl::temporary::TemporaryFile;
use qvl::text::ChatFormat;
use qvl::tokenizer::TokenId;
use serde_json::{Map, json};

use super::args::TraceArgs;
use super::asked::Asked;
use super::mmproj::{Mmproj, TracedImage};
use super::pipeline;
use super::see::TextMemory;
use super::table::{Side, Table};
use super::{STOP, output, print, print_json, read_text, room};

/// Most logit rows that are held in memory at once.
const N_ROWS_AT_ONCE: usize = 256;

/// Runs it.
pub fn run(args: &TraceArgs, quiet: bool) -> Result<()> {
    let sources = image::sources(&args.images.image)?;
    let text = pipeline::open_text(&args.model, quiet)?;
    let h = text.hparams();
    let (prompt, sources) = match (&args.ids, &args.prompt) {
        (Some(path), _) => (prompt_of_ids(&text, path)?, sources),
        (None, Some(question)) => {
            let format = if args.raw { ChatFormat::Raw } else { h.chat_format };
            let (n_pictures, system) = (sources.len(), args.system.as_deref());
            Asked { question, n_pictures, regions: &[], format, system, past: None }.prompt(&text, sources)?
        }
        (None, None) => return Err(Error::usage("give a prompt or --ids FILE.json")),
    };
    if prompt.n_images() != sources.len() {
        let (n_spans, n_sources) = (prompt.n_images(), sources.len());
        return Err(Error::usage(format!("the prompt shows {n_spans} pictures, {n_sources} were given with -i")));
    }
    let n_prompt = prompt.n_positions(h.n_queries);
    let mut settings =
        pipeline::session_settings(&text, &args.context, (n_prompt, args.predict), n_prompt.clamp(1, N_ROWS_AT_ONCE))?;
    let n_wanted = n_prompt.saturating_add(args.predict);
    if n_wanted > settings.n_ctx {
        return Err(too_long(n_wanted, settings.n_ctx));
    }
    let pictures = pipeline::load_pictures(&sources, &args.images)?;
    if let Some(path) = &args.output {
        output::check(path)?;
    }
    settings.n_outputs = settings.n_batch;
    let mut vision_ops = None;
    let images = match pictures.is_empty() {
        true => Vec::new(),
        false => {
            let mmproj = Mmproj::open(&args.model, &text)?;
            room::check_vision(&mmproj, &args.context, TextMemory::Later(0))?;
            if args.ops {
                vision_ops = Some(mmproj.ops(&args.context)?);
            }
            mmproj.look(&args.context, quiet, |towers| {
                let see = |(k, picture)| {
                    let _spinner =
                        pipeline::spinner(quiet, format!("looking at picture {} of {}", k + 1, pictures.len()));
                    towers.trace(picture)
                };
                pictures.iter().enumerate().map(see).collect::<Result<Vec<_>>>()
            })?
        }
    };

    let mut file = args.output.as_deref().map(TensorFile::create).transpose()?;
    if let Some(file) = &mut file {
        let ids = prompt.ids_with_slots(text.tokenizer().special_ids().img_pad, h.n_queries);
        file.declare("input_ids", "I32", &[n_prompt]);
        images.iter().enumerate().for_each(|(k, image)| declare_image(file, k, image));
        file.declare("logits", "F32", &[n_prompt, h.n_vocab]);
        if args.predict > 0 {
            file.declare("generated_logits", "F32", &[args.predict, h.n_vocab]);
            file.declare("generated_ids", "I32", &[args.predict]);
        }
        file.write_header()?;
        file.write_ids(&ids)?;
        images.iter().try_for_each(|image| write_image(file, image))?;
    }
    let mut write = |row: &[f32]| file.as_mut().map_or(Ok(()), |file| file.write(row));

    let model = pipeline::load_model(&text, &args.context, &settings, None, quiet)?;
    let mut session = Session::new(&text, &model, &settings, &STOP)?;
    if args.ops {
        session.count_ops();
    }
    let embeddings: Vec<_> = images.into_iter().map(|image| Seen::new(image.embedding)).collect();
    let mut last = Vec::new();
    session.prefill_all(&prompt, &embeddings, |row| {
        last.clear();
        last.extend_from_slice(row);
        write(row)
    })?;
    let greedy = SamplerSettings { temp: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, seed: 0 };
    let mut sampler = Sampler::new(greedy, h.n_vocab);
    let mut generated = Vec::new();
    for nth in 0..args.predict {
        write(&last)?;
        generated.push(TokenId(sampler.sample(&last[..text.tokenizer().n_used()])?));
        if nth + 1 < args.predict {
            session.push(generated[nth])?;
            last.clear();
            last.extend_from_slice(session.logits()?);
        }
    }
    if let Some(mut file) = file {
        file.write_ids(&generated)?;
        file.finish()?;
    }
    if args.ops { print_ops(vision_ops.as_ref(), &session.take_ops(), args.json) } else { Ok(()) }
}

/// Which device ran which operation: of the vision tower, with the parts that its graph was cut into, and of the text model.
fn print_ops(vision: Option<&(OpCounts, usize)>, text: &OpCounts, as_json: bool) -> Result<()> {
    let parts = [("vision", vision.map(|(ops, _)| ops)), ("text", Some(text))];
    let rows = parts.into_iter().flat_map(|(part, ops)| {
        let rows = ops.into_iter().flatten();
        rows.map(move |((op, device), n)| (part, op, device, n))
    });
    let n_splits = vision.map(|(_, n)| n);
    if as_json {
        let rows: Vec<_> =
            rows.map(|(part, op, device, n)| json!({"part": part, "op": op, "device": device, "nodes": n})).collect();
        return print_json(&json!({"ops": rows, "vision_splits": n_splits}));
    }
    let rows = rows.map(|(part, op, device, n)| vec![part.to_owned(), op.clone(), device.clone(), n.to_string()]);
    let columns = vec![("part", Side::Left), ("operation", Side::Left), ("device", Side::Left), ("nodes", Side::Right)];
    let table = Table { columns, rows: rows.collect() }.text();
    let splits = n_splits
        .map_or_else(String::new, |n| format!("the vision graph runs in {n} part{}\n", if *n == 1 { "" } else { "s" }));
    print(&(table + &splits))
}

fn prompt_of_ids(text: &TextFile, path: &Path) -> Result<Prompt> {
    let json = File::open(path).and_then(read_text);
    let json = json.map_err(|e| Error::usage("cannot read the ids").because(e).at(path))?;
    let ids: Vec<TokenId> = serde_json::from_str(&json)
        .map_err(|e| Error::usage("expected a JSON array of token ids").because(e).at(path))?;
    prompt::from_ids(text.tokenizer(), &ids)
}

fn declare_image(file: &mut TensorFile, k: usize, image: &TracedImage) {
    let size = image.pixels.size() as usize;
    file.declare(&format!("image.{k}.pixel_values"), "F32", &[3, size, size]);
    for (name, n_rows, n_columns, _) in &image.taps.tensors {
        file.declare(&format!("image.{k}.{name}"), "F32", &[*n_rows, *n_columns]);
    }
    file.declare(&format!("image.{k}.embedding"), "F32", &[image.embedding.n_queries, image.embedding.d_out]);
}

fn write_image(file: &mut TensorFile, image: &TracedImage) -> Result<()> {
    file.write(image.pixels.data())?;
    image.taps.tensors.iter().try_for_each(|(_, _, _, values)| file.write(values))?;
    file.write(&image.embedding.data)
}

/// A safetensors file written front to back, so that logits of long prompts need not fit in memory; the crate
/// `safetensors` wants all data at once. It gets its name when it is complete.
struct TensorFile {
    out: BufWriter<TemporaryFile>,
    path: std::path::PathBuf,
    header: Map<String, serde_json::Value>,
    n_declared: usize,
    n_written: usize,
}

impl TensorFile {
    fn create(path: &Path) -> Result<Self> {
        let file = output::temporary(path)?;
        let (header, path) = (Map::new(), path.to_owned());
        Ok(TensorFile { out: BufWriter::new(file), path, header, n_declared: 0, n_written: 0 })
    }

    /// Announces a tensor of 4-byte values; data follow in the order of declaration.
    fn declare(&mut self, name: &str, dtype: &str, shape: &[usize]) {
        let n_bytes = 4 * shape.iter().product::<usize>();
        let offsets = [self.n_declared, self.n_declared + n_bytes];
        self.header.insert(name.to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        self.n_declared += n_bytes;
    }

    fn write_header(&mut self) -> Result<()> {
        let mut header = serde_json::Value::Object(self.header.clone()).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        self.write_bytes(&(header.len() as u64).to_le_bytes())?;
        self.write_bytes(&header)?;
        self.n_written = 0;
        Ok(())
    }

    fn write(&mut self, values: &[f32]) -> Result<()> {
        values.iter().try_for_each(|v| self.write_bytes(&v.to_le_bytes()))
    }

    fn write_ids(&mut self, ids: &[TokenId]) -> Result<()> {
        ids.iter().try_for_each(|id| self.write_bytes(&id.to_u32().to_le_bytes()))
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.n_written += bytes.len();
        self.out.write_all(bytes).map_err(|e| Error::other("cannot write").because(e).at(&self.path))
    }

    fn finish(self) -> Result<()> {
        if self.n_written != self.n_declared {
            return Err(Error::other("the trace is incomplete").at(&self.path));
        }
        let failed = |e: std::io::Error| Error::other("cannot write").because(e).at(&self.path);
        let file = self.out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.persist(&self.path).map_err(failed)?;
        Ok(())
    }
}
