//! The registry: a directory with one card file an expert, each written in one piece.

use std::path::{Path, PathBuf};

use crate::card::{CardOptions, ExpertCard};
use crate::{Error, Result};

/// A directory of cards; reading it costs nothing until asked, so a copy made by hand or by another process
/// is seen at once.
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
        let _ = (name, file, options);
        todo!()
    }

    /// The card of that name.
    ///
    /// # Errors
    /// [`Error::UnknownExpert`], or the card can't be read.
    pub fn card(&self, name: &str) -> Result<ExpertCard> {
        let _ = name;
        todo!()
    }

    /// All cards by name.
    ///
    /// # Errors
    /// A card can't be read.
    pub fn cards(&self) -> Result<Vec<ExpertCard>> {
        todo!()
    }

    /// Forgets an expert; its model file stays.
    ///
    /// # Errors
    /// [`Error::UnknownExpert`], or the card can't be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _ = name;
        Err(Error::UnknownExpert { name: name.to_owned(), known: String::new() })
    }
}
