//! Where a pipeline's expert comes from: a file, the registry, or a server; and what may be said of each.

use std::path::Path;

use super::spec::ExpertSpec;
use crate::card::{AdapterOptions, CardOptions, Digests, ExpertCard, Model, OpenAiModel};
use crate::engine::ollama::{self, OllamaServer};
use crate::engine::remote::{Address, Patience};
use crate::{Error, Registry};

/// The one place that an expert's model comes from.
enum Source<'a> {
    File(&'a Path),
    Registered(&'a str),
    Ollama(&'a str),
    OpenAi { model: &'a str, url: &'a str },
}

/// Why an expert's table is wrong: the key, and what is wrong with it.
pub(super) enum Trouble {
    Key(&'static str, String),
    Error(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

fn key(key: &'static str, reason: impl Into<String>) -> Trouble {
    Trouble::Key(key, reason.into())
}

/// What every expert of a pipeline is looked up with.
pub(super) struct Lookup<'a> {
    pub directory: &'a Path,
    pub registry: &'a Registry,
    /// Whether everything is to stay on this machine.
    pub local: bool,
}

impl Lookup<'_> {
    /// The card of an expert, as its source has it: what else the pipeline says of it is not in it yet. A server is
    /// asked for its model, so that a name that it does not know is found before anything runs.
    pub(super) fn card(&self, name: &str, spec: &ExpertSpec) -> std::result::Result<ExpertCard, Trouble> {
        match source(spec)? {
            Source::File(file) => {
                let path = self.directory.join(file);
                if !path.is_file() {
                    return Err(key(".file", format!("{} is not there", path.display())));
                }
                let options = CardOptions { adapters: self.adapters(spec)?, ..CardOptions::default() };
                Ok(ExpertCard::from_file(name, &path, &options, Digests::Blake3)?)
            }
            Source::Registered(expert) => {
                let card = self.registry.card(expert)?;
                self.check_local(&card)?;
                card.check_file()?;
                Ok(card)
            }
            Source::Ollama(model) => self.of_ollama(name, model, spec),
            Source::OpenAi { model, url } => self.of_openai(name, model, url, spec),
        }
    }

    fn adapters(&self, spec: &ExpertSpec) -> std::result::Result<Vec<AdapterOptions>, Trouble> {
        let Some(adapter) = &spec.adapter else {
            return match spec.adapter_scale {
                None => Ok(Vec::new()),
                Some(_) => Err(key(".adapter_scale", "there is no `adapter` to scale")),
            };
        };
        let file = self.directory.join(adapter);
        if !file.is_file() {
            return Err(key(".adapter", format!("{} is not there", file.display())));
        }
        Ok(vec![AdapterOptions { file, scale: spec.adapter_scale.unwrap_or(1.0) }])
    }

    fn of_ollama(
        &self,
        name: &str,
        model: &str,
        spec: &ExpertSpec,
    ) -> std::result::Result<ExpertCard, Trouble> {
        let host = spec.host.as_deref().unwrap_or(ollama::DEFAULT_HOST);
        let server = OllamaServer::at(host, Patience::default()).map_err(|reason| key(".host", reason))?;
        if self.local && !server.is_local() {
            return Err(key(".host", elsewhere(&server.url())));
        }
        refuse_load_keys(spec, "is fixed by the server and the model's parameters")?;
        let model = server.identify(model)?;
        if let Some(asked) = spec.num_ctx
            && model.num_ctx != Some(asked)
        {
            let has = model.num_ctx.map_or_else(
                || "leaves its context to the server".to_owned(),
                |num_ctx| format!("has num_ctx {num_ctx} among its parameters"),
            );
            let reason = format!(
                "`{}` {has}; a request can't change it without a reload: make a model with `FROM {}` and \
                 `PARAMETER num_ctx {asked}`, or leave the key out",
                model.name, model.name
            );
            return Err(key(".num_ctx", reason));
        }
        let mut options = CardOptions::default();
        options.load.num_ctx = model.num_ctx.unwrap_or(0);
        Ok(ExpertCard::of_model(name, Model::Ollama(model), &options)?)
    }

    fn of_openai(
        &self,
        name: &str,
        model: &str,
        url: &str,
        spec: &ExpertSpec,
    ) -> std::result::Result<ExpertCard, Trouble> {
        let address = Address::parse(url).map_err(|reason| key(".url", reason))?;
        if self.local && !address.is_loopback() {
            return Err(key(".url", elsewhere(&address.to_string())));
        }
        if spec.key_env.is_some() && !address.is_private() {
            return Err(key(".url", format!("the key would be sent in the open to {address}: use https")));
        }
        refuse_load_keys(spec, "is fixed by the server")?;
        if spec.num_gpu.is_some() {
            return Err(key(".num_gpu", "is fixed by the server"));
        }
        let model =
            OpenAiModel { url: address.to_string(), model: model.to_owned(), key_env: spec.key_env.clone() };
        Ok(ExpertCard::of_model(name, Model::OpenAi(model), &CardOptions::default())?)
    }

    /// Refuses a registered expert that is elsewhere where everything is to stay here.
    pub(super) fn check_local(&self, card: &ExpertCard) -> std::result::Result<(), Trouble> {
        let url = match &card.model {
            Model::File(_) => return Ok(()),
            Model::Ollama(model) => &model.url,
            Model::OpenAi(model) => &model.url,
        };
        let is_here = Address::parse(url).is_ok_and(|address| address.is_loopback());
        if !self.local || is_here { Ok(()) } else { Err(key(".expert", elsewhere(url))) }
    }
}

fn elsewhere(url: &str) -> String {
    format!("{url} is not this machine, and the pipeline says `local = true`")
}

/// Exactly one source, with the keys that belong to it.
fn source(spec: &ExpertSpec) -> std::result::Result<Source<'_>, Trouble> {
    let source = match (&spec.file, &spec.expert, &spec.ollama, &spec.openai) {
        (Some(file), None, None, None) => Source::File(file),
        (None, Some(expert), None, None) => Source::Registered(expert),
        (None, None, Some(model), None) => Source::Ollama(model),
        (None, None, None, Some(model)) => {
            let url = spec.url.as_deref();
            let url = url.ok_or_else(|| {
                key(".url", "an `openai` model needs one, as in \"http://127.0.0.1:8000/v1\"")
            })?;
            Source::OpenAi { model, url }
        }
        _ => return Err(key("", "give exactly one of `file`, `expert`, `ollama` and `openai`")),
    };
    let has_adapter = spec.adapter.is_some() || spec.adapter_scale.is_some();
    match source {
        Source::Registered(_) if has_adapter => {
            let reason = "only with `file`: a registered expert has its own, see `tune register --adapter`";
            return Err(key(".adapter", reason));
        }
        Source::Ollama(_) | Source::OpenAi { .. } if has_adapter => {
            return Err(key(".adapter", "only with `file`: a server's model is what the server has"));
        }
        _ => {}
    }
    let is_ollama = matches!(source, Source::Ollama(_));
    let is_openai = matches!(source, Source::OpenAi { .. });
    for (name, is_given, belongs, to) in [
        (".host", spec.host.is_some(), is_ollama, "ollama"),
        (".url", spec.url.is_some(), is_openai, "openai"),
        (".key_env", spec.key_env.is_some(), is_openai, "openai"),
    ] {
        if is_given && !belongs {
            return Err(key(name, format!("it belongs to an expert of `{to}`")));
        }
    }
    Ok(source)
}

/// What a request to a server can't set.
fn refuse_load_keys(spec: &ExpertSpec, why: &str) -> std::result::Result<(), Trouble> {
    for (name, is_given) in [
        (".num_batch", spec.num_batch.is_some()),
        (".num_thread", spec.num_thread.is_some()),
        (".kv_type", spec.kv_type.is_some()),
        (".flash_attention", spec.flash_attention.is_some()),
    ] {
        if is_given {
            return Err(key(name, why));
        }
    }
    Ok(())
}
