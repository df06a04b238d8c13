//! Cross-entropy over tiles of tokens and vocabulary: the (N, V) logits never exist, masked rows cost nothing.
//!
//! Rows without a target are left out before the last norm. Of the others a tile of L rows goes through norm and head,
//! one tile of the vocabulary after the other, into a running softmax; the backward pass makes the logits of each
//! tile again (the last one's are still there) and turns them into the gradient of the hidden state at once.

use crate::Result;
use crate::base::Base;
use crate::device::{Buffer, Device, View, ViewMut, Write};
use crate::family::Role;
use crate::step::{Batch, IGNORE, LossSum, LossTiles};

/// Host memory of the loss, drawn once.
#[derive(Debug)]
pub(crate) struct LossHost {
    rows: Vec<u32>,
    targets: Vec<u32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    target_logit: Vec<f32>,
}

impl LossHost {
    pub(crate) fn new(max_tokens: usize, tile_tokens: usize) -> Self {
        Self {
            rows: Vec::with_capacity(max_tokens),
            targets: Vec::with_capacity(max_tokens),
            max: vec![0.0; tile_tokens],
            sum: vec![0.0; tile_tokens],
            target_logit: vec![0.0; tile_tokens],
        }
    }

    /// Lists the rows that bear a loss.
    fn select(&mut self, batch: &Batch<'_>) {
        self.rows.clear();
        self.targets.clear();
        for (row, &target) in batch.targets.iter().enumerate() {
            if target != IGNORE {
                self.rows.push(row as u32);
                self.targets.push(target);
            }
        }
    }
}

/// The last norm, the head and the loss.
pub(crate) struct Loss<'a, D: Device> {
    pub base: &'a Base<D>,
    pub tiles: &'a mut LossTiles<D::Buffer, D::Indices>,
    pub host: &'a mut LossHost,
}

/// Where the gradient goes: the factor on it, and the stream's gradient (N, C).
pub(crate) type Backward<'a, B> = (f32, ViewMut<'a, B>);

impl<D: Device> Loss<'_, D> {
    /// The loss of a batch whose stream after the last layer is `stream` (N, C), and its gradient where wanted.
    pub(crate) fn run(
        mut self,
        batch: &Batch<'_>,
        stream: View<'_, D::Buffer>,
        mut backward: Option<Backward<'_, D::Buffer>>,
    ) -> Result<LossSum> {
        let device = &self.base.device;
        if let Some((_, d_stream)) = &mut backward {
            device.fill(0.0, d_stream.reborrow())?;
        }
        self.host.select(batch);
        let n_targets = self.host.rows.len();
        device.upload_indices(&self.host.rows, self.tiles.rows.first_mut(n_targets))?;
        device.upload_indices(&self.host.targets, self.tiles.targets.first_mut(n_targets))?;
        let mut sum_nll = 0.0;
        for first in (0..n_targets).step_by(self.tiles.tile_tokens) {
            let tile = (first, self.tiles.tile_tokens.min(n_targets - first));
            self.forward(tile, stream)?;
            sum_nll += self.sum_nll(tile.1)?;
            if let Some((scale, d_stream)) = &mut backward {
                self.backward(tile, *scale, d_stream.reborrow())?;
            }
        }
        Ok(LossSum { sum_nll, n_targets })
    }

    /// Norm, head and running softmax of `m` targets from the `first`.
    fn forward(&mut self, (first, m): (usize, usize), stream: View<'_, D::Buffer>) -> Result<()> {
        let (device, c) = (&self.base.device, self.base.config.hidden);
        let tiles = &mut *self.tiles;
        let rows = tiles.rows.part(first..first + m);
        device.gather_rows(stream, c, rows, tiles.hidden.first_mut(m * c))?;
        let (hidden, normed) = (tiles.hidden.first(m * c), tiles.normed.first_mut(m * c));
        self.base.norm(None, Role::OutputNorm, hidden, normed)?;
        device.fill(f32::NEG_INFINITY, tiles.max.first_mut(m))?;
        device.fill(0.0, tiles.sum.first_mut(m))?;
        device.fill(0.0, tiles.target_logit.first_mut(m))?;
        for (row, width) in self.vocabulary() {
            self.logits(row, width, m)?;
            let tiles = &mut *self.tiles;
            let (max, sum, target_logit) =
                (tiles.max.first_mut(m), tiles.sum.first_mut(m), tiles.target_logit.first_mut(m));
            let targets = tiles.targets.part(first..first + m);
            device.softmax_fold(tiles.logits.first(m * width), row, targets, max, sum, target_logit)?;
        }
        Ok(())
    }

    /// First row and width of each tile of the vocabulary.
    fn vocabulary(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + use<D> {
        let (v, width) = (self.base.config.vocab_size, self.tiles.tile_vocab);
        (0..v.div_ceil(width)).map(move |tile| (tile * width, width.min(v - tile * width)))
    }

    /// logits (m, width) = normed · head[rows]ᵀ
    fn logits(&mut self, row: usize, width: usize, m: usize) -> Result<()> {
        let (device, c) = (&self.base.device, self.base.config.hidden);
        let logits = self.tiles.logits.first_mut(m * width);
        device.linear(self.tiles.normed.first(m * c), self.base.head(), row..row + width, Write::Set, logits)
    }

    /// Σ ln Σ exp(logits) - logit of the target, in f64.
    fn sum_nll(&mut self, m: usize) -> Result<f64> {
        let (device, tiles, host) = (&self.base.device, &*self.tiles, &mut *self.host);
        device.download(tiles.max.first(m), &mut host.max[..m])?;
        device.download(tiles.sum.first(m), &mut host.sum[..m])?;
        device.download(tiles.target_logit.first(m), &mut host.target_logit[..m])?;
        let nll =
            |i: usize| f64::from(host.max[i]) + f64::from(host.sum[i]).ln() - f64::from(host.target_logit[i]);
        Ok((0..m).map(nll).sum())
    }

    /// The gradient of the stream at `m` targets from the `first`.
    fn backward(
        &mut self,
        (first, m): (usize, usize),
        scale: f32,
        d_stream: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (device, c) = (&self.base.device, self.base.config.hidden);
        let mut write = Write::Set;
        for (row, width) in self.vocabulary().rev() {
            if write == Write::Add {
                self.logits(row, width, m)?;
            }
            let tiles = &mut *self.tiles;
            let targets = tiles.targets.part(first..first + m);
            let (logits, max, sum) =
                (tiles.logits.first_mut(m * width), tiles.max.first(m), tiles.sum.first(m));
            device.softmax_backward(logits, row, targets, max, sum, scale)?;
            let (d_logits, d_normed) = (tiles.logits.first(m * width), tiles.d_normed.first_mut(m * c));
            device.linear_backward(d_logits, self.base.head(), row..row + width, write, d_normed)?;
            write = Write::Add;
        }
        let tiles = &mut *self.tiles;
        let (hidden, d_normed) = (tiles.hidden.first(m * c), tiles.d_normed.first(m * c));
        // The normed rows are used up: their buffer takes the gradient of the rows before the norm.
        let d_hidden = tiles.normed.first_mut(m * c);
        self.base.norm_backward(None, Role::OutputNorm, hidden, d_normed, Write::Set, d_hidden)?;
        let rows = tiles.rows.part(first..first + m);
        device.scatter_rows(tiles.normed.first(m * c), c, rows, d_stream)
    }
}
