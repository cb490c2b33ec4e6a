//! A conversation as a file for people: what was said, and where the pictures are.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Conversation;
use crate::error::{Error, Result};
use crate::image::ImageSource;

/// The name in every file.
const FORMAT: &str = "qvl-chat";
/// Raised when an older program would misread a file.
const VERSION: u64 = 1;
/// Most pictures of a file: each costs seconds, and no context holds as many.
pub const MAX_PICTURES: usize = 1000;

/// A conversation without what the model saw. Having one from [`Saved::parse`] says: format and version are known, and
/// there are at most [`MAX_PICTURES`] pictures; it says nothing about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The system message.
    pub system: String,
    /// Oldest first.
    pub turns: Vec<SavedTurn>,
}

/// A question with its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTurn {
    /// Paths, absolute when written by us, or addresses.
    #[serde(default)]
    pub pictures: Vec<String>,
    /// What the user said.
    pub question: String,
    /// What the model said.
    pub answer: String,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    format: String,
    version: u64,
    system: String,
    turns: Vec<SavedTurn>,
}

impl Saved {
    /// What is kept of a conversation; pictures that wait for a question are not. Errors: a path that is no UTF-8.
    pub fn of(conversation: &Conversation) -> Result<Saved> {
        let picture = |k: &usize| match conversation.pictures().get(*k) {
            Some(shown) => written(&shown.source),
            None => Err(Error::other(format!("there is no picture {}", k + 1))),
        };
        let turn = |turn: &crate::prompt::Turn| {
            let pictures = turn.query.pictures.iter().map(picture).collect::<Result<_>>()?;
            let answer = turn.answer.clone().unwrap_or_default();
            Ok(SavedTurn { pictures, question: turn.query.text.clone(), answer })
        };
        let turns = conversation.turns().iter().map(turn).collect::<Result<_>>()?;
        Ok(Saved { system: conversation.system.clone(), turns })
    }

    /// The file's text: JSON in lines.
    pub fn to_text(&self) -> Result<String> {
        let (format, version) = (FORMAT.to_owned(), VERSION);
        let contents = Contents { format, version, system: self.system.clone(), turns: self.turns.clone() };
        let text = serde_json::to_string_pretty(&contents);
        text.map(|text| text + "\n").map_err(|e| Error::other("cannot write JSON").because(e))
    }

    /// Reads a file's text. Errors: not JSON, not a chat, of a newer version, too many pictures.
    pub fn parse(text: &str) -> Result<Saved> {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| Error::other("not JSON").because(e))?;
        if value["format"] != FORMAT {
            return Err(Error::other(format!("not a saved chat: \"format\" is not {FORMAT:?}")));
        }
        if value["version"] != VERSION {
            return Err(Error::other(format!("a chat of version {}; this program reads {VERSION}", value["version"])));
        }
        let contents: Contents =
            serde_json::from_value(value).map_err(|e| Error::other("a damaged chat").because(e))?;
        let n_pictures: usize = contents.turns.iter().map(|turn| turn.pictures.len()).sum();
        if n_pictures > MAX_PICTURES {
            return Err(Error::other(format!("{n_pictures} pictures; at most {MAX_PICTURES} are read")));
        }
        Ok(Saved { system: contents.system, turns: contents.turns })
    }
}

/// A picture's place as text, which [`SavedTurn::sources`] reads again.
fn written(source: &ImageSource) -> Result<String> {
    match source {
        ImageSource::Path(path) => match path.to_str() {
            Some(path) => Ok(path.to_owned()),
            None => Err(Error::other("the path of a picture that is no UTF-8 cannot be saved").at(path)),
        },
        ImageSource::Data(text) | ImageSource::Url(text) => Ok(text.clone()),
        ImageSource::Stdin => Err(Error::other("a picture from stdin cannot be saved")),
    }
}

impl SavedTurn {
    /// Where its pictures are; a path that is not absolute is relative to `folder`, the file's. Errors (kind image): an
    /// address of the network, which is fetched only where a user typed it, or stdin.
    pub fn sources(&self, folder: &Path) -> Result<Vec<ImageSource>> {
        let one = |text: &String| match ImageSource::of_argument(text.as_ref())? {
            ImageSource::Path(path) => Ok(ImageSource::Path(folder.join(path))),
            source @ ImageSource::Data(_) => Ok(source),
            ImageSource::Stdin => Err(Error::image("a saved chat cannot show stdin")),
            source @ ImageSource::Url(_) => {
                Err(Error::image("a saved chat fetches nothing; put the picture into a file and its path here")
                    .of(source))
            }
        };
        self.pictures.iter().map(one).collect()
    }
}
