//! A base as a folder in Hugging Face layout, whose weights are quantised when they are loaded.

use std::path::Path;

use formats::checkpoint::Checkpoint;
use formats::config::{GenerationConfig, HfConfig};
use formats::hash;
use model::family;
use model::{ModelConfig, Quant};
use text::{ChatTemplate, Tokenizer};

use super::{BaseFiles, BaseWeights};
use crate::error::Result;
use crate::options::ModelOptions;
use crate::record::Inputs;

pub(super) fn open(dir: &Path, options: &ModelOptions) -> Result<BaseFiles> {
    let quant = Quant::parse_for_memory(options.quant_name())?;
    let hf = HfConfig::from_dir(dir)?;
    let config = ModelConfig::from_hf(&hf)?;
    let checkpoint = Checkpoint::open(dir)?;
    let config = config.named_as_in(&checkpoint);
    family::check(&config, &checkpoint)?;
    family::check_types(&config, &checkpoint)?;
    family::check_tied_head(&config, &checkpoint)?;
    let tokenizer = Tokenizer::from_dir(dir)?;
    let template = match has_template(dir) {
        true => Some(ChatTemplate::from_dir(dir, &tokenizer)?),
        false => None,
    };
    let stop = GenerationConfig::from_dir(dir)?.unwrap_or_default().eos_token_ids;
    let weights = BaseWeights::Folder { checkpoint, quant };
    BaseFiles::assemble(dir, (config, weights), (tokenizer, template), stop)
}

pub(super) fn hashes(dir: &Path, base: String, inputs: Inputs) -> Result<Inputs> {
    Ok(Inputs {
        base,
        base_config: hash::blake3_file(&dir.join("config.json"))?,
        tokenizer: text::files_blake3(dir)?,
        ..inputs
    })
}

/// Whether one of the three places where a template can stand has one.
fn has_template(dir: &Path) -> bool {
    let stands_alone =
        ["chat_template.jinja", "chat_template.json"].iter().any(|name| dir.join(name).is_file());
    let in_config = || {
        let bytes = std::fs::read(dir.join("tokenizer_config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        config.get("chat_template").map(|template| !template.is_null())
    };
    stands_alone || in_config().unwrap_or(false)
}
