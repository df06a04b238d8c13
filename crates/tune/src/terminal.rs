//! The only module that prints.  Results go to standard output, everything else to standard error.

use crate::failure::Failure;
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Read, Write};

const KEY_COLUMNS: usize = 8;
/// A question, not a library.
const MAX_INPUT_BYTES: u64 = 16 << 20;
const KEY: Style = AnsiColor::Cyan.on_default();
const WARN: Style = AnsiColor::Yellow.on_default().bold();
const ERROR: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();

/// What a piece of a training row is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shade {
    /// The model is given it.
    Given,
    /// The model is to say it.
    Learnt,
}

/// Where a command's output goes, and how.
pub struct Terminal {
    json: bool,
    colour: bool,
    bar: Option<ProgressBar>,
    /// Whether standard error is a person's screen: progress bars only there, plain lines otherwise.
    interactive: bool,
    /// Whether an answer has left the cursor within a line.
    open_line: bool,
}

impl Terminal {
    pub fn new(json: bool) -> Terminal {
        let interactive = std::io::stderr().is_terminal();
        let colour = interactive && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Terminal { json, colour, bar: None, interactive, open_line: false }
    }

    /// Whether events are wanted as JSON instead of rows.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// One event of `--json`.
    pub fn json(&mut self, event: &impl Serialize) {
        if let Ok(line) = serde_json::to_string(event) {
            self.result(&line);
        }
    }

    /// A line of result on standard output.  A closed pipe ends the printing, not the work.
    pub fn result(&mut self, line: &str) {
        self.above_bar(|| drop(writeln!(std::io::stdout().lock(), "{line}")));
    }

    /// A piece of an answer on standard output, as it comes.
    pub fn stream(&mut self, piece: &str) {
        if self.json {
            self.json(&serde_json::json!({"event": "text", "text": piece}));
            return;
        }
        let shown = harmless(piece);
        self.open_line = !shown.ends_with('\n');
        let mut out = std::io::stdout().lock();
        drop(write!(out, "{shown}").and_then(|()| out.flush()));
    }

    /// Text on standard output of which some is learnt and some only given: that is dimmed, or where there are no colours
    /// the rest stands in brackets.
    pub fn shaded(&mut self, parts: &[(Shade, &str)]) {
        let is_screen = std::io::stdout().is_terminal();
        let colour = is_screen && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let shown: String = parts
            .iter()
            .map(|(shade, text)| match (shade, colour) {
                (Shade::Given, true) => format!("{}{}{}", DIM.render(), harmless(text), DIM.render_reset()),
                (Shade::Learnt, true) | (Shade::Given, false) => harmless(text),
                (Shade::Learnt, false) => format!("⟦{}⟧", harmless(text)),
            })
            .collect();
        self.result(shown.trim_end_matches('\n'));
    }

    /// Ends the line that an answer has left open.
    pub fn end_stream(&mut self) {
        if std::mem::take(&mut self.open_line) {
            self.result("");
        }
    }

    /// Whether a person types on standard input.
    pub fn reads_person(&self) -> bool {
        std::io::stdin().is_terminal()
    }

    /// All of standard input, which somebody has piped in.
    pub fn piped_input(&self) -> Result<String, Failure> {
        let mut text = String::new();
        std::io::stdin().lock().take(MAX_INPUT_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_INPUT_BYTES {
            return Err(Failure::new("standard input has more text than any context holds"));
        }
        Ok(text)
    }

    /// `plan     4.1 GiB of 7.2 GiB`: one word, then what there is to say.
    pub fn row(&mut self, key: &str, text: impl AsRef<str>) {
        self.line(KEY, key, text.as_ref());
    }

    /// A row that continues the one above.
    pub fn more(&mut self, text: impl AsRef<str>) {
        self.line(DIM, "", text.as_ref());
    }

    pub fn warning(&mut self, text: impl AsRef<str>) {
        self.line(WARN, "warning", text.as_ref());
    }

    pub fn failure(&mut self, failure: &Failure) {
        self.clear_bar();
        if self.json {
            self.json(
                &serde_json::json!({"event": "error", "message": failure.message, "hint": failure.hint}),
            );
        }
        self.line_always(ERROR, "error", &failure.message);
        if let Some(hint) = &failure.hint {
            self.line_always(KEY, "hint", hint);
        }
    }

    /// Whether there is a person to be asked.
    pub fn can_ask(&self) -> bool {
        self.interactive && !self.json && std::io::stdin().is_terminal()
    }

    /// Asks; an empty answer is the one in brackets.
    pub fn ask(&mut self, key: &str, question: &str, otherwise: &str) -> Result<String, Failure> {
        self.clear_bar();
        let brackets =
            if otherwise.is_empty() { String::new() } else { format!(" [{}]", harmless(otherwise)) };
        let padding = " ".repeat(KEY_COLUMNS.saturating_sub(key.chars().count()) + 1);
        let mut answer = String::new();
        let shown = match self.colour {
            true => format!("{}{key}{}", KEY.render(), KEY.render_reset()),
            false => key.to_owned(),
        };
        drop(write!(std::io::stderr().lock(), "{shown}{padding}{question}{brackets}: "));
        match std::io::stdin().read_line(&mut answer) {
            Ok(0) | Err(_) => Err(Failure::interrupted("no answer; nothing was written")),
            Ok(_) if answer.trim().is_empty() => Ok(otherwise.to_owned()),
            Ok(_) => Ok(answer.trim().to_owned()),
        }
    }

    /// Shows `done` of `total`; on anything but a screen nothing is drawn and `line` is printed instead.
    pub fn progress(&mut self, done: u64, total: u64, line: &str) {
        if self.json {
            return;
        }
        if !self.interactive {
            self.more(line);
            return;
        }
        let bar = self.bar.get_or_insert_with(new_bar);
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(line.to_owned());
    }

    /// As [`Terminal::progress`], for work with so many updates that only a screen wants to see them.
    pub fn progress_on_screen(&mut self, done: u64, total: u64, line: &str) {
        if self.interactive {
            self.progress(done, total, line);
        }
    }

    pub fn clear_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&mut self, style: Style, key: &str, text: &str) {
        if !self.json {
            self.line_always(style, key, text);
        }
    }

    fn line_always(&mut self, style: Style, key: &str, text: &str) {
        let padding = " ".repeat(KEY_COLUMNS.saturating_sub(key.chars().count()) + 1);
        let text = harmless(text);
        let shown = if self.colour {
            format!("{}{key}{}{padding}{text}", style.render(), style.render_reset())
        } else {
            format!("{key}{padding}{text}")
        };
        self.above_bar(|| drop(writeln!(std::io::stderr().lock(), "{}", shown.trim_end())));
    }

    fn above_bar(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:24.cyan/dim} {msg}") {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar
}

/// Text from files and models may hold escape sequences; on a terminal they are shown, not obeyed.
pub fn harmless(text: &str) -> String {
    let is_inert = |c: char| c == '\n' || c == '\t' || !c.is_control();
    if text.chars().all(is_inert) {
        return text.to_owned();
    }
    text.chars().map(|c| if is_inert(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn escape_sequences_of_a_model_are_shown_not_obeyed() {
        assert_eq!(harmless("a\x1b[2Jb\n\u{9b}c"), "a\\u{1b}[2Jb\n\\u{9b}c");
        assert_eq!(harmless("Grüße\t1"), "Grüße\t1");
    }
}
