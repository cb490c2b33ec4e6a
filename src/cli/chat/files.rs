//! `/save`, `/load` and `/boxes`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::slice;

use qvl::conversation::{Conversation, Saved, Shown};
use qvl::error::{Error, Result};
use qvl::grounding;
use qvl::image::{ImageSource, Picture};

use super::eyes::Eyes;
use crate::cli::annotate::Annotation;
use crate::cli::{output, read_text};

/// Writes a conversation; the file appears when it is complete. Errors: it cannot be written.
pub fn save(conversation: &Conversation, path: &Path) -> Result<()> {
    let text = Saved::of(conversation)?.to_text()?;
    output::check(path)?;
    let failed = |e: std::io::Error| Error::other("cannot write").because(e).at(path);
    let mut file = output::temporary(path)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.persist(path).map_err(failed)?;
    Ok(())
}

/// Reads a conversation and sees its pictures again; the pixels of the last one come back too. Errors: the file, or one
/// of its pictures, cannot be read or is none.
pub fn load(path: &Path, eyes: &Eyes<'_>) -> Result<(Conversation, Option<Picture>)> {
    let text = File::open(path).and_then(read_text);
    let text = text.map_err(|e| Error::other("cannot read").because(e).at(path))?;
    let saved = Saved::parse(&text).map_err(|e| e.at(path))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let sources = saved.turns.iter().map(|turn| turn.sources(folder)).collect::<Result<Vec<_>>>();
    let sources = sources.map_err(|e| e.at(path))?.concat();
    let (shown, last) = eyes.see(sources)?;

    let mut shown = shown.into_iter();
    let mut conversation = Conversation::new(saved.system);
    for turn in saved.turns {
        shown.by_ref().take(turn.pictures.len()).for_each(|picture| {
            conversation.show(picture);
        });
        conversation.push(turn.question, turn.answer);
    }
    Ok((conversation, last))
}

/// Draws the last answer's regions on its picture and writes that to `path`. `pixels`: those of a picture, by its index,
/// which are taken if it is this one; otherwise it is read again. Errors: no regions, no picture, another one by now, or
/// nothing can be written. Cost: a copy of the pixels.
pub fn boxes(
    conversation: &Conversation,
    pixels: Option<&(usize, Picture)>,
    eyes: &Eyes<'_>,
    path: &Path,
) -> Result<()> {
    let turn = conversation.turns().last().ok_or_else(|| Error::usage("there is no answer yet"))?;
    let found = grounding::regions(turn.answer.as_deref().unwrap_or_default());
    match found {
        (ref regions, 0) if regions.is_empty() => return Err(Error::usage("the last answer has no regions")),
        (ref regions, n) if regions.is_empty() => {
            return Err(Error::usage(format!("the last answer has no regions but {n} malformed")));
        }
        _ => {}
    }
    let (k, shown) = conversation.last_asked().ok_or_else(|| Error::usage("no picture was shown"))?;
    let annotation = Annotation::new(path)?;
    let picture = match pixels {
        Some((index, picture)) if *index == k => picture.clone(),
        _ => eyes.again(shown)?,
    };
    let sources: Vec<ImageSource> = conversation.pictures().iter().map(|shown: &Shown| shown.source.clone()).collect();
    annotation.check(&sources, slice::from_ref(&picture))?;
    annotation.write(picture, &found, eyes.quiet)
}
