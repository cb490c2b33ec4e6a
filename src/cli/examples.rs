//! Examples that a model reads: questions about pictures, with their answers where somebody knows them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use qvl::error::{Error, Result};
use qvl::grounding::Selection;
use qvl::image::{ImageSource, Picture};
use qvl::prompt::Prompt;
use qvl::session::{Seen, TextFile, too_long};
use qvl::text::ChatFormat;
use qvl::tokenizer::{Special, TokenId};
use qvl::vision::ImageEmbedding;
use serde_json::Value;

use super::args::{ContextArgs, DataArgs, ImageArgs};
use super::asked::Asked;
use super::batch::{Item, Items, Shard, go_on};
use super::mmproj::{Mmproj, Towers};
use super::pipeline;

/// New pictures that are looked at before their examples are read: vision and text weights take turns in memory once a wave.
const WAVE: usize = 16;

/// A question that has been proven.
pub struct Example {
    /// The question's words.
    pub question: String,
    /// The right answer, if it is known.
    pub answer: Option<String>,
    /// Pictures that the prompt shows, in its order.
    pub sources: Vec<ImageSource>,
    system: Option<String>,
    regions: Vec<Selection>,
    n_given: usize,
    format: ChatFormat,
}

/// All examples of a file, ordered by their pictures, so that each is looked at once; those without come first. The first bad
/// one is an error (kind usage) with its place.
pub fn read(args: &DataArgs, context: &ContextArgs, text: &TextFile) -> Result<Vec<Example>> {
    let format = if args.raw { ChatFormat::Raw } else { text.hparams().chat_format };
    let shard = Shard::parse("1/1").map_err(Error::usage)?;
    let mut items = Items::open(&args.data, args.prompt.as_deref(), shard)?;
    let mut examples = Vec::new();
    while let Some((id, item)) = items.next()? {
        let of = |e: Error| e.of(&id).at(&args.data);
        examples.push(example(item.map_err(|e| e.at(&args.data))?, args, format, context, text).map_err(of)?);
    }
    if examples.is_empty() {
        return Err(Error::usage("there is no example in it").at(&args.data));
    }
    examples.sort_by_key(|e| e.sources.iter().map(name).collect::<Vec<_>>());
    Ok(examples)
}

fn example(item: Item, args: &DataArgs, format: ChatFormat, context: &ContextArgs, text: &TextFile) -> Result<Example> {
    let answer = match item.answer {
        None | Some(Value::Null) => None,
        Some(Value::String(answer)) => Some(answer),
        Some(_) => return Err(Error::usage("its answer is not text")),
    };
    let mut example = Example {
        question: item.prompt,
        answer,
        sources: Vec::new(),
        system: item.wishes.system.or_else(|| args.system.clone()),
        regions: item.regions,
        n_given: item.images.len(),
        format,
    };
    let (prompt, sources) = example.asked().prompt(text, item.images)?;
    for path in sources.iter().filter_map(ImageSource::path) {
        // Not after an hour of work.
        std::fs::metadata(path).map_err(|e| Error::image("cannot read the picture").because(e).at(path))?;
    }
    example.sources = sources;
    let h = text.hparams();
    let limit = context.ctx_size.map_or(h.context_length, |n| n as usize);
    let n = prompt.n_positions(h.n_queries) + example.answer_ids(text)?.map_or(0, |ids| ids.len());
    match n {
        0 => Err(Error::usage("the prompt is empty")),
        n if n > limit => Err(too_long(n, limit)),
        _ => Ok(example),
    }
}

impl Example {
    fn asked(&self) -> Asked<'_> {
        Asked {
            question: &self.question,
            n_pictures: self.n_given,
            regions: &self.regions,
            format: self.format,
            system: self.system.as_deref(),
            past: None,
        }
    }

    /// Its prompt. `sizes`: width and height in pixels of its pictures.
    pub fn prompt(&self, text: &TextFile, sizes: &[(u32, u32)]) -> Result<Prompt> {
        let (prompt, _) = self.asked().prompt(text, self.sources[..self.n_given].to_vec())?;
        self.asked().with_regions(text, prompt, sizes)
    }

    /// The answer's tokens and the one that ends it, as the model was trained to write them.
    pub fn answer_ids(&self, text: &TextFile) -> Result<Option<Vec<TokenId>>> {
        let Some(answer) = &self.answer else { return Ok(None) };
        let (tokenizer, ids) = (text.tokenizer(), text.tokenizer().special_ids());
        let (special, end) = match self.format {
            ChatFormat::Raw => (Special::All, ids.eod),
            ChatFormat::ChatMl => (Special::Image, ids.im_end),
        };
        let mut tokens = tokenizer.encode(answer, special)?;
        tokens.push(end);
        Ok(Some(tokens))
    }

    /// The right answer as answers are compared.
    pub fn expected(&self) -> Option<&str> {
        self.answer.as_deref().map(|answer| self.trimmed(answer))
    }

    /// An answer as it is shown: of the chat format without white space around it.
    pub fn trimmed<'t>(&self, answer: &'t str) -> &'t str {
        match self.format {
            ChatFormat::Raw => answer,
            ChatFormat::ChatMl => answer.trim(),
        }
    }

    /// All that its prompt and answer are made of, but the pictures.
    pub fn words(&self) -> impl Iterator<Item = String> {
        let regions = self.regions.iter().map(|region| format!("{region:?}")).collect::<Vec<_>>().join(" ");
        let shape = format!("{:?} {}", self.format, self.sources.len());
        let texts = [Some(self.question.clone()), self.answer.clone(), self.system.clone(), Some(regions), Some(shape)];
        texts.into_iter().map(|text| format!("{text:?}"))
    }

    /// Its pictures and their sizes in pixels, all of which have been looked at.
    pub fn shown(&self, pictures: &Pictures) -> Result<Shown> {
        let one = |source| pictures.recent.get(&name(source)).cloned();
        let shown: Option<Vec<_>> = self.sources.iter().map(one).collect();
        let (seen, sizes) = shown.ok_or_else(|| Error::other("a picture got lost"))?.into_iter().unzip();
        Ok(Shown { seen, sizes })
    }
}

