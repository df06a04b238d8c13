//! A base's weights where they lie, and how they come into memory.

use formats::checkpoint::Checkpoint;
use formats::gguf::Reader;
use formats::observe::Observer;
use model::base::Residence;
use model::memory::{WeightSizes, gguf_weights_bytes, weight_sizes};
use model::{Base, Device, LoraOptions, ModelConfig, Quant};

use crate::base_cache::{BaseCache, loading};
use crate::beginning::Beginning;
use crate::error::Result;
use crate::event::Event;
use crate::memory_use::Growth;
use crate::offload::Passing;

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

/// Bytes that weights take in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sizes {
    /// A folder's, part by part.
    Folder(WeightSizes),
    /// All of a GGUF's, which stay.
    Gguf(u64),
}

impl Sizes {
    /// All of them.
    pub fn total_bytes(&self) -> u64 {
        self.held_bytes(Residence::All).0
    }

    /// Whether they can pass through memory.
    pub fn can_pass(&self) -> bool {
        matches!(self, Sizes::Folder(_))
    }

    /// Bytes of those that stay, and of the window that the others pass through.
    pub fn held_bytes(&self, residence: Residence) -> (u64, u64) {
        match self {
            Sizes::Folder(sizes) => (sizes.staying_bytes(residence), sizes.window_bytes(residence)),
            Sizes::Gguf(bytes) => (*bytes, 0),
        }
    }

    /// Those that pass.
    pub fn passing(&self, residence: Residence) -> Option<Passing> {
        let (Sizes::Folder(sizes), Residence::Window { resident_layers }) = (self, residence) else {
            return None;
        };
        let n_layers = sizes.layers.len();
        Some(Passing {
            layers: n_layers.saturating_sub(resident_layers),
            n_layers,
            bytes: sizes.total_bytes() - sizes.staying_bytes(residence),
            read_bytes: sizes.passed_bytes(residence),
        })
    }
}

impl BaseWeights {
    /// Bytes that they take in memory.
    ///
    /// # Errors
    /// A tensor that is missing.
    pub fn sizes(&self, config: &ModelConfig) -> Result<Sizes> {
        Ok(match self {
            BaseWeights::Folder { quant, .. } => Sizes::Folder(weight_sizes(config, *quant)?),
            BaseWeights::Gguf(reader) => Sizes::Gguf(gguf_weights_bytes(config, reader)?),
        })
    }

    /// Whether some matrix has fewer than 16 bits a weight where it lies, so that whatever is added to it is rounded again.
    pub fn are_rounded_on_disk(&self) -> bool {
        match self {
            BaseWeights::Folder { .. } => false,
            BaseWeights::Gguf(reader) => reader.tensors().iter().any(|tensor| tensor.ty.block_len() > 1),
        }
    }

    /// Brings them to a device, those of a folder less what the adapter began with. They pass through its memory only where
    /// [`crate::offload::possible`] allows it.
    ///
    /// # Errors
    /// What the device and reading meet.
    pub fn load<D: Device>(
        &self,
        device: &D,
        (config, residence): (&ModelConfig, Residence),
        (cache, growth): (&BaseCache<'_>, &Growth),
        beginning: Option<(&Beginning, &LoraOptions)>,
        observer: &mut dyn Observer<Event>,
    ) -> Result<Base<D>> {
        match (self, beginning) {
            (BaseWeights::Gguf(reader), _) => Ok(Base::from_gguf(device, reader, &mut loading(observer))?),
            (BaseWeights::Folder { checkpoint, quant }, None) => {
                cache.load(device, (checkpoint, config, *quant), residence, growth, observer)
            }
            // Such weights are of one run alone: keeping them would serve no other.
            (BaseWeights::Folder { checkpoint, quant }, Some((beginning, lora))) => {
                let source = beginning.shifted(checkpoint, config, lora);
                Ok(Base::load(device, config, &source, *quant, &mut loading(observer))?)
            }
        }
    }
}
