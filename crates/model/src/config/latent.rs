//! Latent attention: its sizes, its tensors' shapes, and where each head's part of a matrix lies.

use std::ops::Range;

use super::{ModelConfig, Projection};
use crate::family::Role;

/// Latent attention: keys and values of all heads are made from one narrow latent, which is all that decoding keeps.
///
/// Letters: L `rank`, P the rotated dimensions of a head, U its others (D = U + P), E `value_dim`.
/// Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latent {
    /// Width of the latent (L).
    pub rank: usize,
    /// Width of a value (E).
    pub value_dim: usize,
    /// Scores of a context that yarn stretched s times are multiplied by (1 + this · ln s)².
    pub log_multiplier: f32,
}

/// Sizes of latent attention, and where each head lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentHeads {
    /// H
    pub n_heads: usize,
    /// L
    pub rank: usize,
    /// U
    pub unrotated: usize,
    /// P
    pub rotated: usize,
    /// E
    pub value: usize,
}

impl LatentHeads {
    /// A head's columns of the keys that are not rotated.
    pub fn key(self, head: usize) -> Range<usize> {
        let start = head * (self.unrotated + self.rotated);
        start..start + self.unrotated
    }

    /// Its columns there that are rotated.
    pub fn rotated_key(self, head: usize) -> Range<usize> {
        let start = self.key(head).end;
        start..start + self.rotated
    }

    /// A head's columns of the values.
    pub fn values(self, head: usize) -> Range<usize> {
        head * self.value..(head + 1) * self.value
    }

    /// A head's rows of the transposed keys' matrix.
    pub fn latent(self, head: usize) -> Range<usize> {
        head * self.rank..(head + 1) * self.rank
    }

    /// A head's keys among the rows of the checkpoint's module, which an adapter widens.
    pub fn module_keys(self, head: usize) -> Projection {
        let start = head * (self.unrotated + self.value);
        Projection { stored: Role::KvB, rows: start..start + self.unrotated }
    }

    /// Its values there.
    pub fn module_values(self, head: usize) -> Projection {
        let start = self.module_keys(head).rows.end;
        Projection { stored: Role::KvB, rows: start..start + self.value }
    }
}

impl ModelConfig {
    /// The heads of latent attention.
    ///
    /// # Panics
    /// In a model of another attention.
    pub fn latent_heads(&self) -> LatentHeads {
        let Latent { rank, value_dim, .. } = self.latent.expect("only latent attention is run as such");
        let (unrotated, rotated) = (self.unrotated_dim(), self.rope.dim);
        LatentHeads { n_heads: self.n_heads, rank, unrotated, rotated, value: value_dim }
    }

    /// Dimensions of a head that are not rotated (U).
    pub fn unrotated_dim(&self) -> usize {
        self.head_dim - self.rope.dim
    }

    /// [`ModelConfig::shape`] of what only latent attention has.
    pub(super) fn latent_shape(&self, role: Role) -> (usize, usize) {
        let Some(Latent { rank: l, value_dim: e, .. }) = self.latent else { return (0, 0) };
        let (h, u, p) = (self.n_heads, self.unrotated_dim(), self.rope.dim);
        match role {
            Role::KvLatent => (l, self.hidden),
            Role::KvRotated => (p, self.hidden),
            Role::KvNorm => (1, l),
            Role::KvB => (h * (u + e), l),
            Role::LatentKeys => (h * l, u),
            Role::LatentValues => (h * e, l),
            _ => (l + p, self.hidden),
        }
    }
}
