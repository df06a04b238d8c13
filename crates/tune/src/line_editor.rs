//! Lines that a person types: with history, the arrow keys, and more than one line where one is not enough.
//!
//! A text between `"""` and `"""` goes over as many lines as it likes, a line that ends in `\` goes on in the next; what is
//! pasted stays whole. The prompt is drawn on the terminal itself, so that standard output holds the answers alone.

use crate::failure::Failure;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Editor, Helper};

const QUOTES: &str = "\"\"\"";

/// What came of asking for a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// A text, perhaps of several lines.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D.
    End,
}

/// Reads lines from a person's terminal.
pub struct LineEditor {
    editor: Editor<Multiline, MemHistory>,
}

impl LineEditor {
    pub fn new() -> Result<LineEditor, Failure> {
        let config = Config::builder().behavior(Behavior::PreferTerm).auto_add_history(true).build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history)?;
        editor.set_helper(Some(Multiline));
        Ok(LineEditor { editor })
    }

    /// The next text.
    pub fn read(&mut self, prompt: &str) -> Result<Typed, Failure> {
        match self.editor.readline(prompt) {
            Ok(text) => Ok(Typed::Text(unwrapped(&text))),
            Err(ReadlineError::Interrupted) => Ok(Typed::Interrupted),
            Err(ReadlineError::Eof) => Ok(Typed::End),
            Err(error) => Err(error.into()),
        }
    }
}

/// The text without the marks that held its lines together.
fn unwrapped(text: &str) -> String {
    let trimmed = text.trim();
    let inner = trimmed.strip_prefix(QUOTES).and_then(|rest| rest.strip_suffix(QUOTES));
    inner.map_or_else(|| trimmed.replace("\\\n", "\n"), |inner| inner.trim_matches('\n').to_owned())
}

fn is_incomplete(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(rest) => !rest.trim_end().ends_with(QUOTES),
        None => text.ends_with('\\'),
    }
}

struct Multiline;

impl Validator for Multiline {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_incomplete(context.input()) {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Completer for Multiline {
    type Candidate = String;
}

impl Hinter for Multiline {
    type Hint = String;
}

impl Highlighter for Multiline {}

impl Helper for Multiline {}

#[cfg(test)]
mod tests {
    use super::{is_incomplete, unwrapped};

    #[test]
    fn several_lines_make_one_text() {
        assert!(!is_incomplete("one line"));
        assert!(is_incomplete("first \\") && !is_incomplete("first \\\nsecond"));
        assert!(is_incomplete("\"\"\"") && is_incomplete("\"\"\"a\nb") && !is_incomplete("\"\"\"a\nb\"\"\""));
        assert_eq!(unwrapped("\"\"\"\na\n\n b\n\"\"\""), "a\n\n b");
        assert_eq!(unwrapped(" first \\\nsecond "), "first \nsecond");
    }
}
