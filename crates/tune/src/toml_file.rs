//! Reads a TOML file into a type, and turns what is wrong with it into file, line, key and way out.

use crate::failure::Failure;
use serde::de::DeserializeOwned;
use std::path::Path;

/// A recipe or pipeline is written by hand: anything larger is a mistaken path.
const MAX_BYTES: u64 = 1 << 20;

/// Keys that people know from other tools, and ours: `(theirs, ours)`.
pub type Aliases = &'static [(&'static str, &'static str)];

/// Reads and parses the file; an unknown key names the nearest valid one, or ours for another tool's.
pub fn read<T: DeserializeOwned>(path: &Path, aliases: Aliases) -> Result<T, Failure> {
    parse(path, &text_of(path)?, aliases)
}

/// Parses a text that is, or is to be, in that file.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str, aliases: Aliases) -> Result<T, Failure> {
    toml::from_str(text).map_err(|error| explain(path, text, &error, aliases))
}

/// The text of a file that is written by hand.
pub fn text_of(path: &Path) -> Result<String, Failure> {
    let cannot = |why: String| Failure::new(format!("cannot read {}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| cannot(e.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(cannot(format!("{size} bytes is more than a hand-written file has")));
    }
    std::fs::read_to_string(path).map_err(|e| cannot(e.to_string()))
}

fn explain(path: &Path, text: &str, error: &toml::de::Error, aliases: Aliases) -> Failure {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text[..start].matches('\n').count() + 1;
    let message = error.message();
    let key = key_at(text, line)
        .filter(|_| message.starts_with("invalid"))
        .map_or_else(String::new, |key| format!("`{key}`: "));
    let failure = Failure::new(format!("{}:{line}: {key}{}", path.display(), plain(message)));
    match way_out(message, aliases) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The key of a line, as written.
fn key_at(text: &str, line: usize) -> Option<&str> {
    let (key, _) = text.lines().nth(line - 1)?.split_once('=')?;
    Some(key.trim())
}

/// Rust's names of types, in words.
fn plain(message: &str) -> String {
    let whole = ["usize", "u64", "u32"].iter().fold(message.to_owned(), |m, name| {
        m.replace(&format!("expected {name}"), "expected a whole number")
    });
    ["f32", "f64"].iter().fold(whole, |m, name| m.replace(&format!("expected {name}"), "expected a number"))
}

/// The line, from 1, on which a file sets a key such as `train.epochs`.
pub fn line_of(text: &str, dotted: &str) -> Option<usize> {
    let (table, key) = dotted.rsplit_once('.')?;
    let header = format!("[{table}]");
    let lines = text.lines().enumerate().skip_while(|(_, line)| line.trim() != header).skip(1);
    let mut inside = lines.take_while(|(_, line)| !line.trim_start().starts_with('['));
    let found = inside.find(|(_, line)| line.split_once('=').is_some_and(|(name, _)| name.trim() == key))?;
    Some(found.0 + 1)
}

/// The hint for an unknown key: the words in backticks of serde's message are the key, then the valid ones.
fn way_out(message: &str, aliases: Aliases) -> Option<String> {
    let mut words = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return None;
    }
    let unknown = words.next()?;
    if let Some((_, ours)) = aliases.iter().find(|(theirs, _)| *theirs == unknown) {
        return Some(format!("here it is called `{ours}`"));
    }
    nearest(unknown, words).map(|key| format!("did you mean `{key}`?"))
}

/// The candidate closest to `word`, the first of several, if one is close enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_its_own_table() {
        let text = "[a]\nx = 1\n[b]\n  y=2\nx = 3\n[c]\nz = 1\n";
        assert_eq!(line_of(text, "b.x"), Some(5));
        assert_eq!(line_of(text, "b.y"), Some(4));
        assert_eq!(line_of(text, "b.z"), None);
        assert_eq!(line_of(text, "d.x"), None);
    }
}
