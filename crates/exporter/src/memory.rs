//! Whether there is memory for an export, before anything is written.

use model::Quant;
use model::device::cpu::best_precision;
use model::memory::streamed_bytes;

use crate::merged::Merged;
use crate::sequences::LONGEST_PIECE;
use crate::tiles::tile_bytes;
use crate::{Error, ImportanceSource, Request, Result};

/// Bytes of a number in the engine's cache of keys and values.
const CACHE_BYTES: u64 = 2;

/// Refuses what would end for want of memory after the work is done. Model files are mapped and can be dropped, so that they
/// are not counted; `free_bytes` is what there is, `None` where nobody knows.
///
/// # Errors
/// [`Error::Memory`] naming need and have.
pub(crate) fn check_memory(
    request: &Request,
    merged: &Merged,
    n_files: usize,
    free_bytes: Option<u64>,
) -> Result<()> {
    let (writing, judging) = (tile_bytes(merged) * n_files as u64, judging_bytes(request, merged)?);
    let (need_bytes, what) = if judging > writing { (judging, JUDGING) } else { (writing, WRITING) };
    match free_bytes {
        Some(have_bytes) if have_bytes < need_bytes => Err(Error::Memory { what, need_bytes, have_bytes }),
        _ => Ok(()),
    }
}

const WRITING: &str = "writing the files";
const JUDGING: &str = "running the merged model beside the exported file";

/// The engine's cache, and beside it the merged model's pass.
fn judging_bytes(request: &Request, merged: &Merged) -> Result<u64> {
    let config = &merged.base.config;
    // A mixer has a state instead, and latents are small.
    let has_cache = config.mixer.is_none() && config.latent.is_none();
    let row = 2 * (config.n_kv_heads * config.head_dim * config.n_layers) as u64 * CACHE_BYTES;
    let cache = if has_cache { row * request.num_ctx as u64 } else { 0 };
    let is_run = request.comparison_tokens > 0 || matches!(request.importance, ImportanceSource::Measured(_));
    let pass = match is_run {
        true => streamed_bytes(config, best_precision(), Quant::BF16, LONGEST_PIECE)?,
        false => 0,
    };
    let streams = 4 * (2 * request.comparison_tokens * config.hidden) as u64;
    Ok(cache + pass + if is_run { streams } else { 0 })
}
