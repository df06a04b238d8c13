//! Loading a base: tensor by tensor, a few rows at a time, so that the peak beyond the blocks is one small chunk.

use formats::block;
use formats::gguf::Reader;
use formats::{BlockType, Observer, TensorSource};

use super::{Base, Tensors};
use crate::config::ModelConfig;
use crate::device::{Buffer, Device};
use crate::family::{self, Naming, TensorSpec};
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

/// Floats that are read, packed and forgotten at once: 4 MiB, or one row where that is longer.
const CHUNK_FLOATS: usize = 1 << 20;

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
        family::check(config, source, Naming::Hf)?;
        let block_type = |spec: &TensorSpec| Ok(policy::block_type(quant, config, spec));
        let pack = |spec: &TensorSpec, ty, matrix: &mut D::Weights| pack(device, source, spec, ty, matrix);
        Loader { device, config, source, naming: Naming::Hf }.load(block_type, pack, observer)
    }

    /// Takes the blocks of a GGUF as they are; rows that its layout interleaves are moved back, block by block.
    ///
    /// # Errors
    /// As [`Base::load`], and what the metadata lacks.
    pub fn from_gguf(device: &D, gguf: &Reader, observer: &mut dyn Observer<LoadEvent>) -> Result<Self> {
        let config = ModelConfig::from_gguf(gguf.metadata(), gguf)?;
        family::check(&config, gguf, Naming::Gguf)?;
        let block_type = |spec: &TensorSpec| Ok(tensor(gguf, spec)?.ty);
        let take = |spec: &TensorSpec, ty, matrix: &mut D::Weights| take(device, gguf, spec, ty, matrix);
        Loader { device, config: &config, source: gguf, naming: Naming::Gguf }
            .load(block_type, take, observer)
    }
}

/// Reads rows as f32, packs them, uploads the blocks.
fn pack<D: Device>(
    device: &D,
    source: &dyn TensorSource,
    spec: &TensorSpec,
    ty: BlockType,
    matrix: &mut D::Weights,
) -> Result<()> {
    let row_bytes = ty.row_bytes(spec.cols)?;
    let chunk = (CHUNK_FLOATS / spec.cols).clamp(1, spec.rows);
    let _copy = device.dense().count((4 * chunk * spec.cols) as u64);
    let (mut floats, mut blocks) = (Vec::new(), vec![0; chunk * row_bytes]);
    for first in (0..spec.rows).step_by(chunk) {
        let n_rows = chunk.min(spec.rows - first);
        source.read_rows(&spec.hf, first..first + n_rows, &mut floats)?;
        let blocks = &mut blocks[..n_rows * row_bytes];
        block::encode_par(ty, &floats, spec.cols, None, blocks)?;
        device.upload_rows(blocks, first, matrix)?;
    }
    Ok(())
}

/// Uploads a GGUF's blocks, each row to its place in the Hugging Face layout.
fn take<D: Device>(
    device: &D,
    gguf: &Reader,
    spec: &TensorSpec,
    ty: BlockType,
    matrix: &mut D::Weights,
) -> Result<()> {
    let blocks = gguf.data(tensor(gguf, spec)?);
    if spec.permute.is_none() {
        return device.upload_rows(blocks, 0, matrix);
    }
    let mut rows = blocks.chunks_exact(ty.row_bytes(spec.cols)?).enumerate();
    rows.try_for_each(|(row, blocks)| device.upload_rows(blocks, spec.hf_row(row), matrix))
}

fn tensor<'a>(gguf: &'a Reader, spec: &TensorSpec) -> Result<&'a formats::gguf::TensorInfo> {
    gguf.tensor(&spec.gguf).ok_or_else(|| missing(&spec.gguf))
}

fn missing(name: &str) -> Error {
    Error::MissingTensor { name: name.to_owned(), n_missing: 1, n_expected: 1 }
}

/// Goes through all tensors of a model, whatever they come from.
struct Loader<'a, D: Device> {
    device: &'a D,
    config: &'a ModelConfig,
    source: &'a dyn TensorSource,
    naming: Naming,
}

impl<D: Device> Loader<'_, D> {
    fn load(
        &self,
        block_type: impl Fn(&TensorSpec) -> Result<BlockType>,
        fill: impl Fn(&TensorSpec, BlockType, &mut D::Weights) -> Result<()>,
        observer: &mut dyn Observer<LoadEvent>,
    ) -> Result<Base<D>> {
        let specs = family::tensors(self.config);
        let mut outer = Tensors::new();
        let mut layers: Vec<Tensors<D>> = (0..self.config.n_layers).map(|_| Tensors::new()).collect();
        for (index, spec) in specs.iter().enumerate() {
            let name = spec.name(self.naming);
            let place = spec.layer.map_or(&mut outer, |index| &mut layers[index]);
            let mut ty = BlockType::F32;
            if spec.role.is_vector() {
                place.push_vector(spec.role, self.vector(spec)?);
            } else {
                ty = block_type(spec)?;
                let mut matrix = self.device.alloc_weights(name, ty, spec.rows, spec.cols)?;
                fill(spec, ty, &mut matrix)?;
                place.push_matrix(spec.role, matrix);
            }
            let (name, n_tensors) = (name.to_owned(), specs.len());
            observer.observe(LoadEvent::Tensor { name, n_done: index + 1, n_tensors, block_type: ty });
        }
        Ok(Base { device: self.device.clone(), config: self.config.clone(), outer, layers })
    }

    fn vector(&self, spec: &TensorSpec) -> Result<D::Buffer> {
        let mut floats = Vec::new();
        self.source.read(spec.name(self.naming), &mut floats)?;
        if self.naming == Naming::Hf {
            spec.held.of(&mut floats);
        }
        let mut vector = self.device.alloc(spec.name(self.naming), spec.n_weights())?;
        self.device.upload(&floats, vector.all_mut())?;
        Ok(vector)
    }
}
