//! `qvl chat`: a conversation about pictures, in a terminal or line by line from a pipe.

mod answer;
mod commands;
mod complete;
mod eyes;
mod files;
mod input;
mod settings;
mod words;

use std::env::home_dir;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use qvl::conversation::{Conversation, SessionFile, Undone};
use qvl::error::{Error, ErrorKind, Result};
use qvl::grounding;
use qvl::image::{self, Picture};
use qvl::session::TextFile;
use qvl::text::ChatFormat;

use super::args::{ChatArgs, GenerationArgs};
use super::asked::SYSTEM;
use super::keep::SessionPath;
use super::room::Fitted;
use super::see::TextMemory;
use super::{STOP, pipeline, print_error, room};
use answer::{Question, Voice};
use commands::Place;
use eyes::Eyes;
use input::Line;

/// Runs it.
pub fn run(mut args: ChatArgs, quiet: bool) -> Result<()> {
    let sources = image::sources(&args.images.image)?;
    let text = pipeline::open_text(&args.model, quiet)?;
    let h = text.hparams();
    if h.chat_format == ChatFormat::Raw {
        return Err(Error::usage("this is a base model, which has no chat format; use qvl ask --raw"));
    }
    let system = args.generation.system.take();
    let session = args.session.as_deref().map(|path| SessionPath::open(path, &text)).transpose()?;
    let past = session.as_ref().map(|session| session.read(&text, system.as_deref(), SYSTEM)).transpose()?;
    let (conversation, snapshot) = match past {
        Some(past) => (past.conversation, Some(past.snapshot)),
        None => (Conversation::new(system.unwrap_or_else(|| SYSTEM.to_owned())), None),
    };
    let flags = args.generation.clone();
    let eyes = Eyes { args: &args, text: &text, quiet, memory: TextMemory::Later(text.n_bytes()) };
    let mut chat = Chat {
        conversation,
        eyes,
        flags,
        pixels: None,
        n_retries: 0,
        n_limit: answer::n_limit(&text, &args.context),
        input: input::Input::open()?,
    };
    // What the first question needs if it is short. What was read may be longer than what is read now.
    let n_past = snapshot.as_ref().map_or(0, |snapshot| snapshot.read.len());
    let n_first = |chat: &Chat<'_>| -> Result<usize> {
        Ok(chat.n_used()?.max(n_past).saturating_add(chat.n_predict()).saturating_add(64))
    };
    let draft = pipeline::draft(&text, &args.context, args.draft.draft)?;
    // Flags are proven before the long work.
    let first = answer::first_settings(&text, &args.context, n_first(&chat)?, draft, true)?;
    let text_bytes = room::fitted_phase(&text, &args.context, &first).bytes();
    chat.eyes.memory = TextMemory::Later(text_bytes);
    chat.show(sources)?;
    let Fitted { settings, n_kept, .. } = answer::first_settings(&text, &args.context, n_first(&chat)?, draft, quiet)?;
    let model = pipeline::load_model(&text, &args.context, &settings, n_kept, quiet)?;
    chat.eyes.memory = TextMemory::Now(text.n_bytes() + text.adapter_bytes());
    let mut voice = Voice::new(&text, &model, &args.context, &settings, draft, quiet)?;
    if let Some(snapshot) = &snapshot {
        voice.resume(snapshot);
        let (turns, pictures) = (chat.conversation.turns().len(), chat.conversation.pictures().len());
        if turns > 0 {
            chat.note(&format!("going on after {}, {}", counted(turns, "turn"), counted(pictures, "picture")));
        }
    }
    let ended = chat.talk(&mut voice);
    if let Some(session) = &session {
        let snapshot = voice.snapshot(&chat.conversation)?;
        session.write(&SessionFile { conversation: chat.conversation, snapshot }, &text)?;
    }
    ended
}

/// A conversation and everything that is not the text model.
struct Chat<'a> {
    conversation: Conversation,
    eyes: Eyes<'a>,
    flags: GenerationArgs,
    /// Index and pixels of the picture that was shown last.
    pixels: Option<(usize, Picture)>,
    /// How often the last question was answered again.
    n_retries: u32,
    /// Positions that the context may have.
    n_limit: usize,
    input: input::Input,
}

/// Whether the conversation goes on.
enum Next {
    Line,
    End,
}

