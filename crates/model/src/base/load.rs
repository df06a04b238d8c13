//! Loading a base: tensor by tensor, a few rows at a time, so that the peak beyond the blocks is one small chunk.

use std::cell::RefCell;

use formats::block;
use formats::block_file::{BlockFile, Planned};
use formats::gguf::Reader;
use formats::{BlockType, Observer, TensorSource};

use super::window::{Residence, Window};
use super::{Base, Tensors};
use crate::config::ModelConfig;
use crate::device::{BlockMatrix, Buffer, Device, Hold};
use crate::family::{self, Naming, Role, TensorSpec};
use crate::memory::weight_sizes;
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
        Self::load_and_keep(device, config, source, quant, &mut |_| Ok(()), observer)
    }

    /// As [`Base::load`], and hands the bytes of [`kept_tensors`], one after the other in parts, to `keep`.
    ///
    /// # Errors
    /// As [`Base::load`], and what `keep` returns.
    pub fn load_and_keep(
        device: &D,
        config: &ModelConfig,
        source: &dyn TensorSource,
        quant: Quant,
        keep: &mut dyn FnMut(&[u8]) -> formats::Result<()>,
        observer: &mut dyn Observer<LoadEvent>,
    ) -> Result<Self> {
        family::check(config, source)?;
        let (weights, keep) = (Weights { device, config, source, quant }, RefCell::new(keep));
        let matrix = |spec: &TensorSpec| weights.matrix(spec, *keep.borrow_mut());
        let vector = |spec: &TensorSpec| weights.vector(spec, *keep.borrow_mut());
        Loader { device, config, naming: Naming::Hf }.load(matrix, vector, observer)
    }

    /// A base without its matrices: layers come and go by [`Base::load_layer`], the head comes by [`Base::load_head`].
    ///
    /// # Errors
    /// As [`Base::load`].
    pub(crate) fn without_matrices(weights: &Weights<'_, D>) -> Result<Self> {
        let (device, config) = (weights.device.clone(), weights.config.clone());
        family::check(&config, weights.source)?;
        let layers = (0..config.n_layers).map(|_| Tensors::new()).collect();
        let mut base = Base { device, config, outer: Tensors::new(), layers, window: None };
        for spec in family::tensors(&base.config) {
            if spec.layer.is_none() && spec.role.is_vector() {
                weights.load(&spec, spec.role, &mut base.outer)?;
            }
        }
        Ok(base)
    }

    /// Brings one layer, in place of what was there.
    ///
    /// # Errors
    /// As [`Base::load`].
    pub(crate) fn load_layer(&mut self, weights: &Weights<'_, D>, index: usize) -> Result<()> {
        self.layers[index] = Tensors::new();
        for spec in family::tensors(&self.config).iter().filter(|spec| spec.layer == Some(index)) {
            weights.load(spec, spec.role, &mut self.layers[index])?;
        }
        Ok(())
    }

    /// Gives a layer's memory back.
    pub(crate) fn drop_layer(&mut self, index: usize) {
        self.layers[index] = Tensors::new();
    }

    /// Brings the head, which is the embedding where the model is tied; does nothing where it is here.
    ///
    /// # Errors
    /// As [`Base::load`].
    pub(crate) fn load_head(&mut self, weights: &Weights<'_, D>) -> Result<()> {
        if self.outer.matrix(Role::Output).is_some() {
            return Ok(());
        }
        let held_by = if self.config.tied { Role::Embedding } else { Role::Output };
        let spec = family::tensors(&self.config).into_iter().find(|spec| spec.role == held_by);
        weights.load(&spec.expect("every family has embedding and head"), Role::Output, &mut self.outer)
    }

    /// Maps what [`Base::load_and_keep`] or [`encode`] handed out.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape or type; [`Error::OutOfMemory`].
    pub fn from_blocks(
        device: &D,
        (config, quant): (&ModelConfig, Quant),
        file: &BlockFile,
        residence: Residence,
        observer: &mut dyn Observer<LoadEvent>,
    ) -> Result<Self> {
        let find = |spec: &TensorSpec, block_type| {
            let (found, range) = file.tensor(&spec.gguf)?;
            if *found == planned(spec, block_type) {
                return Ok(range);
            }
            let (name, found, expected) =
                (spec.gguf.clone(), vec![found.rows, found.cols], vec![spec.rows, spec.cols]);
            Err(Error::TensorShape { name, found, expected })
        };
        let matrix = |spec: &TensorSpec| {
            let ty = policy::block_type(quant, config, spec);
            let hold = match (residence, spec.layer) {
                (Residence::All, _) => Hold::Staying,
                (Residence::Window { resident_layers }, Some(index)) if index < resident_layers => {
                    Hold::Staying
                }
                (Residence::Window { .. }, _) => Hold::Passing,
            };
            device.map_weights(&spec.gguf, ty, (spec.rows, spec.cols), (file.map(), find(spec, ty)?), hold)
        };
        let vector = |spec: &TensorSpec| {
            let bytes = &file.map().bytes()[find(spec, BlockType::F32)?];
            Ok(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
        };
        let mut base = Loader { device, config, naming: Naming::Hf }.load(matrix, vector, observer)?;
        if let Residence::Window { resident_layers } = residence {
            let bytes = weight_sizes(config, quant)?.window_bytes(residence);
            base.window =
                Some(Window::new(resident_layers, device.arena().draw("window of weights", bytes)?));
        }
        Ok(base)
    }

    /// Takes the blocks of a GGUF as they are; rows that its layout interleaves are moved back, block by block.
    ///
    /// # Errors
    /// As [`Base::load`], and what the metadata lacks.
    pub fn from_gguf(device: &D, gguf: &Reader, observer: &mut dyn Observer<LoadEvent>) -> Result<Self> {
        let config = ModelConfig::from_gguf(gguf.metadata(), gguf)?;
        family::check(&config, gguf)?;
        let matrix = |spec: &TensorSpec| {
            let ty = tensor(gguf, spec)?.ty;
            let mut matrix = device.alloc_weights(&spec.gguf, ty, spec.rows, spec.cols)?;
            take(device, gguf, spec, ty, &mut matrix)?;
            Ok(matrix)
        };
        let vector = |spec: &TensorSpec| {
            let mut floats = Vec::new();
            gguf.read(&spec.gguf, &mut floats)?;
            Ok(floats)
        };
        Loader { device, config: &config, naming: Naming::Gguf }.load(matrix, vector, observer)
    }
}

