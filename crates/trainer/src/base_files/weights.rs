//! A base's weights where they lie, and how they come into memory.

use formats::checkpoint::Checkpoint;
use formats::gguf::Reader;
use formats::observe::Observer;
use model::memory::{gguf_weights_bytes, weights_bytes};
use model::{Base, Device, LoraOptions, ModelConfig, Quant};

use crate::base_cache::{BaseCache, loading};
use crate::beginning::Beginning;
use crate::error::Result;
use crate::event::Event;
use crate::memory_use::Growth;

/// The weights of a base, memory-mapped.
pub enum BaseWeights {
    /// 16- or 32-bit weights, quantised when they are loaded.
    Folder {
        /// The weight files.
        checkpoint: Checkpoint,
        /// How they are held.
        quant: Quant,
    },
    /// A GGUF, whose blocks are taken as they are.
    Gguf(Reader),
}

impl BaseWeights {
    /// Bytes that they take in memory.
    ///
    /// # Errors
    /// A tensor that is missing.
    pub fn bytes(&self, config: &ModelConfig) -> Result<u64> {
        Ok(match self {
            BaseWeights::Folder { quant, .. } => weights_bytes(config, *quant)?,
            BaseWeights::Gguf(reader) => gguf_weights_bytes(config, reader)?,
        })
    }

    /// Whether some matrix has fewer than 16 bits a weight where it lies, so that whatever is added to it is rounded again.
    pub fn are_rounded_on_disk(&self) -> bool {
        match self {
            BaseWeights::Folder { .. } => false,
            BaseWeights::Gguf(reader) => reader.tensors().iter().any(|tensor| tensor.ty.block_len() > 1),
        }
    }

    /// Brings them to a device, those of a folder less what the adapter began with.
    ///
    /// # Errors
    /// What the device and reading meet.
    pub fn load<D: Device>(
        &self,
        device: &D,
        config: &ModelConfig,
        (cache, growth): (&BaseCache<'_>, &Growth),
        beginning: Option<(&Beginning, &LoraOptions)>,
        observer: &mut dyn Observer<Event>,
    ) -> Result<Base<D>> {
        match (self, beginning) {
            (BaseWeights::Gguf(reader), _) => Ok(Base::from_gguf(device, reader, &mut loading(observer))?),
            (BaseWeights::Folder { checkpoint, quant }, None) => {
                cache.load(device, (checkpoint, config, *quant), growth, observer)
            }
            // Such weights are of one run alone: keeping them would serve no other.
            (BaseWeights::Folder { checkpoint, quant }, Some((beginning, lora))) => {
                let source = beginning.shifted(checkpoint, config, lora);
                Ok(Base::load(device, config, &source, *quant, &mut loading(observer))?)
            }
        }
    }
}
