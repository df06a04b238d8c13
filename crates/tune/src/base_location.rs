//! Where a recipe's base lies: a folder, a GGUF, or `ollama:NAME`, a model that a local Ollama holds.

use crate::failure::Failure;
use std::path::{Path, PathBuf};

const OLLAMA: &str = "ollama:";

/// The folder or file of a base as recipes name it.
///
/// # Errors
/// `ollama:NAME` without an Ollama on this machine, or of a model that it does not hold whole.
pub fn locate(base: &Path) -> Result<PathBuf, Failure> {
    let Some(name) = base.to_str().and_then(|base| base.strip_prefix(OLLAMA)) else {
        return Ok(base.to_owned());
    };
    let folders = ollama_folders();
    let Some(models) = folders.iter().find(|folder| folder.join("manifests").is_dir()) else {
        let looked = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(Failure::new(format!("`{}`: no models of Ollama on this machine", base.display()))
            .hint(format!("looked in {looked}; OLLAMA_MODELS names another folder")));
    };
    let file = formats::ollama::model_file(models, name);
    file.map_err(|error| Failure::new(error).hint(format!("`ollama pull {name}` brings a model")))
}

/// Where Ollama keeps its models: where it is told to, in a home, or as a service of the system.
fn ollama_folders() -> Vec<PathBuf> {
    if let Some(told) = std::env::var_os("OLLAMA_MODELS").filter(|folder| !folder.is_empty()) {
        return vec![told.into()];
    }
    let home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"));
    let home = home.map(|home| PathBuf::from(home).join(".ollama/models"));
    let system =
        ["/usr/share/ollama/.ollama/models", "/var/lib/ollama/models", "/var/lib/ollama/.ollama/models"];
    home.into_iter().chain(system.map(PathBuf::from)).collect()
}