/// 16- or 32-bit weights, and the blocks that they are to be held as.
pub(crate) struct Weights<'a, D: Device> {
    pub device: &'a D,
    pub config: &'a ModelConfig,
    pub source: &'a dyn TensorSource,
    pub quant: Quant,
}

/// Takes the bytes of a tensor as it is held, part after part.
type Keep<'a> = dyn FnMut(&[u8]) -> formats::Result<()> + 'a;

impl<D: Device> Weights<'_, D> {
    /// Brings a tensor to what holds it under a role.
    fn load(&self, spec: &TensorSpec, role: Role, to: &mut Tensors<D>) -> Result<()> {
        if spec.role.is_vector() {
            let floats = self.vector(spec, &mut |_| Ok(()))?;
            to.push_vector(role, uploaded(self.device, &spec.hf, &floats)?);
        } else {
            to.push_matrix(role, self.matrix(spec, &mut |_| Ok(()))?);
        }
        Ok(())
    }

    fn matrix(&self, spec: &TensorSpec, keep: &mut Keep<'_>) -> Result<D::Weights> {
        let ty = policy::block_type(self.quant, self.config, spec);
        let mut matrix = self.device.alloc_weights(&spec.gguf, ty, spec.rows, spec.cols)?;
        let _copy = self.device.dense().count((4 * chunk_rows(spec) * spec.cols) as u64);
        pack(self.source, spec, ty, &mut |first, blocks| {
            self.device.upload_rows(blocks, first, &mut matrix)?;
            Ok(keep(blocks)?)
        })?;
        Ok(matrix)
    }

    fn vector(&self, spec: &TensorSpec, keep: &mut Keep<'_>) -> Result<Vec<f32>> {
        read_vector(self.source, spec, keep)
    }
}

fn uploaded<D: Device>(device: &D, name: &str, floats: &[f32]) -> Result<D::Buffer> {
    let mut buffer = device.alloc(name, floats.len())?;
    device.upload(floats, buffer.all_mut())?;
    Ok(buffer)
}

/// What [`Base::load_and_keep`] hands out, in its order: the blocks of each matrix, each vector in 32 bits.
pub fn kept_tensors(config: &ModelConfig, quant: Quant) -> Vec<Planned> {
    let specs = family::tensors(config);
    specs.iter().map(|spec| planned(spec, policy::block_type(quant, config, spec))).collect()
}

fn planned(spec: &TensorSpec, block_type: BlockType) -> Planned {
    Planned { name: spec.gguf.clone(), block_type, rows: spec.rows, cols: spec.cols }
}

