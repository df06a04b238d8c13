//! Where a recipe's base lies: a folder, a GGUF, a model that a local Ollama holds, or one of the Hugging Face hub.

use crate::failure::{self, Failure};
use crate::hub_access;
use crate::terminal::Terminal;
use hub::ModelId;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use trainer::options::HubBase;

const OLLAMA: &str = "ollama:";
const FORMS: &str = "a base is a folder in Hugging Face layout, a GGUF, `ollama:NAME`, or a model of the hub: OWNER/NAME, \
                     OWNER/NAME@REVISION or OWNER/NAME:FILE.gguf, with hf.co/ before it where a folder has the owner's name; \
                     paths are relative to the folder tune is started in";

/// A base on this machine.
pub struct Located {
    /// Its folder or file.
    pub path: PathBuf,
    /// Where on the hub it comes from, when it does.
    pub hub: Option<HubBase>,
}

/// Whether words that are no path name a model of the hub.
pub fn is_of_hub(words: &str) -> bool {
    !words.starts_with(OLLAMA) && hub_id(words).is_some()
}

/// The folder or file of a base as recipes name it; a model of the hub is downloaded unless the cache has it.
///
/// `pinned` is what a run was started with: the same words then mean the same commit, whatever has become of the
/// branch since.
///
/// # Errors
/// `ollama:NAME` without an Ollama on this machine, or of a model that it does not hold whole; what the hub refuses;
/// words that are neither a path nor a name.
pub fn locate(
    base: &Path,
    pinned: Option<&HubBase>,
    terminal: &mut Terminal,
    cancel: &AtomicBool,
) -> Result<Located, Failure> {
    let words = base.to_str().unwrap_or_default();
    if let Some(name) = words.strip_prefix(OLLAMA) {
        return Ok(Located { path: of_ollama(name)?, hub: None });
    }
    if base.exists() {
        return Ok(Located { path: base.to_owned(), hub: None });
    }
    let id = hub_id(words)
        .ok_or_else(|| Failure::new(format!("there is no base `{}`", base.display())).hint(FORMS))?;
    let pinned = pinned.filter(|pinned| pinned.asked == words);
    let id = pinned.map_or_else(|| id.clone(), |pinned| id.at(&pinned.commit));
    let pulled = hub_access::resolve(&id, terminal, cancel).map_err(|failure| or_a_path(failure, words))?;
    terminal
        .row("base", format!("{words} at {} · {}", hub_access::short(&pulled.commit), pulled.path.display()));
    let hub = HubBase {
        asked: words.to_owned(),
        repository: id.repository().to_owned(),
        commit: pulled.commit.clone(),
    };
    Ok(Located { path: pulled.path, hub: Some(hub) })
}

/// What was meant as a path may look like a name.
fn or_a_path(failure: Failure, words: &str) -> Failure {
    if failure.code != failure::INPUT {
        return failure;
    }
    let hint = failure.hint.clone().unwrap_or_default();
    failure.hint(format!("{hint}; as a path, `{words}` does not exist in the folder tune is started in"))
}

/// A model of the hub; `recipes/typo` is none where there is a folder `recipes`, unless `hf.co/` stands before it.
fn hub_id(words: &str) -> Option<ModelId> {
    let id: ModelId = words.parse().ok()?;
    let owner = words.split('/').next().unwrap_or_default();
    (!Path::new(owner).is_dir()).then_some(id)
}

fn of_ollama(name: &str) -> Result<PathBuf, Failure> {
    let folders = ollama_folders();
    let Some(models) = folders.iter().find(|folder| folder.join("manifests").is_dir()) else {
        let looked = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(Failure::new(format!("`{OLLAMA}{name}`: no models of Ollama on this machine"))
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
