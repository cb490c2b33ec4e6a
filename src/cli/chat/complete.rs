//! The Tab key: commands, and paths behind those that take one. And the Enter key: a backslash before it goes on.

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};

use super::commands::NAMES;

/// What the editor is helped with.
pub struct Completion {
    files: FilenameCompleter,
}

impl Completion {
    /// Looks at nothing yet.
    pub fn new() -> Self {
        Completion { files: FilenameCompleter::new() }
    }
}

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, context: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = line.get(..pos).unwrap_or_default();
        let takes_path = ["/image ", "/save ", "/load ", "/boxes "].iter().any(|command| typed.starts_with(command));
        if takes_path {
            return self.files.complete(line, pos, context);
        }
        let pair = |name: &&str| Pair { display: (*name).to_owned(), replacement: format!("{name} ") };
        let names = NAMES.iter().filter(|name| typed.starts_with('/') && name.starts_with(typed));
        Ok((0, names.map(pair).collect()))
    }
}

impl Validator for Completion {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let goes_on = context.input().ends_with('\\');
        Ok(if goes_on { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Completion {
    type Hint = String;
}

impl Highlighter for Completion {}

impl Helper for Completion {}