/// The pictures of an example, one after the other.
pub struct Shown {
    /// Their embeddings.
    pub seen: Vec<Arc<Seen>>,
    /// Their widths and heights in pixels.
    pub sizes: Vec<(u32, u32)>,
}

/// What tells pictures apart.
fn name(source: &ImageSource) -> String {
    format!("{source:?}")
}

/// Pictures of examples that are read in order: those of the examples at hand.
pub struct Pictures {
    orient: ImageArgs,
    numbers: HashMap<String, usize>,
    recent: HashMap<String, (Arc<Seen>, (u32, u32))>,
}

impl Pictures {
    /// None looked at yet; all of `examples` are numbered in the order in which they will be.
    pub fn new(examples: &[Example], args: &DataArgs) -> Self {
        let mut numbers = HashMap::new();
        for source in examples.iter().flat_map(|e| &e.sources) {
            let next = numbers.len();
            numbers.entry(name(source)).or_insert(next);
        }
        let orient = ImageArgs { image: Vec::new(), no_auto_orient: args.no_auto_orient };
        Pictures { orient, numbers, recent: HashMap::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Looks at the pictures of the first few of `examples` with the tower of `mmproj`, which may be missing where there are none, and
    /// tells how many. `see` is given each picture that is new with its number; one that comes again later may be given again.
    pub fn look(
        &mut self,
        examples: &[Example],
        mmproj: Option<&Mmproj>,
        context: &ContextArgs,
        mut see: impl FnMut(&Towers<'_>, usize, &Picture) -> Result<ImageEmbedding>,
    ) -> Result<usize> {
        let (mut wanted, mut n_new, mut n) = (HashSet::new(), 0, 0);
        for example in examples {
            let names: Vec<String> = example.sources.iter().map(name).collect();
            n_new += names.iter().filter(|name| !self.recent.contains_key(*name) && !wanted.contains(*name)).count();
            if n > 0 && n_new > WAVE {
                break;
            }
            wanted.extend(names);
            n += 1;
        }
        self.recent.retain(|name, _| wanted.contains(name));
        let sources = || examples[..n].iter().flat_map(|example| &example.sources);
        if sources().any(|source| !self.recent.contains_key(&name(source))) {
            let mmproj = mmproj.ok_or_else(|| Error::other("no mmproj"))?;
            mmproj.look(context, true, |towers| {
                sources().try_for_each(|source| self.add(source, |number, picture| see(towers, number, picture)))
            })?;
        }
        Ok(n)
    }

    fn add(&mut self, source: &ImageSource, see: impl FnOnce(usize, &Picture) -> Result<ImageEmbedding>) -> Result<()> {
        let name = name(source);
        if self.recent.contains_key(&name) {
            return Ok(());
        }
        go_on()?;
        let pictures = pipeline::load_pictures(std::slice::from_ref(source), &self.orient)?;
        let Some(picture) = pictures.first() else { return Ok(()) };
        let number = self.numbers.get(&name).copied().unwrap_or_default();
        let seen = Seen::new(see(number, picture)?);
        self.recent.insert(name, (seen, (picture.width(), picture.height())));
        Ok(())
    }
}

/// Positions of the longest of them, with room for this much of an answer where none is known.
pub fn longest(examples: &[Example], text: &TextFile, n_predict: usize) -> Result<usize> {
    let mut longest = 1;
    for example in examples {
        let (prompt, _) = example.asked().prompt(text, example.sources[..example.n_given].to_vec())?;
        // A region becomes a box of 22 tokens at most for each place of its own: tags, brackets, commas, 16 digits.
        let regions = 32 * example.regions.len();
        let answer = example.answer_ids(text)?.map_or(0, |ids| ids.len()).max(n_predict);
        longest = longest.max(prompt.n_positions(text.hparams().n_queries) + regions + answer);
    }
    Ok(longest)
}
