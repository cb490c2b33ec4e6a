//! What a line of the user means.

use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};
use qvl::grounding::Selection;
use qvl::image::ImageSource;

use super::words::{first_word, literal};

/// A line, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// White space.
    Nothing,
    /// A question, as it was typed.
    Message(String),
    /// Pictures, as `-i` takes them, and the question behind them, which may be empty.
    Pictures(Vec<PathBuf>, String),
    /// Parts of pictures, and the question about them.
    Region(Vec<Selection>, String),
    /// Forget everything.
    Clear,
    /// Take back what came last.
    Undo,
    /// Answer the last question again.
    Retry,
    /// Write the conversation.
    Save(PathBuf),
    /// Read one.
    Load(PathBuf),
    /// Show the system message, or set it.
    System(Option<String>),
    /// Draw the last answer's regions.
    Boxes(PathBuf),
    /// Show the settings, or set one: name and value.
    Set(Option<(String, String)>),
    /// Show how much of the context is used.
    Tokens,
    /// List the commands.
    Help,
    /// Leave.
    Quit,
}

/// What `/help` shows.
pub const HELP: &str = "\
/image PATH [QUESTION]  show a picture; so does a message that begins with a picture's path
/region X1,Y1,X2,Y2 QUESTION
                        ask about a part of the last picture, in its pixels (2:X1,Y1,X2,Y2: of picture 2);
                        a {} in the question is its place, else it stands in front
/clear                  forget the conversation
/undo                   take back the last question, or a picture without one
/retry                  answer the last question again, with another seed
/save FILE, /load FILE  keep the conversation as JSON, go on with one
/system [TEXT]          show or set the system message
/boxes FILE             draw the last answer's regions on its picture
/set [NAME VALUE]       show or set temp, top-k, top-p, min-p, repeat-penalty, seed, predict
/tokens                 how much of the context is used
/help, /quit            this list; leave (also /exit, Ctrl-D)
A line that ends with \\ goes on in the next one. //TEXT sends /TEXT. Ctrl-C ends an answer and keeps it.
";

/// Names for completion.
pub const NAMES: [&str; 14] = [
    "/boxes", "/clear", "/exit", "/help", "/image", "/load", "/quit", "/region", "/retry", "/save", "/set", "/system",
    "/tokens", "/undo",
];

/// What a line may refer to.
pub struct Place<'a> {
    /// What `~/` stands for.
    pub home: Option<&'a Path>,
    /// Whether this is a picture that exists.
    pub is_picture: &'a dyn Fn(&Path) -> bool,
}

/// Understands a line, which may be of several lines. Errors (kind usage): an unknown command, or one without what it
/// needs.
pub fn parse(line: &str, place: &Place<'_>) -> Result<Input> {
    let text = line.trim();
    if text.is_empty() {
        return Ok(Input::Nothing);
    }
    // Before commands, since a path begins with a slash as well.
    if let Some(input) = place.pictures(text, First::Known) {
        return Ok(input);
    }
    let Some(command) = text.strip_prefix('/') else { return Ok(Input::Message(line.to_owned())) };
    if command.starts_with('/') {
        return Ok(Input::Message(command.to_owned()));
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let alone = |input| match rest {
        "" => Ok(input),
        _ => Err(Error::usage(format!("/{name} stands alone, without {rest:?}"))),
    };
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match name {
        "image" => place.pictures(rest, First::Any).ok_or_else(|| Error::usage("which picture? /image PATH")),
        "region" => region(rest),
        "clear" => alone(Input::Clear),
        "undo" => alone(Input::Undo),
        "retry" => alone(Input::Retry),
        "save" => place.file(name, rest).map(Input::Save),
        "load" => place.file(name, rest).map(Input::Load),
        "boxes" => place.file(name, rest).map(Input::Boxes),
        "system" => Ok(Input::System(text(rest))),
        "set" => match rest.split_whitespace().collect::<Vec<_>>()[..] {
            [] => Ok(Input::Set(None)),
            [name, value] => Ok(Input::Set(Some((name.to_owned(), value.to_owned())))),
            _ => Err(Error::usage("expected a name and a value, as in /set temp 0.2")),
        },
        "tokens" => alone(Input::Tokens),
        "help" => alone(Input::Help),
        "quit" | "exit" => alone(Input::Quit),
        path if path.contains('/') => {
            Err(Error::usage(format!("/{path} is neither a command nor a picture; //.. sends a message with a slash")))
        }
        _ => Err(Error::usage(format!("there is no command /{name}; /help lists them"))),
    }
}

/// Regions at the beginning of a text, and the question behind them.
fn region(text: &str) -> Result<Input> {
    let (mut regions, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (word, behind) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        match Selection::parse(word) {
            Ok(region) => regions.push(region),
            Err(e) if regions.is_empty() => return Err(e),
            Err(_) => break,
        }
        rest = behind.trim_start();
    }
    match regions.is_empty() || rest.is_empty() {
        true => Err(Error::usage("which part, and what about it? /region X1,Y1,X2,Y2 QUESTION")),
        false => Ok(Input::Region(regions, rest.to_owned())),
    }
}

/// What the first word behind may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// A picture that exists.
    Known,
    /// Anything that `-i` takes.
    Any,
}