/// Quantises a base without bringing it to a device, and hands the bytes of [`kept_tensors`] to `keep` in parts.
///
/// # Errors
/// As [`Base::load_and_keep`].
pub fn encode(
    config: &ModelConfig,
    source: &dyn TensorSource,
    quant: Quant,
    keep: &mut dyn FnMut(&[u8]) -> formats::Result<()>,
    observer: &mut dyn Observer<LoadEvent>,
) -> Result<()> {
    family::check(config, source)?;
    let specs = family::tensors(config);
    for (index, spec) in specs.iter().enumerate() {
        let block_type = policy::block_type(quant, config, spec);
        if spec.role.is_vector() {
            read_vector(source, spec, keep)?;
        } else {
            pack(source, spec, block_type, &mut |_, blocks| Ok(keep(blocks)?))?;
        }
        let (name, n_tensors) = (spec.name(Naming::Hf).to_owned(), specs.len());
        observer.observe(LoadEvent::Tensor { name, n_done: index + 1, n_tensors, block_type });
    }
    Ok(())
}

fn read_vector(source: &dyn TensorSource, spec: &TensorSpec, keep: &mut Keep<'_>) -> Result<Vec<f32>> {
    let mut floats = Vec::new();
    spec.read(source, &mut floats)?;
    check_finite(source, spec, 0, &floats)?;
    let bytes: Vec<u8> = floats.iter().flat_map(|value| value.to_le_bytes()).collect();
    keep(&bytes)?;
    Ok(floats)
}

/// Rows of a tensor that are dense at once.
fn chunk_rows(spec: &TensorSpec) -> usize {
    (CHUNK_FLOATS / spec.cols).clamp(1, spec.rows)
}

/// Reads rows as f32, packs them, and hands the blocks to `take` with the number of their first row.
fn pack(
    source: &dyn TensorSource,
    spec: &TensorSpec,
    ty: BlockType,
    take: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let (row_bytes, chunk) = (ty.row_bytes(spec.cols)?, chunk_rows(spec));
    let (mut floats, mut blocks) = (Vec::new(), vec![0; chunk * row_bytes]);
    for first in (0..spec.rows).step_by(chunk) {
        let n_rows = chunk.min(spec.rows - first);
        spec.read_rows(source, first..first + n_rows, &mut floats)?;
        check_finite(source, spec, first, &floats)?;
        let blocks = &mut blocks[..n_rows * row_bytes];
        block::encode_par(ty, &floats, spec.cols, None, blocks)?;
        take(first, blocks)?;
    }
    Ok(())
}

/// A weight that is no number would make every loss one, hours later and far from its cause.
fn check_finite(source: &dyn TensorSource, spec: &TensorSpec, first_row: usize, rows: &[f32]) -> Result<()> {
    let Some(at) = rows.iter().position(|weight| !weight.is_finite()) else { return Ok(()) };
    let (row, column) = (first_row + at / spec.cols, at % spec.cols);
    Err(Error::WeightNotFinite {
        tensor: spec.name(source.naming()).to_owned(),
        row,
        column,
        value: rows[at],
    })
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
    naming: Naming,
}

impl<D: Device> Loader<'_, D> {
    fn load(
        &self,
        matrix: impl Fn(&TensorSpec) -> Result<D::Weights>,
        vector: impl Fn(&TensorSpec) -> Result<Vec<f32>>,
        observer: &mut dyn Observer<LoadEvent>,
    ) -> Result<Base<D>> {
        let specs = family::tensors(self.config);
        let mut outer = Tensors::new();
        let mut layers: Vec<Tensors<D>> = (0..self.config.n_layers).map(|_| Tensors::new()).collect();
        for (index, spec) in specs.iter().enumerate() {
            let name = spec.name(self.naming);
            let place = spec.layer.map_or(&mut outer, |index| &mut layers[index]);
            let mut block_type = BlockType::F32;
            if spec.role.is_vector() {
                place.push_vector(spec.role, uploaded(self.device, name, &vector(spec)?)?);
            } else {
                let matrix = matrix(spec)?;
                block_type = matrix.block_type();
                place.push_matrix(spec.role, matrix);
            }
            let (name, n_tensors) = (name.to_owned(), specs.len());
            observer.observe(LoadEvent::Tensor { name, n_done: index + 1, n_tensors, block_type });
        }
        Ok(Base { device: self.device.clone(), config: self.config.clone(), outer, layers, window: None })
    }
}
