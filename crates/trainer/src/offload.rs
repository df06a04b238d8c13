//! Offload: whether a base's weights can pass through memory, from the file that its blocks are kept in.

use formats::map::Map;
use serde::{Deserialize, Serialize};

use crate::base_files::{BaseFiles, BaseWeights};
use crate::error::{Error, Result};
use crate::options::{Init, Offload, Options};

/// Weights that pass through memory, as a plan says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passing {
    /// Layers of which the weights pass; embedding and head do too.
    pub layers: usize,
    /// Layers in all.
    pub n_layers: usize,
    /// Bytes of the weights that do not stay.
    pub bytes: u64,
    /// Bytes that forward and backward of a micro-batch bring into memory at most.
    pub read_bytes: u64,
}

/// What of the recipe's wish is possible with a base.
///
/// # Errors
/// [`Error::Option`] when weights are to pass that cannot.
pub fn possible(options: &Options, base: &BaseFiles) -> Result<Offload> {
    match (options.budget.offload, obstacle(options, base)) {
        (Offload::Weights, Some(reason)) => {
            Err(Error::Option { key: "budget.offload", reason: format!("cannot be \"weights\": {reason}") })
        }
        (_, Some(_)) => Ok(Offload::None),
        (wish, None) => Ok(wish),
    }
}

/// Why the weights of a base cannot pass.
fn obstacle(options: &Options, base: &BaseFiles) -> Option<&'static str> {
    if !Map::CAN_RELEASE {
        return Some("this system takes no mapped pages out of memory, as Linux does");
    }
    if matches!(base.weights, BaseWeights::Gguf(_)) {
        return Some("a GGUF's blocks are copied, not mapped; train from the folder in Hugging Face layout");
    }
    if options.adapter.init != Init::Default {
        return Some(
            "with this `adapter.init` the base is held less what the adapter began with, which no file keeps",
        );
    }
    if options.cache.dir.is_none() {
        return Some("the blocks are read from the cache of bases, which is off; set `model.cache = true`");
    }
    None
}
