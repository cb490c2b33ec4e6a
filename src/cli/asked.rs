//! What is asked, on its way to a prompt.

use std::borrow::Cow;

use qvl::conversation::Conversation;
use qvl::error::{Error, Result};
use qvl::grounding::{self, Selection};
use qvl::image::ImageSource;
use qvl::prompt::{self, ChatSettings, Message, Prompt};
use qvl::session::TextFile;
use qvl::text::ChatFormat;

/// Default system message of the chat format.
pub const SYSTEM: &str = "You are a helpful assistant.";

/// A question as it was given.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Its words.
    pub question: &'a str,
    /// Pictures that were given beside it.
    pub n_pictures: usize,
    /// Parts of pictures that it is about.
    pub regions: &'a [Selection],
    /// How it becomes a prompt.
    pub format: ChatFormat,
    /// The system message of the chat format, if not the default.
    pub system: Option<&'a str>,
    /// What was said before, in the chat format; its system message counts then.
    pub past: Option<Earlier<'a>>,
}

/// A conversation that a question goes on with.
#[derive(Clone, Copy)]
pub struct Earlier<'a> {
    /// Its turns and pictures.
    pub conversation: &'a Conversation,
    /// Positions of the context, and how many of them are for the answer: the oldest turns are left out beyond.
    pub room: (usize, usize),
}

impl Asked<'_> {
    /// The prompt, still without the regions: boxes are in thousandths of pictures, which nobody has read yet. And the
    /// pictures that it shows: `given`, then those in the words. Errors (kind usage): as [`prompt::raw`], a system message in
    /// a raw prompt, regions that have no place.
    pub fn prompt(&self, text: &TextFile, mut given: Vec<ImageSource>) -> Result<(Prompt, Vec<ImageSource>)> {
        if self.format == ChatFormat::Raw && self.system.is_some() {
            return Err(Error::usage("a system message has no place in a raw prompt"));
        }
        let (prompt, more) = self.prompt_of(text, self.question)?;
        // In front of these words, a box would stand in front of its picture.
        if !more.is_empty() && self.regions.len() > grounding::n_places(self.question) {
            return Err(Error::usage("this prompt shows its pictures itself; put {} into it where the region goes"));
        }
        // Only a path may stand in a text: nothing there reads stdin or the network.
        given.extend(more.into_iter().map(|path| ImageSource::Path(path.into())));
        Ok((prompt, given))
    }

    /// The prompt with the regions in it, which without any is `prompt` as it was. `sizes`: width and height in pixels of all
    /// pictures that were given or stand in the words. Errors: as [`grounding::select`].
    pub fn with_regions(&self, text: &TextFile, prompt: Prompt, sizes: &[(u32, u32)]) -> Result<Prompt> {
        if self.regions.is_empty() {
            return Ok(prompt);
        }
        Ok(self.prompt_of(text, &self.words(sizes)?)?.0)
    }

    /// The question with the regions in it. `sizes` and errors as there.
    pub fn words(&self, sizes: &[(u32, u32)]) -> Result<Cow<'_, str>> {
        if self.regions.is_empty() {
            return Ok(self.question.into());
        }
        let earlier = self.past.map_or(&[][..], |past| past.conversation.pictures());
        let sizes: Vec<_> = earlier.iter().map(|shown| shown.size).chain(sizes.iter().copied()).collect();
        grounding::select(self.question, self.regions, &sizes).map(Cow::Owned)
    }

    /// The prompt of these words, and the paths of the pictures in them.
    fn prompt_of(&self, text: &TextFile, question: &str) -> Result<(Prompt, Vec<String>)> {
        let (h, tokenizer) = (text.hparams(), text.tokenizer());
        if self.format == ChatFormat::Raw {
            return prompt::raw(tokenizer, question, self.n_pictures, h.picture_prefix);
        }
        if let Some(Earlier { conversation, room }) = self.past {
            let n_old = conversation.pictures().len();
            let query = Message { text: question.to_owned(), pictures: (n_old..n_old + self.n_pictures).collect() };
            let n_turns = conversation.turns().len();
            return Ok((conversation.prompt(tokenizer, h, n_turns, &query, room)?.prompt, Vec::new()));
        }
        let settings = ChatSettings {
            system: self.system.unwrap_or(SYSTEM).to_owned(),
            max_window_size: h.max_window_size,
            picture_prefix: h.picture_prefix,
        };
        let query = Message { text: question.to_owned(), pictures: (0..self.n_pictures).collect() };
        Ok((prompt::chat(tokenizer, &settings, &[], &query)?, Vec::new()))
    }
}