impl Place<'_> {
    /// Pictures at the beginning of a text, and what follows them.
    fn pictures(&self, text: &str, first: First) -> Option<Input> {
        // A path whose spaces nobody has escaped.
        let (line, below) = text.split_once('\n').unwrap_or((text, ""));
        let whole = literal(line.trim(), self.home);
        if (self.is_picture)(&whole) {
            return Some(Input::Pictures(vec![whole], below.trim().to_owned()));
        }
        let mut found = Vec::new();
        let mut rest = text;
        while let Some(word) = first_word(rest, self.home) {
            let is_named = first == First::Any && found.is_empty();
            if !is_named && !self.is_known(&word.text) {
                break;
            }
            found.push(word.text.into());
            rest = word.rest;
        }
        match (found.is_empty(), first) {
            (false, _) => Some(Input::Pictures(found, rest.to_owned())),
            // Something is there, with a quote that is not one.
            (true, First::Any) if !text.is_empty() => Some(Input::Pictures(vec![whole], below.trim().to_owned())),
            (true, _) => None,
        }
    }

    /// Whether a word names a picture that exists, as a path or as a `file:` address.
    fn is_known(&self, word: &str) -> bool {
        match ImageSource::of_argument(word.as_ref()) {
            Ok(source) => source.path().is_some_and(self.is_picture),
            Err(_) => false,
        }
    }

    /// The one file that a command is given.
    fn file(&self, name: &str, rest: &str) -> Result<PathBuf> {
        if rest.is_empty() {
            return Err(Error::usage(format!("which file? /{name} FILE")));
        }
        match first_word(rest, self.home) {
            Some(word) if word.rest.is_empty() && !word.text.is_empty() => Ok(word.text.into()),
            Some(_) => Err(Error::usage(format!("/{name} takes one file; put quotes around a name with spaces"))),
            None => Ok(literal(rest, self.home)),
        }
    }
}

