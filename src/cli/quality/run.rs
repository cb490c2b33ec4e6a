//! A model at work on examples, and who listens.

use qvl::error::Result;
use qvl::image::Picture;
use qvl::prompt::Prompt;
use qvl::session::{Seen, Session, TextFile};
use qvl::tokenizer::{Specials, TokenId};
use qvl::vision::ImageEmbedding;
use std::sync::Arc;

use super::super::args::{ModelArgs, QualityArgs};
use super::super::batch::{go_on, progress};
use super::super::examples::{self, Example, Pictures, Shown};
use super::super::mmproj::Mmproj;
use super::super::pipeline;
use super::super::see::TextMemory;
use super::super::{STOP, room};

/// Positions read together: a picture and its question.
const N_BATCH: usize = 512;
/// Most logit rows that are held at once.
const N_OUTPUTS: usize = 32;

/// Hears what a model makes of pictures and examples, each in order.
pub trait Listener {
    /// An embedding, once for each picture.
    fn picture(&mut self, number: usize, picture: &Picture, embedding: &ImageEmbedding) -> Result<()>;
    /// The answer that is read after an example's question; `None` if that is the model's own.
    fn targets(&self, example: usize) -> Option<Vec<TokenId>>;
    /// Logits of the used vocabulary at position `nth` of that answer, and the token that follows there.
    fn position(&mut self, example: usize, nth: usize, logits: &[f32], target: TokenId);
    /// The model's own greedy answer.
    fn answer(&mut self, example: usize, answer: String);
}

/// Runs a model over all examples, whose prompts are those of `asker` (the model that is measured, also where the reference
/// runs).
pub fn run(
    args: &QualityArgs,
    model: &ModelArgs,
    (text, asker): (&TextFile, &TextFile),
    examples: &[Example],
    listener: &mut dyn Listener,
    quiet: bool,
) -> Result<()> {
    let mut pictures = Pictures::new(examples, &args.data);
    let mmproj = match pictures.len() {
        0 => None,
        _ => Some(Mmproj::open(model, text)?),
    };
    if let Some(mmproj) = &mmproj {
        room::check_vision(mmproj, &args.context, TextMemory::Now(text.n_bytes()))?;
    }
    let longest = examples::longest(examples, asker, args.predict)?;
    let mut settings = pipeline::wanted_settings(text, &args.context, (longest, 0), N_BATCH.min(longest))?;
    settings.n_outputs = N_OUTPUTS.min(settings.n_batch);
    room::check(text, &args.context, &settings)?;
    let weights = pipeline::load_model(text, &args.context, &settings, None, quiet)?;
    let mut session = Session::new(text, &weights, &settings, &STOP)?;
    let bar = progress(examples.len() as u64, quiet);
    let (mut n_looked, mut n_done) = (0, 0);
    while n_done < examples.len() {
        let n = pictures.look(&examples[n_done..], mmproj.as_ref(), &args.context, |towers, number, picture| {
            let embedding = towers.encode(picture)?;
            if number >= n_looked {
                n_looked = number + 1;
                listener.picture(number, picture, &embedding)?;
            }
            Ok(embedding)
        })?;
        for (example, nth) in examples[n_done..][..n].iter().zip(n_done..) {
            go_on()?;
            let Shown { seen, sizes } = example.shown(&pictures)?;
            let prompt = example.prompt(asker, &sizes)?;
            let mut reader = Reader { session: &mut session, text, prompt, seen, n_predict: args.predict };
            reader.read(nth, example, listener)?;
            bar.inc(1);
        }
        n_done += n;
    }
    bar.finish_and_clear();
    Ok(())
}

/// One example on its way.
struct Reader<'a, 'm> {
    session: &'a mut Session<'m>,
    text: &'m TextFile,
    prompt: Prompt,
    seen: Vec<Arc<Seen>>,
    n_predict: usize,
}

impl Reader<'_, '_> {
    fn read(&mut self, nth: usize, example: &Example, listener: &mut dyn Listener) -> Result<()> {
        let stops = stops(self.text);
        let (targets, own) = match listener.targets(nth) {
            Some(targets) => (targets, None),
            None => {
                let own = self.greedy()?;
                (own.clone(), Some(own))
            }
        };
        if targets.is_empty() {
            // Nothing to follow, as after -n 0.
            listener.answer(nth, String::new());
            return Ok(());
        }
        let n_used = self.text.tokenizer().n_used();
        let mut chosen = Vec::with_capacity(targets.len());
        let mut hear = |logits: &[f32]| {
            let logits = &logits[..n_used];
            listener.position(nth, chosen.len(), logits, targets[chosen.len()]);
            chosen.push(best(logits));
        };
        self.session.prefill(&self.prompt, &self.seen)?;
        hear(self.session.logits()?);
        self.session.push_all(&targets[..targets.len() - 1], |row| {
            hear(row);
            Ok(())
        })?;
        // Where it would have chosen each of these tokens itself, this is its own answer.
        let followed = chosen == targets && targets.last().is_some_and(|id| stops.contains(id));
        let own = match own {
            Some(own) => own,
            None if followed => targets,
            None => self.greedy()?,
        };
        let words: Vec<TokenId> = own.into_iter().filter(|id| !stops.contains(id)).collect();
        let answer = self.text.tokenizer().decode(&words, Specials::Keep)?;
        listener.answer(nth, example.trimmed(&answer).to_owned());
        Ok(())
    }

    /// The model's own answer, with the token that ends it if it comes to that.
    fn greedy(&mut self) -> Result<Vec<TokenId>> {
        let stops = stops(self.text);
        let n_used = self.text.tokenizer().n_used();
        self.session.prefill(&self.prompt, &self.seen)?;
        let mut ids = Vec::new();
        while ids.len() < self.n_predict {
            go_on()?;
            let id = best(&self.session.logits()?[..n_used]);
            ids.push(id);
            if stops.contains(&id) || ids.len() == self.n_predict || self.session.n_left() == 0 {
                break;
            }
            self.session.push(id)?;
        }
        Ok(ids)
    }
}

/// Tokens that end an answer.
fn stops(text: &TextFile) -> [TokenId; 3] {
    let ids = text.tokenizer().special_ids();
    [ids.eod, ids.im_end, ids.im_start]
}

/// The most likely token, of equal ones the first, as greedy sampling takes it.
fn best(logits: &[f32]) -> TokenId {
    let best = (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    TokenId(best.unwrap_or_default() as u32)
}
