//! The frozen base: every weight as ggml blocks on a device, norms as f32.

mod load;

pub use load::LoadEvent;

use formats::BlockType;

use crate::config::ModelConfig;
use crate::device::{BlockMatrix, Buffer, Device};
use crate::family::Role;

/// The frozen weights of a model.
pub struct Base<D: Device> {
    /// Where they live.
    pub device: D,
    /// What they are the weights of.
    pub config: ModelConfig,
    /// (V, C); also the head when the model is tied.
    pub embedding: D::Weights,
    /// The decoder layers in order.
    pub layers: Vec<Layer<D>>,
    /// Gain of the last norm (C).
    pub output_norm: D::Buffer,
    output: Option<D::Weights>,
}

/// The frozen weights of one decoder layer.
pub struct Layer<D: Device> {
    /// Gain of the norm before attention (C).
    pub attn_norm: D::Buffer,
    /// (H·D, C)
    pub q: D::Weights,
    /// (K·D, C)
    pub k: D::Weights,
    /// (K·D, C)
    pub v: D::Weights,
    /// (C, H·D)
    pub o: D::Weights,
    /// Gain of the norm of each query head (D), in families that have one.
    pub q_norm: Option<D::Buffer>,
    /// Gain of the norm of each key head (D).
    pub k_norm: Option<D::Buffer>,
    /// Gain of the norm before the MLP (C).
    pub ffn_norm: D::Buffer,
    /// (F, C)
    pub gate: D::Weights,
    /// (F, C)
    pub up: D::Weights,
    /// (C, F)
    pub down: D::Weights,
}

impl<D: Device> Layer<D> {
    /// One of the seven linear layers.
    ///
    /// # Panics
    /// When the role is none of them.
    pub fn linear(&self, role: Role) -> &D::Weights {
        match role {
            Role::Q => &self.q,
            Role::K => &self.k,
            Role::V => &self.v,
            Role::O => &self.o,
            Role::Gate => &self.gate,
            Role::Up => &self.up,
            Role::Down => &self.down,
            other => panic!("{other:?} is no linear layer"),
        }
    }
}

impl<D: Device> Base<D> {
    /// The matrix (V, C) of the head: the embedding when the model is tied.
    pub fn head(&self) -> &D::Weights {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of all blocks and norms on the device.
    pub fn bytes(&self) -> u64 {
        let matrices = self.matrices().map(|matrix| matrix.bytes()).sum::<u64>();
        matrices + self.norms().map(|gain| 4 * gain.len() as u64).sum::<u64>()
    }

    /// The block types in use with the bytes each takes, the largest share first.
    pub fn bytes_by_type(&self) -> Vec<(BlockType, u64)> {
        let mut shares: Vec<(BlockType, u64)> = Vec::new();
        for matrix in self.matrices() {
            match shares.iter_mut().find(|(ty, _)| *ty == matrix.block_type()) {
                Some((_, bytes)) => *bytes += matrix.bytes(),
                None => shares.push((matrix.block_type(), matrix.bytes())),
            }
        }
        shares.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        shares
    }

    fn matrices(&self) -> impl Iterator<Item = &D::Weights> {
        let layers = self.layers.iter();
        let linears = layers.flat_map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]);
        std::iter::once(&self.embedding).chain(linears).chain(&self.output)
    }

    fn norms(&self) -> impl Iterator<Item = &D::Buffer> {
        let layers = self.layers.iter();
        let gains = layers
            .flat_map(|l| [Some(&l.attn_norm), l.q_norm.as_ref(), l.k_norm.as_ref(), Some(&l.ffn_norm)]);
        gains.flatten().chain(std::iter::once(&self.output_norm))
    }
}
