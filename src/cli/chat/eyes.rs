//! Pictures on their way into a conversation.

use std::slice;

use qvl::conversation::Shown;
use qvl::error::{Error, Result};
use qvl::image::{ImageSource, Picture};
use qvl::session::{Seen, TextFile};

use crate::cli::args::ChatArgs;
use crate::cli::pipeline;
use crate::cli::see::{TextMemory, Viewer, again, lasting};

/// What is needed to see.
#[derive(Clone, Copy)]
pub struct Eyes<'a> {
    /// Flags.
    pub args: &'a ChatArgs,
    /// The text model's file.
    pub text: &'a TextFile,
    /// No spinner.
    pub quiet: bool,
    /// What the text model takes, and when.
    pub memory: TextMemory,
}

impl Eyes<'_> {
    /// Reads and encodes pictures, one after the other; the pixels of the last one come back too. The mmproj is mapped for
    /// as long as that takes. Errors: as `ask` for a picture (found before any is encoded, but for an address of the
    /// network) or an mmproj, and kind interrupted.
    pub fn see(&self, sources: Vec<ImageSource>) -> Result<(Vec<Shown>, Option<Picture>)> {
        if sources.is_empty() {
            return Ok((Vec::new(), None));
        }
        if sources.contains(&ImageSource::Stdin) {
            return Err(Error::usage("stdin gives the conversation, so a picture cannot come from there"));
        }
        let sources = sources.into_iter().map(lasting).collect::<Result<Vec<_>>>()?;
        if sources.len() > 1 {
            // Decoding twice costs little beside encoding, and holding all pixels would cost much.
            let is_near = |source: &&ImageSource| !matches!(source, ImageSource::Url(_));
            sources.iter().filter(is_near).try_for_each(|source| self.load(source).map(drop))?;
        }
        let args = self.args;
        let mut viewer = Viewer::new(&args.model, &args.context, &args.cache, self.memory, self.quiet);
        let (mut shown, mut last) = (Vec::new(), None);
        for source in sources {
            let picture = self.load(&source)?;
            let encoded = viewer.see(self.text, slice::from_ref(&picture))?.embeddings;
            let size = (picture.width(), picture.height());
            shown.extend(encoded.into_iter().map(|e| Shown { source: source.clone(), size, seen: Seen::new(e) }));
            last = Some(picture);
        }
        Ok((shown, last))
    }

    /// Reads a picture again, to draw on it. Errors: as [`again`].
    pub fn again(&self, shown: &Shown) -> Result<Picture> {
        again(shown, &self.args.images)
    }

    fn load(&self, source: &ImageSource) -> Result<Picture> {
        let mut one = pipeline::load_pictures(slice::from_ref(source), &self.args.images)?;
        one.pop().ok_or_else(|| Error::image("no picture").of(source))
    }
}
