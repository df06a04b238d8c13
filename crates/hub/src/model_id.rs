//! What people call a model of the hub: `OWNER/NAME`, perhaps with `@REVISION` and `:FILE.gguf`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The branch that is meant where none is named.
pub(crate) const MAIN: &str = "main";
/// Both halves of a repository's name together, as the hub limits them.
const LONGEST_ID: usize = 96;
/// In front of a name, as links to the hub have it.
const PREFIXES: [&str; 3] = ["https://huggingface.co/", "https://hf.co/", "hf.co/"];

/// A model of the hub: a repository, one of its revisions, and for GGUF repositories one of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    repository: String,
    revision: Option<String>,
    file: Option<String>,
}

impl ModelId {
    /// `OWNER/NAME`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, tag or commit; `main` where none is named.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The GGUF that is meant, where one is named.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The same model at this very commit, whatever becomes of its branch.
    #[must_use]
    pub fn at(&self, commit: &str) -> Self {
        Self { revision: Some(commit.to_owned()), ..self.clone() }
    }

    /// Whether this is the same repository and file, at whatever revision.
    #[must_use]
    pub fn is_same_model(&self, other: &Self) -> bool {
        self.repository == other.repository && self.file == other.file
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

impl FromStr for ModelId {
    type Err = Error;

    /// # Errors
    /// [`Error::Name`] says which part is none.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason| Error::Name { name: text.to_owned(), reason };
        let rest = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
        let (rest, file) = match rest.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (rest, None),
        };
        let (repository, revision) = match rest.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(wrong("a repository is OWNER/NAME, of letters, digits, `-`, `_` and `.`"));
        }
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(wrong("a revision is the name of a branch or a tag, or a commit"));
        }
        if file.is_some_and(|file| !(is_harmless(file) && file.ends_with(".gguf"))) {
            return Err(wrong("after a colon comes the name of a .gguf of the repository"));
        }
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(Self { repository: repository.to_owned(), revision: owned(revision), file: owned(file) })
    }
}

fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        let is_inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_end = |c: char| c.is_ascii_alphanumeric() || c == '_';
        part.starts_with(is_end) && part.ends_with(is_end) && part.chars().all(is_inner)
    };
    let is_forbidden = text.contains("--") || text.contains("..") || text.ends_with(".git");
    let parts: Vec<&str> = text.split('/').collect();
    text.len() <= LONGEST_ID && !is_forbidden && parts.len() == 2 && parts.into_iter().all(is_part)
}

/// What may stand in a path of the cache: git's own rules are stricter still.
fn is_revision(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
    text.len() <= 255 && is_harmless(text) && text.chars().all(is_plain)
}

/// A path inside a repository that stays inside a folder on every system.
pub(crate) fn is_harmless(path: &str) -> bool {
    let is_forbidden = |c: char| c.is_control() || "\\:*?\"<>|".contains(c);
    let is_part = |part: &str| !part.is_empty() && !part.ends_with(['.', ' ']);
    path.len() <= 1024 && !path.contains(is_forbidden) && path.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_accepted_form() {
        for (text, repository, revision, file) in [
            ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B", "main", None),
            ("Qwen/Qwen3-4B@refs/pr/3", "Qwen/Qwen3-4B", "refs/pr/3", None),
            ("hf.co/a_b/c.d:Q4/x.gguf", "a_b/c.d", "main", Some("Q4/x.gguf")),
            ("https://huggingface.co/a/b@v1.0:x.gguf", "a/b", "v1.0", Some("x.gguf")),
        ] {
            let id: ModelId = text.parse().unwrap();
            assert_eq!((id.repository(), id.revision(), id.file()), (repository, revision, file));
        }
        let id: ModelId = "a/b@v1:x.gguf".parse().unwrap();
        assert_eq!(id.to_string(), "a/b@v1:x.gguf");
        assert_eq!(id.at("0123").to_string(), "a/b@0123:x.gguf");
        assert!(id.at("0123").is_same_model(&id));
    }

    #[test]
    fn what_could_lead_out_of_the_cache_is_no_name() {
        for text in [
            "",
            "a",
            "a/b/c",
            "../b",
            "a/..",
            "/a",
            "a/",
            "a/b--c",
            "a/b.git",
            "-a/b",
            "a/b@",
            "a/b@../x",
            "a/b@/x",
            "a/b@x y",
            "a/b:",
            "a/b:../x.gguf",
            "a/b:x.bin",
            "a/b:c\\x.gguf",
            "C:/models",
            "a/ü",
        ] {
            assert!(text.parse::<ModelId>().is_err(), "{text}");
        }
        for path in ["x/../y", "/x", "x//y", "x\\y", "c:x", "x\n", "..", ".", "x/.", "x/ "] {
            assert!(!is_harmless(path), "{path}");
        }
        assert!(is_harmless(".gitattributes") && is_harmless("a/b.c/d-e"));
    }
}
