//! Loading a base: tensor by tensor, a few rows at a time, so that the peak beyond the blocks is one chunk.

use formats::block::{self, BlockType};
use formats::gguf::Reader;
use formats::{Observer, TensorSource};

use super::{Base, Layer};
use crate::config::ModelConfig;
use crate::device::Device;
use crate::family::{self, Naming, Role, TensorSpec};
use crate::policy::{self, Quant};
use crate::{Error, Result};

/// Progress of loading a base.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadEvent {
    /// A tensor is resident.
    Tensor {
        /// Its name in the source.
        name: String,
        /// How many are resident now.
        n_done: usize,
        /// How many there are.
        n_tensors: usize,
        /// How its blocks are encoded.
        block_type: BlockType,
    },
}

impl<D: Device> Base<D> {
    /// Reads 16- or 32-bit weights under their Hugging Face names and keeps them as blocks of `quant`'s mixture.
    ///
    /// # Errors
    /// A tensor that is missing, surplus or of another shape; [`Error::OutOfMemory`]; what reading meets.
    pub fn load(
        device: &D,
        config: &ModelConfig,
        source: &dyn TensorSource,
        quant: Quant,
        observer: &mut dyn Observer<LoadEvent>,
    ) -> Result<Self> {
        let _ = (device, config, source, quant, observer);
        todo!()
    }

    /// Takes the blocks of a GGUF as they are; rows that its layout interleaves are moved back, block by block.
    ///
    /// # Errors
    /// As [`Base::load`], and what the metadata lacks.
    pub fn from_gguf(device: &D, gguf: &Reader, observer: &mut dyn Observer<LoadEvent>) -> Result<Self> {
        let _ = (device, gguf, observer);
        todo!()
    }
}
