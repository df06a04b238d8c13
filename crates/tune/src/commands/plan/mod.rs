//! `tune plan`: what a pipeline's experts take, or a recipe's training, before anything is loaded.

mod pipeline;
mod recipe;

pub use pipeline::parts;

use crate::cli::Plan;
use crate::failure::Failure;
use crate::terminal::Terminal;
use crate::toml_file;

/// Tells a pipeline from a recipe by its tables, and plans it.
pub fn run(arguments: &Plan, terminal: &mut Terminal) -> Result<(), Failure> {
    let path = &arguments.file;
    let tables: toml::Table = toml_file::read(path, &[])?;
    if tables.contains_key("steps") || tables.contains_key("experts") {
        return pipeline::run(arguments, terminal);
    }
    if tables.contains_key("model") {
        return recipe::run(arguments, terminal);
    }
    Err(Failure::new(format!("{}: is neither a pipeline nor a recipe", path.display()))
        .hint("a pipeline has [experts] and [[steps]], a recipe has [model] and [data]"))
}
