//! One error type for the whole library: a kind (which fixes the exit code) and one line for the person at the prompt.

use std::error::Error as StdError;
use std::fmt::{self, Write};
use std::path::Path;

/// What went wrong in the words of the command line; each kind has one exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Anything that is not one of the others (exit code 1).
    Other,
    /// The command line or a prompt cannot be carried out as written (2).
    Usage,
    /// A checkpoint or GGUF file is missing, damaged, or not what it should be (3).
    Model,
    /// A picture cannot be read (4).
    Image,
    /// The work would not fit in memory (5).
    Memory,
    /// The user pressed Ctrl-C (130).
    Interrupted,
}

impl ErrorKind {
    /// The process exit code promised for this kind.
    pub const fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Other => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Model => 3,
            ErrorKind::Image => 4,
            ErrorKind::Memory => 5,
            ErrorKind::Interrupted => 130,
        }
    }
}

/// A failure: what, where, expected and found, and if possible what to do, in one lower-case line.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// `Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), source: None }
    }

    /// [`ErrorKind::Other`].
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Other, message)
    }

    /// [`ErrorKind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// [`ErrorKind::Model`].
    pub fn model(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Model, message)
    }

    /// [`ErrorKind::Image`].
    pub fn image(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Image, message)
    }

    /// [`ErrorKind::Memory`].
    pub fn memory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Memory, message)
    }

    /// Adds the underlying error; it is printed after the message.
    pub fn because(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Puts the path in front of the message.
    pub fn at(self, path: &Path) -> Self {
        self.of(path.display())
    }

    /// Puts what it is about in front of the message, where that is no path.
    pub fn of(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Which kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    /// One line: the message and the chain of sources, line breaks folded into spaces. Other control characters, which
    /// a name in a hostile file may hold, are escaped: they would reach the terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.message.clone();
        let mut source = self.source.as_deref().map(|s| s as &dyn StdError);
        while let Some(cause) = source {
            // Some show what they come from themselves.
            let text = cause.to_string();
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            source = cause.source();
        }
        let mut words = line.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty());
        let line =
            words.next().unwrap_or_default().to_owned() + &words.map(|part| format!(" {part}")).collect::<String>();
        line.chars().try_for_each(|c| match c {
            '\u{2028}' | '\u{2029}' => write!(f, "{}", c.escape_unicode()),
            _ if c.is_control() => write!(f, "{}", c.escape_default()),
            _ => f.write_char(c),
        })
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_line_with_its_sources() {
        let error = Error::model("tensor \"a\"\nis odd")
            .because(std::io::Error::other("disk\non fire"))
            .at(Path::new("m.gguf"));
        assert_eq!(error.to_string(), "m.gguf: tensor \"a\" is odd: disk on fire");
        assert_eq!(error.kind().exit_code(), 3);
        // A cause that shows its own.
        let twice = Error::other("no threads").because(Error::other("rayon").because(std::io::Error::other("full")));
        assert_eq!(twice.to_string(), "no threads: rayon: full");
        assert_eq!(Error::model("a\x1b[2Jb\u{9b}\u{2028}é").to_string(), "a\\u{1b}[2Jb\\u{9b}\\u{2028}é");
    }
}
