//! A load that allocates nothing: what llama.cpp would take for a file, in its own words.
//!
//! The oracle of [`crate::budget`], and its stand-in for architectures that are not known there. It reads the whole
//! vocabulary, which takes half a second for a large one: too long to do before every load.

use std::path::Path;
use std::sync::Arc;

use formats::gguf;

use super::ffi::{self, Context, Model, Part};
use super::language::refuse_doubles;
use super::report::Report;
use super::session::context_size;
use crate::card::LoadOptions;
use crate::engine::processor;
use crate::{Error, Result};

/// What llama.cpp would allocate for a file under these options, with `output_rows` rows of logits at once.
///
/// # Errors
/// [`Error::Processor`], [`Error::Format`], [`Error::Load`] with llama.cpp's own words.
pub fn simulate(path: &Path, load: &LoadOptions, output_rows: u32) -> Result<Report> {
    processor::check()?;
    ffi::start();
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    // Our reader first: it refuses files that would bring the engine down.
    let file = gguf::Reader::open(path)?;
    refuse_doubles(&name, file.metadata())?;
    check_card(&name, path, load)?;
    let refused = |reason| Error::Load { expert: name.clone(), path: path.to_owned(), reason };
    let loaded = Model::load(path, load.num_gpu, Part::Simulated, &mut |_| true);
    let (model, mut lines) = loaded.map_err(refused)?;
    let model = Arc::new(model);
    let n_ctx = context_size(load.num_ctx, model.trained_context_tokens());
    let (context, of_context) =
        Context::new(Arc::clone(&model), n_ctx, load, output_rows).map_err(refused)?;
    lines.extend(of_context);
    Ok(Report::read(&lines, &model, &context))
}

/// Refuses layers for a graphics card that is not there: they would be computed by the processor without a word.
pub(super) fn check_card(name: &str, path: &Path, load: &LoadOptions) -> Result<()> {
    match load.num_gpu {
        Some(layers) if layers > 0 && super::devices().is_empty() => Err(Error::Load {
            expert: name.to_owned(),
            path: path.to_owned(),
            reason: format!("num_gpu is {layers}, but the engine finds no graphics card"),
        }),
        _ => Ok(()),
    }
}