impl Chat<'_> {
    /// Reads and answers until the end.
    fn talk(&mut self, voice: &mut Voice<'_>) -> Result<()> {
        if self.input.is_terminal() {
            let name = &self.text().hparams().name;
            self.note(&format!("{name}: ask, or see /help; Ctrl-D leaves"));
        }
        loop {
            let prompt = match self.input.is_terminal() {
                true => format!("{}/{} › ", self.n_used()?, self.n_limit),
                false => String::new(),
            };
            let line = self.input.read(&prompt)?;
            STOP.store(false, Ordering::Relaxed);
            let done = match line {
                Line::End => return Ok(()),
                Line::Nothing => {
                    self.note("Ctrl-D or /quit leaves");
                    Ok(Next::Line)
                }
                Line::Refused(error) => Err(error),
                Line::Text(text) => self.take(&text, voice),
            };
            match done {
                Ok(Next::Line) => {}
                Ok(Next::End) => return Ok(()),
                // A line that failed has changed nothing.
                Err(error) => print_error(&format!("error: {error}\n")),
            }
            // A Ctrl-C too many, meant for the answer that has ended, shall not count as the first for the next.
            STOP.store(false, Ordering::Relaxed);
        }
    }

    /// Does what a line says.
    fn take(&mut self, line: &str, voice: &mut Voice<'_>) -> Result<Next> {
        use commands::Input;
        let home = home_dir();
        let place = Place { home: home.as_deref(), is_picture: &commands::is_picture_file };
        match commands::parse(line, &place)? {
            Input::Nothing => {}
            Input::Message(text) => self.ask(&text, voice)?,
            Input::Pictures(paths, question) => self.show_and_ask(&paths, &question, voice)?,
            Input::Region(regions, question) => {
                let sizes: Vec<_> = self.conversation.pictures().iter().map(|shown| shown.size).collect();
                self.ask(&grounding::select(&question, &regions, &sizes)?, voice)?;
            }
            Input::Clear => {
                self.conversation.clear();
                self.note("forgotten");
            }
            Input::Undo => self.undo(),
            Input::Retry => self.retry(voice)?,
            Input::Save(path) => {
                files::save(&self.conversation, &path)?;
                let turns = counted(self.conversation.turns().len(), "turn");
                let left = match self.conversation.waiting().len() {
                    0 => String::new(),
                    n => format!(" ({} without a question left out)", counted(n, "picture")),
                };
                self.note(&format!("wrote {}: {turns}{left}", path.display()));
            }
            Input::Load(path) => {
                let (conversation, last) = files::load(&path, &self.eyes)?;
                self.pixels = conversation.pictures().len().checked_sub(1).zip(last);
                self.conversation = conversation;
                self.n_retries = 0;
                let n_pictures = counted(self.conversation.pictures().len(), "picture");
                self.note(&format!("{}, {n_pictures}", counted(self.conversation.turns().len(), "turn")));
            }
            Input::System(None) => print_error(&format!("{}\n", printable(&self.conversation.system))),
            Input::System(Some(text)) => self.conversation.system = text,
            Input::Boxes(path) => files::boxes(&self.conversation, self.pixels.as_ref(), &self.eyes, &path)?,
            Input::Set(None) => print_error(&settings::show(&self.flags, self.text().hparams())),
            Input::Set(Some((name, value))) => settings::set(&mut self.flags, &name, &value)?,
            Input::Tokens => self.tokens()?,
            Input::Help => print_error(commands::HELP),
            Input::Quit => return Ok(Next::End),
        }
        Ok(Next::Line)
    }

    fn show_and_ask(&mut self, paths: &[PathBuf], question: &str, voice: &mut Voice<'_>) -> Result<()> {
        let n_before = self.conversation.pictures().len();
        self.show(image::sources(paths)?)?;
        if question.is_empty() {
            return Ok(());
        }
        // The line is dropped as a whole.
        self.ask(question, voice).inspect_err(|_| self.conversation.withdraw(n_before))
    }

    /// Shows pictures for the next question. Errors: more than the context could hold, or as [`Eyes::see`]; none is shown
    /// then.
    fn show(&mut self, sources: Vec<image::ImageSource>) -> Result<()> {
        let n_queries = self.text().hparams().n_queries;
        let n_waiting = self.conversation.waiting().len() + sources.len();
        if n_waiting.saturating_mul(n_queries) >= self.n_limit {
            let (n_positions, n_ctx) = (n_waiting.saturating_mul(n_queries), self.n_limit);
            let pictures = counted(n_waiting, "picture");
            return Err(Error::usage(format!("{pictures} take {n_positions} tokens but the context holds {n_ctx}")));
        }
        // As they were typed.
        let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
        let (shown, last) = self.eyes.see(sources)?;
        for (picture, name) in shown.into_iter().zip(names) {
            let (width, height) = picture.size;
            let number = self.conversation.show(picture);
            self.note(&format!("picture {number}: {name} ({width} x {height})"));
        }
        if let (Some(picture), Some(k)) = (last, self.conversation.pictures().len().checked_sub(1)) {
            self.pixels = Some((k, picture));
        }
        Ok(())
    }

    fn ask(&mut self, question: &str, voice: &mut Voice<'_>) -> Result<()> {
        let query = self.conversation.query(question);
        let n_turns = self.conversation.turns().len();
        let answer = self.answer(Question { n_turns, query: &query, n_retries: 0 }, voice)?;
        self.conversation.push(question, answer);
        self.n_retries = 0;
        Ok(())
    }

    fn retry(&mut self, voice: &mut Voice<'_>) -> Result<()> {
        let (turn, before) =
            self.conversation.turns().split_last().ok_or_else(|| Error::usage("there is no question yet"))?;
        let (query, n_turns, n_retries) = (turn.query.clone(), before.len(), self.n_retries.wrapping_add(1));
        let answer = self.answer(Question { n_turns, query: &query, n_retries }, voice)?;
        self.conversation.set_answer(answer);
        self.n_retries = n_retries;
        Ok(())
    }

    fn answer(&self, question: Question<'_>, voice: &mut Voice<'_>) -> Result<String> {
        let answer = voice.answer(&self.conversation, question, &self.flags).map_err(|e| match e.kind() {
            ErrorKind::Interrupted => Error::new(ErrorKind::Interrupted, "interrupted; nothing was said"),
            _ => e,
        })?;
        let (regions, n_malformed) = grounding::regions(&answer);
        if self.input.is_terminal() && (!regions.is_empty() || n_malformed > 0) {
            let line = regions_line(regions.len(), n_malformed);
            if !self.eyes.quiet {
                print_error(&format!("{}\n", dim(&line)));
            }
        }
        Ok(answer)
    }

    fn undo(&mut self) {
        let line = match self.conversation.undo() {
            Undone::Nothing => "nothing to take back".to_owned(),
            Undone::Picture(shown) => format!("taken back: {}", shown.source),
            Undone::Turn(turn) => format!("taken back: {}", turn.query.text),
        };
        self.n_retries = 0;
        self.note(&line);
    }

    /// Positions that the next question finds taken, those of its own frame included.
    fn n_used(&self) -> Result<usize> {
        let (h, tokenizer) = (self.text().hparams(), self.text().tokenizer());
        let (n_turns, query) = (self.conversation.turns().len(), self.conversation.query(""));
        let fitted = self.conversation.prompt(tokenizer, h, n_turns, &query, (self.n_limit, 0))?;
        Ok(fitted.prompt.n_positions(h.n_queries))
    }

    fn tokens(&self) -> Result<()> {
        let turns = counted(self.conversation.turns().len(), "turn");
        let pictures = counted(self.conversation.pictures().len(), "picture");
        let n_queries = self.text().hparams().n_queries;
        let used = format!("{} of {} tokens", self.n_used()?, self.n_limit);
        print_error(&format!("{used}: {turns}, {pictures} of {n_queries} tokens each\n"));
        Ok(())
    }

    fn n_predict(&self) -> usize {
        self.flags.predict.unwrap_or(self.text().hparams().max_new_tokens)
    }

    fn text(&self) -> &TextFile {
        self.eyes.text
    }

    /// Says what happened, unless told to be quiet.
    fn note(&self, line: &str) {
        if !self.eyes.quiet {
            print_error(&format!("{}\n", printable(line)));
        }
    }
}

