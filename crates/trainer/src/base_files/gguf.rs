//! A base as one GGUF: its blocks are used as they are, tokenizer and template come from its metadata.

use std::path::Path;

use formats::gguf::Reader;
use model::family;
use model::{ModelConfig, Quant};
use text::{ChatTemplate, Tokenizer};

use super::{BaseFiles, BaseWeights};
use crate::error::{Error, Result};
use crate::record::Inputs;

pub(super) fn open(path: &Path, quant: Option<&str>) -> Result<BaseFiles> {
    let reader = Reader::open(path)?;
    let metadata = reader.metadata();
    check_quant(path, &reader, quant)?;
    let config = ModelConfig::from_gguf(metadata, &reader)?;
    family::check(&config, &reader)?;
    let tokenizer = Tokenizer::from_gguf(metadata)?;
    let template = ChatTemplate::from_gguf(metadata, &tokenizer)?;
    let stop = metadata.get_u32("tokenizer.ggml.eot_token_id");
    BaseFiles::assemble(path, (config, BaseWeights::Gguf(reader)), (tokenizer, template), stop)
}

/// A recipe that asks for other blocks than the file has would be obeyed by nobody.
fn check_quant(path: &Path, reader: &Reader, quant: Option<&str>) -> Result<()> {
    let Some(asked) = quant.map(Quant::parse).transpose()? else { return Ok(()) };
    let found = reader.metadata().get_u32("general.file_type").and_then(Quant::of_file_type);
    if found == Some(asked) {
        return Ok(());
    }
    let (file, found) = (path.display(), found.map_or("of another type", Quant::name));
    let reason = format!(
        "is {asked}, but the blocks of {file} are {found} and are used as they are: leave the key out"
    );
    Err(Error::Option { key: "model.quant", reason })
}

/// The file holds everything: its hash stands for the weights, the configuration and the tokenizer.
pub(super) fn hashes(file: String, inputs: Inputs) -> Inputs {
    Inputs { base: file.clone(), base_config: file.clone(), tokenizer: file, ..inputs }
}
