//! The tensors of one decoder layer, or of what stands outside the layers, each found by its role.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::device::{BlockMatrix, Buffer, Device};
use crate::family::Role;

/// Frozen matrices and vectors with their roles. A handful each: a scan is faster than any map.
pub struct Tensors<D: Device> {
    matrices: Vec<(Role, D::Weights)>,
    vectors: Vec<(Role, D::Buffer)>,
}

impl<D: Device> Tensors<D> {
    pub(super) fn new() -> Self {
        Self { matrices: Vec::new(), vectors: Vec::new() }
    }

    pub(super) fn push_matrix(&mut self, role: Role, matrix: D::Weights) {
        self.matrices.push((role, matrix));
    }

    pub(super) fn push_vector(&mut self, role: Role, vector: D::Buffer) {
        self.vectors.push((role, vector));
    }

    /// A matrix, where the family has it.
    pub fn matrix(&self, role: Role) -> Option<&D::Weights> {
        self.matrices.iter().find(|(found, _)| *found == role).map(|(_, matrix)| matrix)
    }

    /// A gain or bias, where the family has it.
    pub fn vector(&self, role: Role) -> Option<&D::Buffer> {
        self.vectors.iter().find(|(found, _)| *found == role).map(|(_, vector)| vector)
    }

    /// The matrix that serves a linear layer, and its rows there: all of its own, or some of a fused one.
    ///
    /// # Panics
    /// When the family has no such layer.
    pub fn linear(&self, config: &ModelConfig, layer: usize, role: Role) -> (&D::Weights, Range<usize>) {
        let projection = config.projection(layer, role);
        let matrix =
            self.matrix(projection.stored).expect("loading refuses a base that lacks a tensor of its family");
        (matrix, projection.rows)
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &D::Weights> {
        self.matrices.iter().map(|(_, matrix)| matrix)
    }

    pub(super) fn bytes(&self) -> u64 {
        let vectors = self.vectors.iter().map(|(_, vector)| 4 * vector.len() as u64);
        self.matrices().map(|matrix| matrix.bytes()).sum::<u64>() + vectors.sum::<u64>()
    }
}
