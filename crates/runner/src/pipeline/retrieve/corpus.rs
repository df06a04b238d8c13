//! Files cut into passages: whole lines, so many words at most, each with where it stands.
//!
//! Files are read once, when the pipeline is checked, and hashed: a run is over what was there then.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use formats::hash;
use serde_json::json;

/// Words of a passage where the step does not say: about 200 tokens, a paragraph or two.
const PASSAGE_WORDS: usize = 150;

/// Most words of a passage.
const PASSAGE_WORDS_MAX: usize = 2000;

/// Bytes of one file.
const FILE_BYTES: u64 = 8 << 20;

/// Bytes of all files together.
const ALL_BYTES: u64 = 64 << 20;

/// Files.
const FILES_MAX: usize = 10_000;

/// Folders within folders.
const DEPTH_MAX: usize = 32;

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pipeline) struct Passage {
    /// As in `docs/a.md:3-9`.
    pub source: String,
    pub text: String,
}

/// All passages of some files.
#[derive(Debug, Clone)]
pub(in crate::pipeline) struct Corpus {
    pub passages: Vec<Passage>,
    /// BLAKE3 of all of them.
    pub blake3: String,
}

impl Corpus {
    /// Reads files and folders of files, relative to `directory`; the error says what is wrong with them.
    ///
    /// A file that is named must be text. Of a folder the files that are no text are passed over, and so are hidden
    /// ones and links.
    pub(in crate::pipeline) fn read(
        directory: &Path,
        files: &[PathBuf],
        passage_words: Option<usize>,
    ) -> Result<Self, String> {
        let words = passage_words.unwrap_or(PASSAGE_WORDS);
        if words == 0 || words > PASSAGE_WORDS_MAX {
            return Err(format!("passage_words is {words}, allowed is 1 to {PASSAGE_WORDS_MAX}"));
        }
        if files.is_empty() {
            return Err("name the files to look in".to_owned());
        }
        let mut reading = Reading { passages: Vec::new(), n_files: 0, n_bytes: 0, words };
        for file in files {
            let path = directory.join(file);
            let shown = file.display().to_string();
            let metadata = std::fs::metadata(&path).map_err(|error| format!("{shown}: {error}"))?;
            if metadata.is_dir() {
                reading.folder(&path, &shown, 0)?;
            } else {
                let text = reading.text(&path, &shown)?;
                reading.take(&text.ok_or_else(|| format!("{shown} is no text"))?, &shown);
            }
        }
        if reading.passages.is_empty() {
            return Err("there is no text in them".to_owned());
        }
        let all: Vec<_> =
            reading.passages.iter().map(|passage| json!([passage.source, passage.text])).collect();
        Ok(Self { passages: reading.passages, blake3: hash::blake3_bytes(json!(all).to_string().as_bytes()) })
    }
}

struct Reading {
    passages: Vec<Passage>,
    n_files: usize,
    n_bytes: u64,
    words: usize,
}

impl Reading {
    fn folder(&mut self, path: &Path, shown: &str, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("{shown}: more than {DEPTH_MAX} folders within one another"));
        }
        let failed = |error: std::io::Error| format!("{shown}: {error}");
        let mut entries: Vec<_> =
            std::fs::read_dir(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(failed)?;
            let shown = format!("{}/{name}", shown.trim_end_matches('/'));
            if name.starts_with('.') || kind.is_symlink() {
                continue;
            }
            if kind.is_dir() {
                self.folder(&entry.path(), &shown, depth + 1)?;
            } else if kind.is_file()
                && let Some(text) = self.text(&entry.path(), &shown)?
            {
                self.take(&text, &shown);
            }
        }
        Ok(())
    }

    /// A file's text; `None` if it is none.
    fn text(&mut self, path: &Path, shown: &str) -> Result<Option<String>, String> {
        let failed = |error: std::io::Error| format!("{shown}: {error}");
        self.n_files += 1;
        if self.n_files > FILES_MAX {
            return Err(format!("there are more than {FILES_MAX} files"));
        }
        let mut bytes = Vec::new();
        // A pipe or a device would be read for ever.
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(format!("{shown} is no regular file"));
        }
        file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.contains(&0) {
            return Ok(None);
        }
        let Ok(text) = String::from_utf8(bytes) else { return Ok(None) };
        if text.len() as u64 > FILE_BYTES {
            return Err(format!("{shown} has more than {} MiB", FILE_BYTES >> 20));
        }
        self.n_bytes += text.len() as u64;
        if self.n_bytes > ALL_BYTES {
            return Err(format!("the files have more than {} MiB together", ALL_BYTES >> 20));
        }
        Ok(Some(text))
    }

    fn take(&mut self, text: &str, shown: &str) {
        let mut piece = Piece::default();
        for (i, line) in text.lines().enumerate() {
            let n_words = line.split_whitespace().count();
            if piece.n_words > 0 && piece.n_words + n_words > self.words {
                self.passages.extend(std::mem::take(&mut piece).passage(shown));
            }
            if n_words <= self.words {
                piece.push(line, n_words, i + 1);
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            for part in words.chunks(self.words) {
                let mut piece = Piece::default();
                piece.push(&part.join(" "), part.len(), i + 1);
                self.passages.extend(piece.passage(shown));
            }
        }
        self.passages.extend(piece.passage(shown));
    }
}

