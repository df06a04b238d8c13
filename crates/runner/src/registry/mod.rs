//! The registry: a directory with one card file an expert, each written in one piece.

mod check;
mod disk;

use std::path::{Path, PathBuf};

use formats::atomic;

use crate::card::{CardOptions, Digests, ExpertCard, check_name};
use crate::{Error, Result};

pub use check::{Checked, Probe, SMOKE_TOKENS, Smoke, check, compare};
pub use disk::{DiskUse, ExpertDisk, files};

/// The file that names the default expert; a card's ends in `.json`.
const DEFAULT: &str = "default";

/// A directory of cards. It is read anew for every question, so that what another process registered is seen.
#[derive(Debug, Clone)]
pub struct Registry {
    directory: PathBuf,
}

impl Registry {
    /// A registry there; the directory is made at the first registration.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Checks a GGUF file, makes its card and keeps it; an expert of that name is replaced.
    ///
    /// # Errors
    /// As [`ExpertCard::from_file`], or the card can't be written.
    pub fn register(&self, name: &str, file: &Path, options: &CardOptions) -> Result<ExpertCard> {
        let card = ExpertCard::from_file(name, file, options, Digests::Blake3AndSha256)?;
        self.keep(&card)?;
        Ok(card)
    }

    /// Keeps a card; an expert of that name is replaced.
    ///
    /// # Errors
    /// The card can't be written.
    pub fn keep(&self, card: &ExpertCard) -> Result<()> {
        check_name(&card.name)?;
        std::fs::create_dir_all(&self.directory).map_err(Error::io(&self.directory))?;
        let text = serde_json::to_string_pretty(card)
            .map_err(|error| Error::Card { expert: card.name.clone(), reason: error.to_string() })?;
        atomic::write_bytes(&self.path(&card.name), text.as_bytes())?;
        Ok(())
    }

    /// The expert that is meant where none is named, if one was chosen and is still there.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn default_expert(&self) -> Result<Option<String>> {
        let path = self.directory.join(DEFAULT);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())
                .filter(|name| check_name(name).is_ok() && self.path(name).is_file())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path)(error)),
        }
    }

    /// Chooses the expert that is meant where none is named.
    ///
    /// # Errors
    /// [`Error::UnknownExpert`], or the choice can't be written.
    pub fn set_default(&self, name: &str) -> Result<()> {
        self.card(name)?;
        Ok(atomic::write_bytes(&self.directory.join(DEFAULT), name.as_bytes())?)
    }

    /// The card of that name.
    ///
    /// # Errors
    /// [`Error::UnknownExpert`], or the card can't be read.
    pub fn card(&self, name: &str) -> Result<ExpertCard> {
        check_name(name)?;
        match std::fs::read(self.path(name)) {
            Ok(bytes) => parse(name, &bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(self.unknown(name)),
            Err(error) => Err(Error::io(self.path(name))(error)),
        }
    }

    /// All cards by name.
    ///
    /// # Errors
    /// A card can't be read.
    pub fn cards(&self) -> Result<Vec<ExpertCard>> {
        self.names()?.iter().map(|name| self.card(name)).collect()
    }

    /// Names of all experts, sorted.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(&self.directory)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(Error::io(&self.directory))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            names.extend(name.filter(|name| check_name(name).is_ok()).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Forgets an expert; its files stay.
    ///
    /// # Errors
    /// [`Error::UnknownExpert`], or the card can't be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        check_name(name)?;
        match std::fs::remove_file(self.path(name)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(self.unknown(name)),
            Err(error) => Err(Error::io(self.path(name))(error)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    fn unknown(&self, name: &str) -> Error {
        let known = self.names().unwrap_or_default();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Error::UnknownExpert { name: name.to_owned(), known }
    }
}

fn parse(name: &str, bytes: &[u8]) -> Result<ExpertCard> {
    let wrong = |reason: String| Error::Card { expert: name.to_owned(), reason };
    let card: ExpertCard = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    if card.name != name {
        return Err(wrong(format!("its file is named after it, but the card says `{}`", card.name)));
    }
    Ok(card)
}
