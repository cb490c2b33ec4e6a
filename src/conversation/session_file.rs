//! A conversation as a file for this program: what was said, what the model saw of the pictures, and what it had read.
//!
//! ```text
//! magic "QVLSESS1" · n u64 · n bytes of JSON · embeddings f32 · the cache's state · SHA-256 of all before
//! ```
//!
//! Numbers are little-endian. With the embeddings in it nothing is encoded again, even where the state is of no use.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Conversation, MAX_PICTURES, SavedTurn, Shown};
use crate::error::{Error, Result};
use crate::image::ImageSource;
use crate::session::{Mark, ModelId, Seen, Snapshot, TextFile};
use crate::tokenizer::TokenId;
use crate::vision::ImageEmbedding;

const MAGIC: &[u8; 8] = b"QVLSESS1";
const N_HASH: usize = 32;
/// Longest JSON in bytes: a context full of text has some hundred KiB.
const MAX_HEADER_BYTES: usize = 64 << 20;
/// Most positions: beyond any context.
const MAX_POSITIONS: usize = 1 << 20;
/// Longest `data:` address that is kept, in bytes.
const MAX_DATA_BYTES: usize = 1 << 16;

/// A conversation with what the model had read of it. Having one from [`SessionFile::parse`] says: the file is whole and of
/// this model, and every index in it is of a picture that is there; the numbers of the cache are not proven, see
/// [`Session::resume`](crate::session::Session::resume).
#[derive(Clone, Debug)]
pub struct SessionFile<'a> {
    /// What was said.
    pub conversation: Conversation,
    /// What was read.
    pub snapshot: Snapshot<'a>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    /// [`ModelId`] in hexadecimal digits, and a name for people.
    model: String,
    model_name: String,
    system: String,
    turns: Vec<SavedTurn>,
    /// Width and height of each picture in pixels.
    sizes: Vec<(u32, u32)>,
    n_queries: usize,
    d_out: usize,
    alpha: f64,
    read: Vec<Run>,
    state_bytes: u64,
}

/// Positions that follow each other.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Run {
    Tokens(Vec<u32>),
    /// Rows of a picture: its index, the first row, how many.
    Rows(usize, u32, u32),
}

impl SessionFile<'_> {
    /// Writes it. Pictures that wait for their question are left out. Errors: what the writer says.
    pub fn write(&self, text: &TextFile, id: &ModelId, out: &mut impl Write) -> Result<()> {
        let c = &self.conversation;
        let n_pictures = c.pictures().len() - c.waiting().len();
        let pictures = &c.pictures()[..n_pictures];
        let source = |k: &usize| pictures.get(*k).map(|shown| written(&shown.source));
        let turn = |turn: &crate::prompt::Turn| SavedTurn {
            pictures: turn.query.pictures.iter().filter_map(source).collect(),
            question: turn.query.text.clone(),
            answer: turn.answer.clone().unwrap_or_default(),
        };
        // Rows of a picture that is not kept cannot be named: what was read is kept up to there.
        let (read, n_read) = runs(&self.snapshot.read, pictures);
        let is_whole = n_read == self.snapshot.read.len();
        let (read, state) = if is_whole { (read, &*self.snapshot.state) } else { (Vec::new(), &[][..]) };
        let header = Header {
            model: hex(id),
            model_name: text.title(),
            system: c.system.clone(),
            turns: c.turns().iter().map(turn).collect(),
            sizes: pictures.iter().map(|shown| shown.size).collect(),
            n_queries: text.hparams().n_queries,
            d_out: text.hparams().n_embd,
            alpha: self.snapshot.alpha,
            read,
            state_bytes: state.len() as u64,
        };
        let header = serde_json::to_vec(&header).map_err(|e| Error::other("cannot write JSON").because(e))?;
        let mut out = Hashing { out, hash: Sha256::new() };
        let mut write = || -> io::Result<()> {
            out.write_all(MAGIC)?;
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            for shown in pictures {
                for row in shown.seen.embedding.data.chunks(1024) {
                    out.write_all(&row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
                }
            }
            out.write_all(state)?;
            let hash = out.hash.finalize_reset();
            out.out.write_all(&hash)?;
            out.out.flush()
        };
        write().map_err(|e| Error::other("cannot write").because(e))
    }
}