/// Whether there is a file here that looks like a picture by its extension.
pub fn is_picture_file(path: &Path) -> bool {
    const EXTENSIONS: [&str; 14] =
        ["jpg", "jpeg", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "qoi"];
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    EXTENSIONS.contains(&extension.as_str()) && path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Input> {
        let is_picture = |path: &Path| {
            ["/p/a.png", "b.jpg", "my photo.png", "/home/me/c.webp", "/p/x y.png"].map(Path::new).contains(&path)
        };
        parse(line, &Place { home: Some(Path::new("/home/me")), is_picture: &is_picture })
    }

    fn check(line: &str, expect: Input) {
        assert_eq!(parsed(line).expect(line), expect, "{line:?}");
    }

    fn pictures(line: &str, paths: &[&str], question: &str) {
        check(line, Input::Pictures(paths.iter().map(PathBuf::from).collect(), question.to_owned()));
    }

    #[test]
    fn what_is_no_command_is_a_message() {
        for text in ["hello", " two  spaces ", "What's \"this\"?", "a / b", "first\n/clear", "c.png?", "- b.jpg"] {
            check(text, Input::Message(text.to_owned()));
        }
        check("//clear", Input::Message("/clear".to_owned()));
        check("///", Input::Message("//".to_owned()));
        check("  \n", Input::Nothing);
    }

    #[test]
    fn a_path_in_front_is_a_picture() {
        pictures("/p/a.png", &["/p/a.png"], "");
        pictures("/p/a.png \n", &["/p/a.png"], "");
        pictures("/p/a.png What's  this?", &["/p/a.png"], "What's  this?");
        pictures("/p/a.png b.jpg Which?", &["/p/a.png", "b.jpg"], "Which?");
        pictures("'my photo.png' b.jpg", &["my photo.png", "b.jpg"], "");
        pictures("my photo.png", &["my photo.png"], "");
        pictures("~/c.webp 是什么", &["/home/me/c.webp"], "是什么");
        pictures("file:///p/x%20y.png Where?", &["file:///p/x%20y.png"], "Where?");
        pictures("b.jpg\nWhat is\nthis?", &["b.jpg"], "What is\nthis?");
        #[cfg(unix)]
        pictures(r"my\ photo.png What?", &["my photo.png"], "What?");
    }

    #[test]
    fn image_takes_what_comes() {
        pictures("/image missing.png", &["missing.png"], "");
        pictures("/image https://example.org/a.png What?", &["https://example.org/a.png"], "What?");
        pictures("/image *.png", &["*.png"], "");
        pictures("/image /p/a.png b.jpg Which?", &["/p/a.png", "b.jpg"], "Which?");
        pictures("/image my photo.png", &["my photo.png"], "");
        pictures("/image it's.png", &["it's.png"], "");
        pictures("/image ~/c.webp", &["/home/me/c.webp"], "");
        assert!(parsed("/image").is_err());
    }

    #[test]
    fn commands_and_their_words() {
        check("/clear", Input::Clear);
        let part = |text: &str| Selection::parse(text).unwrap();
        check("/region 1,2,3,4 What is\nit?", Input::Region(vec![part("1,2,3,4")], "What is\nit?".to_owned()));
        let two = vec![part("1,2,3,4"), part("2:5,6,7,8")];
        check("/region 1,2,3,4  2:5,6,7,8 {} or {}?", Input::Region(two, "{} or {}?".to_owned()));
        check(" /undo ", Input::Undo);
        check("/retry", Input::Retry);
        check("/save a.json", Input::Save("a.json".into()));
        check("/save 'my chat.json'", Input::Save("my chat.json".into()));
        check("/load ~/a.json", Input::Load("/home/me/a.json".into()));
        check("/boxes it's.png", Input::Boxes("it's.png".into()));
        check("/system", Input::System(None));
        check("/system Be brief.\nAlways.", Input::System(Some("Be brief.\nAlways.".to_owned())));
        check("/set", Input::Set(None));
        check("/set temp  0.2", Input::Set(Some(("temp".to_owned(), "0.2".to_owned()))));
        check("/tokens", Input::Tokens);
        check("/help", Input::Help);
        check("/quit", Input::Quit);
        check("/exit", Input::Quit);
        for name in NAMES {
            let error = parsed(name).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(!error.contains("no command"), "{name}: {error}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let fails = |line: &str, part: &str| {
            let error = parsed(line).expect_err(line).to_string();
            assert!(error.contains(part), "{line}: {error}");
        };
        fails("/foo", "/help");
        fails("/", "/help");
        fails("/clear all", "alone");
        fails("/region", "QUESTION");
        fails("/region 1,2,3,4", "QUESTION");
        fails("/region 1, 2, 3, 4 What?", "expected x1,y1,x2,y2");
        fails("/region What?", "expected x1,y1,x2,y2");
        fails("/save", "/save FILE");
        fails("/save ''", "one file");
        fails("/save a b", "quotes");
        fails("/set temp", "/set temp 0.2");
        fails("/home/me/none.png What?", "neither");
    }
}