/// Control characters, which a name or a loaded file may hold, are escaped: they would reach the terminal.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        _ if c.is_control() => c.escape_default().to_string(),
        _ => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// `1 turn`, `2 turns`.
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What the regions of an answer are good for.
fn regions_line(n_regions: usize, n_malformed: usize) -> String {
    let malformed = format!("{n_malformed} malformed");
    match (n_regions, n_malformed) {
        (0, _) => format!("no regions but {malformed}"),
        (n, 0) => format!("{}; /boxes FILE draws {}", counted(n, "region"), if n == 1 { "it" } else { "them" }),
        (n, _) => format!("{} ({malformed}); /boxes FILE draws the others", counted(n, "region")),
    }
}

/// Dim on a terminal that shows colours.
fn dim(text: &str) -> String {
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !io::stderr().is_terminal();
    if is_plain { text.to_owned() } else { format!("\x1b[2m{text}\x1b[0m") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_text_reaches_the_terminal() {
        assert_eq!(printable("a\n\tb\x1b[2Jé\r"), "a\n\tb\\u{1b}[2Jé\\r");
    }

    #[test]
    fn regions_are_counted() {
        let check = |n_regions, n_malformed, expect: &str| assert_eq!(regions_line(n_regions, n_malformed), expect);
        check(1, 0, "1 region; /boxes FILE draws it");
        check(2, 0, "2 regions; /boxes FILE draws them");
        check(2, 1, "2 regions (1 malformed); /boxes FILE draws the others");
        check(0, 3, "no regions but 3 malformed");
    }
}