impl<'a> SessionFile<'a> {
    /// Reads a file's bytes. Errors: kind usage when it is of another model, else that it is no session or damaged. Cost: a
    /// hash over the file, a copy of the embeddings; the state is borrowed.
    pub fn parse(file: &'a [u8], text: &TextFile, id: &ModelId) -> Result<Self> {
        let damaged = |what: &str| Error::other(format!("a damaged session: {what}"));
        let rest = file.strip_prefix(MAGIC).ok_or_else(|| Error::other("not a session file of this program"))?;
        let n = file.len().checked_sub(N_HASH).filter(|n| *n >= MAGIC.len()).ok_or_else(|| damaged("cut short"))?;
        if Sha256::digest(&file[..n])[..] != file[n..] {
            return Err(damaged("its checksum is wrong"));
        }
        let rest = &rest[..n - MAGIC.len()];
        let (length, rest) = rest.split_first_chunk().ok_or_else(|| damaged("cut short"))?;
        let n_header = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if n_header > MAX_HEADER_BYTES.min(rest.len()) {
            return Err(damaged("its header is longer than it can be"));
        }
        let (header, rest) = rest.split_at(n_header);
        let header: Header =
            serde_json::from_slice(header).map_err(|e| damaged("its header cannot be read").because(e))?;
        if header.model != hex(id) {
            let (theirs, ours) = (&header.model_name, text.title());
            let message = format!(
                "the session was made with another model ({theirs:?}; this is {ours:?} in {}); use that one, or another file",
                text.path().display()
            );
            return Err(Error::usage(message));
        }
        let h = text.hparams();
        let n_pictures: usize = header.turns.iter().map(|turn| turn.pictures.len()).sum();
        let n_values = h.n_queries * h.n_embd;
        if n_pictures != header.sizes.len() || n_pictures > MAX_PICTURES {
            return Err(damaged("its pictures do not add up"));
        }
        if (header.n_queries, header.d_out) != (h.n_queries, h.n_embd) || !(1.0..1e6).contains(&header.alpha) {
            return Err(damaged("its dimensions are impossible"));
        }
        if rest.len() as u64 != (n_pictures * n_values * 4) as u64 + header.state_bytes.min(u64::MAX / 2) {
            return Err(damaged("its length is wrong"));
        }
        let (embeddings, state) = rest.split_at(n_pictures * n_values * 4);
        let mut seen = embeddings.chunks_exact(n_values * 4).map(|bytes| {
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Seen::new(ImageEmbedding { n_queries: h.n_queries, d_out: h.n_embd, data: values })
        });
        let mut sizes = header.sizes.into_iter();
        let mut conversation = Conversation::new(header.system);
        for turn in header.turns {
            for ((source, size), seen) in turn.pictures.iter().zip(&mut sizes).zip(&mut seen) {
                conversation.show(Shown { source: source_of(source), size, seen });
            }
            conversation.push(turn.question, turn.answer);
        }
        let read = marks(&header.read, conversation.pictures(), h.n_queries)
            .ok_or_else(|| damaged("what was read is not of its pictures"))?;
        Ok(SessionFile { conversation, snapshot: Snapshot { alpha: header.alpha, read, state: state.into() } })
    }
}

/// Marks as runs, and how many of them: up to one of a picture that is not there.
fn runs(read: &[Mark], pictures: &[Shown]) -> (Vec<Run>, usize) {
    let mut runs: Vec<Run> = Vec::new();
    for (n, mark) in read.iter().enumerate() {
        match (mark, runs.last_mut()) {
            (Mark::Token(id), Some(Run::Tokens(ids))) => ids.push(id.to_u32()),
            (Mark::Token(id), _) => runs.push(Run::Tokens(vec![id.to_u32()])),
            (Mark::Row(id, row), Some(Run::Rows(k, first, n)))
                if pictures[*k].seen.id == *id && *first + *n == *row =>
            {
                *n += 1;
            }
            (Mark::Row(id, row), _) => match pictures.iter().position(|shown| shown.seen.id == *id) {
                Some(k) => runs.push(Run::Rows(k, *row, 1)),
                None => return (runs, n),
            },
        }
    }
    (runs, read.len())
}

/// The way back. `None`: a picture or a row is not there, or there are too many.
fn marks(runs: &[Run], pictures: &[Shown], n_queries: usize) -> Option<Vec<Mark>> {
    let mut marks = Vec::new();
    for run in runs {
        match run {
            Run::Tokens(ids) => marks.extend(ids.iter().map(|id| Mark::Token(TokenId(*id)))),
            Run::Rows(k, first, n) => {
                let id = pictures.get(*k)?.seen.id;
                let end = first.checked_add(*n).filter(|end| *end as usize <= n_queries)?;
                marks.extend((*first..end).map(|row| Mark::Row(id, row)));
            }
        }
        if marks.len() > MAX_POSITIONS {
            return None;
        }
    }
    Some(marks)
}

/// A picture's place as text. It serves to draw on the picture later; the conversation goes on without it.
fn written(source: &ImageSource) -> String {
    match source {
        ImageSource::Path(path) => path.to_string_lossy().into_owned(),
        ImageSource::Data(text) if text.len() > MAX_DATA_BYTES => "a long data: address".to_owned(),
        ImageSource::Data(text) | ImageSource::Url(text) => text.clone(),
        ImageSource::Stdin => "-".to_owned(),
    }
}

/// The way back. An address in a file is not fetched and stdin is another one now: both become a path that leads nowhere.
fn source_of(text: &str) -> ImageSource {
    match ImageSource::of_argument(text.as_ref()) {
        Ok(source @ (ImageSource::Path(_) | ImageSource::Data(_))) => source,
        _ => ImageSource::Path(PathBuf::from(text)),
    }
}

fn hex(id: &ModelId) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
