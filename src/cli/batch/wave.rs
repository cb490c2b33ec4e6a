//! Items before they are answered: their prompts, then their pictures.

use std::collections::HashMap;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qvl::error::{Error, ErrorKind, Result};
use qvl::image::ImageSource;
use qvl::prompt::Prompt;
use qvl::session::{Seen, TextFile, too_long};
use qvl::text::ChatFormat;
use serde_json::Value;

use super::super::args::{GenerationArgs, ImageArgs};
use super::super::asked::Asked;
use super::super::pipeline;
use super::super::see::Look;
use super::Report;
use super::input::Item;

/// Items whose pictures are looked at before their answers are begun. Vision and text weights then take turns in memory, and the way to
/// a device, once a wave and not once an item; each picture waits as an embedding (4 MiB for the real model).
pub const WAVE: usize = 32;

/// An item that is ready to be answered.
pub struct Ready {
    pub id: Value,
    pub prompt: Prompt,
    pub n_prompt: usize,
    pub images: Vec<Arc<Seen>>,
    /// Pixels of the last picture, to which boxes refer.
    pub size: Option<(u32, u32)>,
    pub generation: GenerationArgs,
    pub n_predict: usize,
    pub encode: Duration,
}

/// A picture that was looked at: its rows and its size in pixels.
pub type Looked = (Arc<Seen>, (u32, u32));

/// An item with its prompt, before any of its pictures is read.
pub struct Draft<'t> {
    text: &'t TextFile,
    item: Item,
    sources: Vec<ImageSource>,
    prompt: Prompt,
    generation: GenerationArgs,
    format: ChatFormat,
    /// Positions that prompt and answer may have.
    limit: usize,
}

impl<'t> Draft<'t> {
    /// The item asked with its own wishes, else with `generation`; `limit` is that of the context, if one was named.
    pub fn new(
        text: &'t TextFile,
        mut item: Item,
        generation: &GenerationArgs,
        raw: bool,
        limit: Option<usize>,
    ) -> Result<Self> {
        let mut generation = generation.clone();
        let wishes = std::mem::take(&mut item.wishes);
        generation.predict = wishes.predict.or(generation.predict);
        generation.temp = wishes.temp.or(generation.temp);
        generation.seed = wishes.seed.or(generation.seed);
        generation.system = wishes.system.or(generation.system);
        let format = if raw { ChatFormat::Raw } else { ChatFormat::ChatMl };
        let given = std::mem::take(&mut item.images);
        let (prompt, sources) = asked(&item, given.len(), &generation, format).prompt(text, given)?;
        let limit = limit.unwrap_or(text.hparams().context_length);
        let draft = Draft { text, item, sources, prompt, generation, format, limit };
        draft.measure(&draft.prompt)?;
        Ok(draft)
    }

    /// What names it in the output.
    pub fn id(&self) -> &Value {
        &self.item.id
    }

    /// Whether there is something to look at.
    pub fn has_pictures(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Looks at its pictures with `see`.
    pub fn seen(self, see: impl FnMut(&ImageSource) -> Result<Looked>) -> Result<Ready> {
        let start = Instant::now();
        let looked = self.sources.iter().map(see).collect::<Result<Vec<_>>>()?;
        let encode = start.elapsed();
        let (images, sizes): (Vec<_>, Vec<_>) = looked.into_iter().unzip();
        let asked = asked(&self.item, sizes.len(), &self.generation, self.format);
        let prompt = asked.with_regions(self.text, self.prompt.clone(), &sizes)?;
        let n_prompt = self.measure(&prompt)?;
        let n_predict =
            self.generation.predict.unwrap_or(self.text.hparams().max_new_tokens).min(self.limit - n_prompt);
        let (id, generation, size) = (self.item.id, self.generation, sizes.last().copied());
        Ok(Ready { id, prompt, n_prompt, images, size, generation, n_predict, encode })
    }

    /// Positions of the prompt, if it has any and fits.
    fn measure(&self, prompt: &Prompt) -> Result<usize> {
        match prompt.n_positions(self.text.hparams().n_queries) {
            0 => Err(Error::usage("the prompt is empty")),
            n_prompt if n_prompt > self.limit => Err(too_long(n_prompt, self.limit)),
            n_prompt => Ok(n_prompt),
        }
    }
}

fn asked<'d>(item: &'d Item, n_pictures: usize, generation: &'d GenerationArgs, format: ChatFormat) -> Asked<'d> {
    let system = generation.system.as_deref();
    Asked { question: &item.prompt, n_pictures, regions: &item.regions, format, system, past: None }
}

/// Reads a picture and looks at it, once a wave. Of all weights only the vision model's are used, and none if the picture is known.
pub fn see(
    look: &mut Look<'_, '_>,
    orient: &ImageArgs,
    looked: &mut HashMap<String, Looked>,
    source: &ImageSource,
) -> Result<Looked> {
    let name = format!("{source:?}");
    if let Some(known) = looked.get(&name) {
        return Ok(known.clone());
    }
    let pictures = pipeline::load_pictures(slice::from_ref(source), orient)?;
    let size = pictures.last().map(|picture| (picture.width(), picture.height()));
    let embedding = look.see(&pictures)?.embeddings.pop();
    let (embedding, size) = embedding.zip(size).ok_or_else(|| Error::other("a picture got lost"))?;
    let new = (Seen::new(embedding), size);
    looked.insert(name, new.clone());
    Ok(new)
}

/// What became of item `id`, unless it failed: that goes to the report. Errors: those that are not the item's fault.
pub fn kept<T>(id: &Value, of_item: Result<T>, report: &mut Report) -> Result<Option<T>> {
    match of_item {
        Ok(kept) => Ok(Some(kept)),
        Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::Model | ErrorKind::Memory) => Err(e),
        Err(e) => report.failed(id, &e).map(|()| None),
    }
}
