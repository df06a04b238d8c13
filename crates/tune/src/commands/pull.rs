//! `tune pull`: a model of the hub into the cache, before or without training.

use crate::cli::Pull;
use crate::failure::Failure;
use crate::terminal::Terminal;
use crate::{hub_access, interrupt};
use hub::ModelId;

/// Downloads what training needs of a model; its folder, or its GGUF, is the result.
pub fn run(arguments: &Pull, terminal: &mut Terminal) -> Result<(), Failure> {
    let id: ModelId = arguments.model.parse().map_err(hub_access::failure)?;
    let pulled = hub_access::pull(&id, terminal, &interrupt::flag())?;
    if !terminal.is_json() {
        terminal.result(&pulled.path.display().to_string());
    }
    terminal.row("next", format!("base = \"{id}\" in a recipe's [model]"));
    Ok(())
}
