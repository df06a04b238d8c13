//! Servers as this machine's environment describes them: where Ollama listens, keys of others, and an Ollama of our own.

use crate::failure::{Failure, of_runner};
use crate::terminal::Terminal;
use runner::card::{ExpertCard, Model};
use runner::engine::ollama::{DEFAULT_HOST, OllamaServer, Started, start};
use runner::engine::remote::Patience;
use runner::engine::{EngineByModel, Servers};
use std::path::{Path, PathBuf};

/// Where Ollama listens: `OLLAMA_HOST`, or where it does by default.
pub fn ollama_host() -> String {
    std::env::var("OLLAMA_HOST")
        .ok()
        .filter(|host| !host.trim().is_empty())
        .unwrap_or_else(|| DEFAULT_HOST.into())
}

/// The engine for experts of these cards, with the keys that their cards name.
///
/// # Errors
/// A key is not set.
pub fn engine<'a>(cards: impl Iterator<Item = &'a ExpertCard>) -> Result<EngineByModel, Failure> {
    let mut servers = Servers::default();
    for card in cards {
        let Model::OpenAi(model) = &card.model else { continue };
        let Some(name) = &model.key_env else { continue };
        let key = std::env::var(name).ok().filter(|key| !key.trim().is_empty());
        let key = key.ok_or_else(|| {
            Failure::new(format!("expert `{}`: the environment variable {name} is not set", card.name))
                .hint(format!("it is to hold the key for {}; the file names it by `key_env`", model.url))
        })?;
        servers.keys.insert(name.clone(), key);
    }
    Ok(EngineByModel::new(servers)?)
}

/// Starts the `ollama` of the PATH where it does not run yet; it ends with what this returns.
///
/// # Errors
/// It is not installed, or does not come up.
pub fn start_ollama(terminal: &mut Terminal) -> Result<Started, Failure> {
    let host = ollama_host();
    let server = OllamaServer::at(&host, Patience::default()).map_err(Failure::new)?;
    let started =
        start(Path::new("ollama"), &server, Some(log()), &|| false).map_err(|error| of_runner(&error))?;
    let how = if started.is_ours() { "started" } else { "was running already" };
    terminal.row("ollama", format!("{} · {how}", server.url()));
    Ok(started)
}

/// What it says is kept where it can be thrown away.
fn log() -> PathBuf {
    std::env::temp_dir().join("tune-ollama.log")
}
