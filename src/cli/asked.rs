//! What is asked, on its way to a prompt.

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
    /// pictures that the prompt shows. Errors: as [`grounding::select`].
    pub fn with_regions(&self, text: &TextFile, prompt: Prompt, sizes: &[(u32, u32)]) -> Result<Prompt> {
        if self.regions.is_empty() {
            return Ok(prompt);
        }
        let question = grounding::select(self.question, self.regions, sizes)?;
        Ok(self.prompt_of(text, &question)?.0)
    }

    /// The prompt of these words, and the paths of the pictures in them.
    fn prompt_of(&self, text: &TextFile, question: &str) -> Result<(Prompt, Vec<String>)> {
        let (h, tokenizer) = (text.hparams(), text.tokenizer());
        if self.format == ChatFormat::Raw {
            return prompt::raw(tokenizer, question, self.n_pictures, h.picture_prefix);
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
