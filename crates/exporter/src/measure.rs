//! The importance of the merged model's columns, measured on the training data and a general text, layer by layer.

use std::ops::ControlFlow;
use std::path::PathBuf;

use formats::Observer;
use formats::imatrix::ImportanceMatrix;
use model::importance::Importance;

use crate::merged::Merged;
use crate::running::Running;
use crate::sequences::{self, LONGEST_PIECE, Purpose, Sequence};
use crate::{Calibration, Event, Request, Result, pending};

/// The file that a measured matrix is kept in.
const NAME: &str = "imatrix.gguf";

/// What the general text is called among the texts of a matrix.
const GENERAL: &str = "general text of tune";

/// Measures the matrix, or finds what was measured of the same before; returns its file.
pub(crate) fn measured(
    merged: &Merged,
    request: &Request,
    calibration: &Calibration,
    observer: &mut dyn Observer<Event>,
) -> Result<PathBuf> {
    let sequences = sequences(merged, request, calibration)?;
    let (path, made_of) = (request.matrix_dir.join(NAME), made_of(merged, &sequences)?);
    let n_tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
    let is_known = |matrix: ImportanceMatrix| matrix.made_of.as_ref() == Some(&made_of);
    if ImportanceMatrix::read(&path).is_ok_and(is_known) {
        observer.observe(Event::Measured { path: path.clone(), n_tokens, is_new: false });
        return Ok(path);
    }
    pending::create_dir(&request.matrix_dir)?;
    let ids: Vec<&[u32]> = sequences.iter().map(|sequence| &sequence.ids[..]).collect();
    let (config, source) = (&merged.base.config, merged.source());
    let mut running = Running::new(config, &source, &ids)?;
    let importance = Importance::new(&running.device, config)?;
    running.streamed.run(&ids, Some(&importance), &mut |layer| {
        observer.observe(Event::Measuring { done: layer + 1, total: config.n_layers });
        ControlFlow::Continue(())
    })?;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let datasets = [calibration.dataset.as_str(), GENERAL].into_iter().filter(|name| !name.is_empty());
    let matrix = ImportanceMatrix {
        datasets: datasets.map(str::to_owned).collect(),
        n_chunks: count(ids.len()),
        chunk_tokens: count(running.pass_tokens),
        made_of: Some(made_of),
        entries: importance.entries()?,
    };
    matrix.write(&path)?;
    observer.observe(Event::Measured { path: path.clone(), n_tokens, is_new: true });
    Ok(path)
}

/// Rows of the data whole as far as they fit, texts cut up, and the general text.
fn sequences(merged: &Merged, request: &Request, calibration: &Calibration) -> Result<Vec<Sequence>> {
    let (tokenizer, most) = (&merged.tokenizer, calibration.most_tokens);
    let longest = request.num_ctx.min(merged.base.config.max_positions);
    let mut found = match &merged.template {
        Some(template) => {
            sequences::conversations(tokenizer, template, &calibration.conversations, longest, most)?
        }
        None => Vec::new(),
    };
    let mut n_tokens: usize = found.iter().map(|sequence| sequence.ids.len()).sum();
    let piece = longest.min(LONGEST_PIECE);
    for text in &calibration.texts {
        if n_tokens >= most {
            break;
        }
        let pieces = sequences::text(tokenizer, text, piece, most - n_tokens);
        n_tokens += pieces.iter().map(|sequence| sequence.ids.len()).sum::<usize>();
        found.extend(pieces);
    }
    found.extend(sequences::general(tokenizer, Purpose::Measuring, piece, usize::MAX));
    Ok(found)
}

/// Hash of base, adapter and tokens.
fn made_of(merged: &Merged, sequences: &[Sequence]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(merged.base.source().content_hash()?.as_bytes());
    hasher.update(merged.sources.adapter_blake3.as_deref().unwrap_or("no adapter").as_bytes());
    for Sequence { ids, .. } in sequences {
        hasher.update(&(ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
    }
    Ok(hasher.finalize().to_hex().to_string())
}
