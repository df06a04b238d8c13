//! OpenAI-compatible servers as an engine: vLLM, llama-server, a model in a cloud.
//!
//! Such a server has its model loaded or does not say; "load" makes sure that it answers and knows the model. The key
//! comes from an environment variable by way of the program, goes only to its server, over https or within this
//! machine, and is written nowhere.
//!
//! Written from the published API (`POST /chat/completions`, `GET /models`), as vLLM and llama.cpp's server have it.

mod body;
mod events;
mod loaded;

use std::ops::ControlFlow;

use serde_json::Value;

use self::loaded::LoadedOpenAi;
use super::remote::{self, Address, Ask, Content, Fault, Limits, Method, Patience, Wire, patiently};
use super::{Loaded, Servers};
use crate::card::{ExpertCard, OpenAiModel};
use crate::{Error, Result};

/// A list of models is never longer; clouds have a few hundred.
const LIST_BYTES: usize = 8 << 20;

/// Asks models of the servers that cards name.
#[derive(Debug, Clone)]
pub struct OpenAiEngine {
    servers: Servers,
}

impl OpenAiEngine {
    /// An engine with these keys.
    pub fn new(servers: Servers) -> Self {
        Self { servers }
    }

    /// Makes sure that the server answers and knows the model.
    ///
    /// # Errors
    /// [`Error::Card`] where the key is missing or would be sent in the open, [`Error::Remote`], [`Error::Cancelled`].
    pub fn load(
        &self,
        card: &ExpertCard,
        model: &OpenAiModel,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Box<dyn Loaded>> {
        let wrong = |reason| Error::Card { expert: card.name.clone(), reason };
        let address = Address::parse(&model.url).map_err(wrong)?;
        let key = self.key(model, &address).map_err(wrong)?;
        let patience = self.servers.patience.clone();
        let context = find(&address, model, key.as_deref(), &patience, progress)?;
        Ok(Box::new(LoadedOpenAi {
            card: card.clone(),
            model: model.clone(),
            address,
            key,
            patience,
            context,
        }))
    }

    fn key(&self, model: &OpenAiModel, address: &Address) -> std::result::Result<Option<String>, String> {
        let Some(name) = &model.key_env else { return Ok(None) };
        let key = self.servers.keys.get(name).map(|key| key.trim()).filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| {
            format!("its key is to be in the environment variable {name}, which is not set")
        })?;
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("the key in the environment variable {name} has characters that no key has"));
        }
        if !address.is_private() {
            return Err(format!("its key would be sent in the open to {address}: use https"));
        }
        Ok(Some(key.to_owned()))
    }
}

/// Looks for the model in the server's list; gives the context that it has, where the server says.
fn find(
    address: &Address,
    model: &OpenAiModel,
    key: Option<&str>,
    patience: &Patience,
    progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
) -> Result<Option<usize>> {
    let wire = Wire::get()?;
    let limits = Limits { silence: patience.answer, bytes: LIST_BYTES };
    let listed = patiently(patience, &mut || progress(0.0), |poll| {
        let mut ask = Ask::new(Method::GET, address, "/models", Content::Nothing, patience, limits);
        ask.key = key;
        let list = match wire.json(&ask, poll) {
            // Not every server has a list, and the first answer will tell as well.
            Err(Fault::Lasting { reason, .. }) if reason.contains("404") || reason.contains("405") => {
                Value::Null
            }
            other => other?,
        };
        let Some(models) = list.get("data").and_then(Value::as_array) else { return Ok(None) };
        let id = |entry: &Value| entry.get("id").and_then(Value::as_str).map(str::to_owned);
        if let Some(entry) = models.iter().find(|entry| id(entry).as_deref() == Some(&model.model)) {
            return Ok(context_of(entry));
        }
        let mut known: Vec<String> = models.iter().filter_map(id).take(12).collect();
        known.sort_unstable();
        Err(Fault::lasting(format!("it knows no model of that name; it has: {}", known.join(", "))))
    });
    listed.map_err(|fault| remote::failed(address, &format!("find `{}`", model.model), fault))
}

/// `max_model_len` of vLLM, `meta.n_ctx` of llama.cpp's server.
fn context_of(entry: &Value) -> Option<usize> {
    let found = [entry.get("max_model_len"), entry.pointer("/meta/n_ctx"), entry.get("context_length")];
    let tokens = found.into_iter().flatten().find_map(Value::as_u64)?;
    usize::try_from(tokens).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(url: &str, value: &str) -> std::result::Result<Option<String>, String> {
        let keys = [("KEY".to_owned(), value.to_owned())].into_iter().collect();
        let engine = OpenAiEngine::new(Servers { keys, ..Servers::default() });
        let model = OpenAiModel { url: url.into(), model: "m".into(), key_env: Some("KEY".into()) };
        engine.key(&model, &Address::parse(url).unwrap())
    }

    #[test]
    fn keys_go_only_where_nobody_reads_along() {
        assert_eq!(key("https://api.example.com/v1", " sk-1\n"), Ok(Some("sk-1".into())));
        assert_eq!(key("http://127.0.0.1:8000/v1", "sk-1"), Ok(Some("sk-1".into())));
        assert!(key("http://api.example.com/v1", "sk-1").unwrap_err().contains("in the open"));
        assert!(key("https://api.example.com/v1", " ").unwrap_err().contains("KEY, which is not set"));
        let bad = key("https://api.example.com/v1", "sk-1\r\nHost: evil").unwrap_err();
        assert!(bad.contains("no key has") && !bad.contains("evil"), "{bad}");
    }

    #[test]
    fn keys_are_not_shown() {
        let keys = [("KEY".to_owned(), "hush".to_owned())].into_iter().collect();
        let shown = format!("{:?}", OpenAiEngine::new(Servers { keys, ..Servers::default() }));
        assert!(shown.contains("KEY") && !shown.contains("hush"), "{shown}");
    }
}
