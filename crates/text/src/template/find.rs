//! Where a model directory keeps its chat template.

use std::path::Path;

use serde_json::Value;

use super::ChatTemplate;
use crate::files::{read, read_json};
use crate::{Error, Result, Tokenizer};

/// Special tokens that a template may name.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

pub(super) fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    let config: Value = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let source = source(dir, &config)?.ok_or_else(|| Error::NoTemplate { dir: dir.to_owned() })?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default().to_owned();
    let mut template = ChatTemplate::from_source(&source, &text(tokenizer.bos()), &text(tokenizer.eos()))?;
    for name in NAMED {
        let written = config[name].as_str().or(config[name]["content"].as_str());
        if let Some(written) = written {
            template.variables.insert(name.to_owned(), written.into());
        }
    }
    Ok(template)
}

pub(super) fn from_file(path: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    let missing = || Error::Read { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() };
    let source = text(path)?.ok_or_else(missing)?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
    ChatTemplate::from_source(&source, text(tokenizer.bos()), text(tokenizer.eos()))
}

fn source(dir: &Path, config: &Value) -> Result<Option<String>> {
    if let Some(text) = text(&dir.join("chat_template.jinja"))? {
        return Ok(Some(text));
    }
    let file: Value = read_json(&dir.join("chat_template.json"))?.unwrap_or_default();
    Ok(of_key(&file["chat_template"]).or_else(|| of_key(&config["chat_template"])))
}

/// What a file says, if there is one.
fn text(path: &Path) -> Result<Option<String>> {
    let invalid = |error| Error::Read {
        path: path.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
    };
    read(path)?.map(|bytes| String::from_utf8(bytes).map_err(invalid)).transpose()
}

/// A template, or the one called `default` of several.
fn of_key(value: &Value) -> Option<String> {
    let several = value.as_array().into_iter().flatten();
    let default =
        several.filter(|entry| entry["name"] == "default").find_map(|entry| entry["template"].as_str());
    value.as_str().or(default).map(str::to_owned)
}