/// Lines that become a passage.
#[derive(Default)]
struct Piece {
    lines: Vec<String>,
    n_words: usize,
    first: usize,
    last: usize,
}

impl Piece {
    fn push(&mut self, line: &str, n_words: usize, number: usize) {
        // Empty lines at the beginning belong to nothing.
        if self.n_words == 0 && n_words == 0 {
            return;
        }
        if self.lines.is_empty() {
            self.first = number;
        }
        if n_words > 0 {
            self.last = number;
        }
        self.lines.push(line.to_owned());
        self.n_words += n_words;
    }

    fn passage(self, shown: &str) -> Option<Passage> {
        let text = self.lines.join("\n").trim_end().to_owned();
        let lines = if self.first == self.last {
            self.first.to_string()
        } else {
            format!("{}-{}", self.first, self.last)
        };
        (self.n_words > 0).then(|| Passage { source: format!("{shown}:{lines}"), text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &[u8])], named: &[&str], words: usize) -> Result<Vec<(String, String)>, String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link.md")).unwrap();
        let named: Vec<PathBuf> = named.iter().map(PathBuf::from).collect();
        let corpus = Corpus::read(directory.path(), &named, Some(words));
        corpus
            .map(|corpus| corpus.passages.into_iter().map(|passage| (passage.source, passage.text)).collect())
    }

    fn pair(source: &str, text: &str) -> (String, String) {
        (source.to_owned(), text.to_owned())
    }

    #[test]
    fn passages_are_whole_lines_with_their_place() {
        let text = b"one two\n\nthree\nfour five six\n\n\nseven\n";
        let passages = read(&[("a.md", text)], &["a.md"], 3).unwrap();
        assert_eq!(
            passages,
            [pair("a.md:1-3", "one two\n\nthree"), pair("a.md:4", "four five six"), pair("a.md:7", "seven")]
        );
        let long = read(&[("a.md", b"a b c d e\nf")], &["a.md"], 2).unwrap();
        assert_eq!(
            long,
            [pair("a.md:1", "a b"), pair("a.md:1", "c d"), pair("a.md:1", "e"), pair("a.md:2", "f")]
        );
    }

    #[test]
    fn folders_give_their_texts_and_nothing_else() {
        let files: &[(&str, &[u8])] =
            &[("d/b.md", b"bee"), ("d/in/a.txt", b"ay"), ("d/x.bin", b"\x00\x01"), ("d/.hidden", b"no")];
        let passages = read(files, &["d"], 10).unwrap();
        assert_eq!(passages, [pair("d/b.md:1", "bee"), pair("d/in/a.txt:1", "ay")]);
        let all = read(files, &["."], 10).unwrap();
        assert!(all.iter().all(|(source, _)| !source.contains("link")), "{all:?}");
    }

    #[test]
    fn what_can_not_be_read_is_refused_with_its_name() {
        assert!(read(&[], &["none.md"], 10).unwrap_err().starts_with("none.md: "));
        assert_eq!(read(&[("x.bin", b"\x00")], &["x.bin"], 10), Err("x.bin is no text".to_owned()));
        assert!(read(&[("a", b"\n\n")], &["a"], 10).unwrap_err().contains("no text in them"));
        assert!(read(&[("a", b"x")], &["a"], 0).unwrap_err().contains("passage_words is 0"));
        assert!(read(&[], &[], 10).unwrap_err().contains("name the files"));
        assert!(read(&[], &["/dev/zero"], 10).unwrap_err().contains("no regular file"));
        let large = vec![b'x'; (FILE_BYTES + 1) as usize];
        assert!(read(&[("a", &large)], &["a"], 10).unwrap_err().contains("more than 8 MiB"));
    }
}
