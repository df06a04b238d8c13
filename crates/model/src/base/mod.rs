//! The frozen base: every weight as ggml blocks on a device, gains and biases as f32.

mod experts;
mod layers;
mod load;
mod mixer;
mod tensors;
mod window;

pub(crate) use experts::{ExpertDeltas, ExpertLens, ExpertRoom};
pub(crate) use layers::Update;
pub(crate) use load::Weights;
pub use load::{LoadEvent, encode, kept_tensors};
pub(crate) use mixer::Mixed;
pub use tensors::Tensors;
pub(crate) use window::Place;
pub use window::{AtTurn, Residence};

use formats::BlockType;

use crate::config::ModelConfig;
use crate::device::{BlockMatrix, Device};
use crate::family::Role;

/// The frozen weights of a model.
pub struct Base<D: Device> {
    /// Where they live.
    pub device: D,
    /// What they are the weights of.
    pub config: ModelConfig,
    /// Embedding, last norm, and the head of a model that is not tied.
    pub outer: Tensors<D>,
    /// The decoder layers in order.
    pub layers: Vec<Tensors<D>>,
    /// Where matrices pass through memory.
    window: Option<window::Window>,
}

impl<D: Device> Base<D> {
    /// The matrix (V, C) of the embedding.
    pub fn embedding(&self) -> &D::Weights {
        self.outer.matrix(Role::Embedding).expect("loading refuses a base without embedding")
    }

    /// The matrix (V, C) of the head: the embedding when the model is tied.
    pub fn head(&self) -> &D::Weights {
        self.outer.matrix(Role::Output).unwrap_or_else(|| self.embedding())
    }

    /// Bytes of all blocks and vectors on the device.
    pub fn bytes(&self) -> u64 {
        self.all().map(Tensors::bytes).sum()
    }

    /// The block types in use with the bytes each takes, the largest share first.
    pub fn bytes_by_type(&self) -> Vec<(BlockType, u64)> {
        let mut shares: Vec<(BlockType, u64)> = Vec::new();
        for matrix in self.all().flat_map(Tensors::matrices) {
            match shares.iter_mut().find(|(ty, _)| *ty == matrix.block_type()) {
                Some((_, bytes)) => *bytes += matrix.bytes(),
                None => shares.push((matrix.block_type(), matrix.bytes())),
            }
        }
        shares.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        shares
    }

    fn all(&self) -> impl Iterator<Item = &Tensors<D>> {
        std::iter::once(&self.outer).chain(&self.layers)
    }
}
