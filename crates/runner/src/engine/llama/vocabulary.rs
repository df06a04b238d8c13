//! llama.cpp's view of a file's vocabulary, read without the weights: the other half of every comparison of ids.

use std::path::Path;

use super::ffi::{self, Model, Part};
use crate::engine::processor;
use crate::{Error, Result};

/// A vocabulary as llama.cpp reads it.
pub struct Vocabulary {
    model: Model,
}

impl Vocabulary {
    /// Reads a GGUF file's vocabulary; llama.cpp must know its architecture and tokenizer.
    ///
    /// # Errors
    /// [`Error::Processor`], [`Error::Load`] with llama.cpp's own words; [`Error::Format`] if the file is broken.
    pub fn open(path: &Path) -> Result<Self> {
        processor::check()?;
        ffi::start();
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        // Our reader first: it refuses files that would bring the engine down.
        let file = formats::gguf::Reader::open(path)?;
        super::language::refuse_doubles(&name, file.metadata())?;
        let loaded = Model::load(path, Some(0), Part::Vocabulary, &mut |_| true);
        let (model, _) =
            loaded.map_err(|reason| Error::Load { expert: name, path: path.to_owned(), reason })?;
        Ok(Self { model })
    }

    /// Ids of a text; `parse_special` makes control tokens of their text. No begin-of-text token is added.
    pub fn tokenize(&self, text: &str, parse_special: bool) -> Vec<u32> {
        self.model.tokenize(text, parse_special)
    }

    /// Whether llama.cpp takes a token for the end of generation.
    pub fn ends_generation(&self, id: u32) -> bool {
        self.model.ends_generation(id)
    }

    /// Rows, padding included.
    pub fn rows(&self) -> usize {
        self.model.vocabulary_rows()
    }
}
