//! Cross-entropy over tiles of tokens and vocabulary: the (N, V) logits never exist, masked rows cost nothing.
//!
//! Rows without a target are left out before the last norm. Of the others a tile of L rows goes through norm and head,
//! one tile of the vocabulary after the other, into a running softmax. Where the gradient is wanted, each tile's terms
//! exp(logit - max) meet the head's weights while they are there, in a sum that shrinks as the maximum grows, as the
//! output of attention does; the target's part is added at the end, so that p - 1 loses nothing where p is near 1.
//! No logit is made twice. The weight of a target enters where the gradient of its row is scaled anyway.

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
    /// Of each of these rows; empty where all count alike.
    weights: Vec<f32>,
    /// -ln p of each target, as far as the tiles have come.
    nll: Vec<f64>,
    max: Vec<f32>,
    sum: Vec<f32>,
    target_logit: Vec<f32>,
}

impl LossHost {
    pub(crate) fn new(max_tokens: usize, tile_tokens: usize) -> Self {
        Self {
            rows: Vec::with_capacity(max_tokens),
            targets: Vec::with_capacity(max_tokens),
            weights: Vec::with_capacity(max_tokens),
            nll: Vec::with_capacity(max_tokens),
            max: vec![0.0; tile_tokens],
            sum: vec![0.0; tile_tokens],
            target_logit: vec![0.0; tile_tokens],
        }
    }

    /// Lists the rows that bear a loss.
    fn select(&mut self, batch: &Batch<'_>) {
        self.rows.clear();
        self.targets.clear();
        self.weights.clear();
        self.nll.clear();
        for (row, &target) in batch.targets.iter().enumerate() {
            let weight = batch.weights.map(|weights| weights[row]);
            if target != IGNORE && weight != Some(0.0) {
                self.rows.push(row as u32);
                self.targets.push(target);
                self.weights.extend(weight);
            }
        }
    }

    /// The weight of a target by its place among them.
    fn weight(&self, index: usize) -> f32 {
        self.weights.get(index).copied().unwrap_or(1.0)
    }

    /// The loss of each sequence of the batch that was run last.
    pub(crate) fn by_sequence(&self, batch: &Batch<'_>, sums: &mut Vec<LossSum>) {
        sums.clear();
        let mut index = 0;
        for segment in batch.segments() {
            let end = (segment.first_query + segment.n_queries) as u32;
            let first = index;
            index += self.rows[first..].partition_point(|&row| row < end);
            let weights = (first..index).map(|index| f64::from(self.weight(index)));
            let sum_nll =
                weights.clone().zip(&self.nll[first..index]).map(|(weight, nll)| weight * nll).sum();
            sums.push(LossSum { sum_nll, n_targets: index - first, sum_weights: weights.sum() });
        }
    }

    fn sum_weights(&self) -> f64 {
        match self.weights.is_empty() {
            true => self.rows.len() as f64,
            false => self.weights.iter().map(|&weight| f64::from(weight)).sum(),
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
            self.begin(tile, stream)?;
            let Some((scale, d_stream)) = &mut backward else {
                self.forward(tile)?;
                sum_nll += self.sum_nll(tile)?;
                continue;
            };
            self.forward_backward(tile)?;
            sum_nll += self.sum_nll(tile)?;
            self.finish(tile, *scale, d_stream.reborrow())?;
        }
        Ok(LossSum { sum_nll, n_targets, sum_weights: self.host.sum_weights() })
    }

    /// Multiplies the gradient of a batch's stream (N, C) by a factor for each sequence, a tile of rows at a time.
    pub(crate) fn scale_sequences(
        self,
        batch: &Batch<'_>,
        factors: &[f32],
        mut d_stream: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (device, c) = (&self.base.device, self.base.config.hidden);
        let (n, tile_tokens) = (batch.tokens.len(), self.tiles.tile_tokens);
        let lengths = batch.segments().map(|segment| segment.n_queries);
        let mut of_rows =
            factors.iter().zip(lengths).flat_map(|(&factor, len)| std::iter::repeat_n(factor, len));
        for first in (0..n).step_by(tile_tokens) {
            let m = tile_tokens.min(n - first);
            self.host.max[..m].iter_mut().zip(&mut of_rows).for_each(|(to, factor)| *to = factor);
            device.upload(&self.host.max[..m], self.tiles.max.first_mut(m))?;
            let rows = d_stream.reborrow().part(first * c..(first + m) * c);
            device.scale_rows(self.tiles.max.first(m), rows)?;
        }
        Ok(())
    }

    /// The normed rows of `m` targets from the `first`, and a softmax of nothing yet.
    fn begin(&mut self, (first, m): (usize, usize), stream: View<'_, D::Buffer>) -> Result<()> {
        let (device, c) = (&self.base.device, self.base.config.hidden);
        let tiles = &mut *self.tiles;
        let rows = tiles.rows.part(first..first + m);
        device.gather_rows(stream, c, rows, tiles.hidden.first_mut(m * c))?;
        let (hidden, normed) = (tiles.hidden.first(m * c), tiles.normed.first_mut(m * c));
        self.base.norm(None, Role::OutputNorm, hidden, normed)?;
        device.fill(f32::NEG_INFINITY, tiles.max.first_mut(m))?;
        device.fill(0.0, tiles.sum.first_mut(m))?;
        device.fill(0.0, tiles.target_logit.first_mut(m))
    }

    /// Head and running softmax.
    fn forward(&mut self, (first, m): (usize, usize)) -> Result<()> {
        for (row, width) in self.vocabulary() {
            self.logits(row, width, m)?;
            let (device, tiles) = (&self.base.device, &mut *self.tiles);
            let (max, sum, target_logit) =
                (tiles.max.first_mut(m), tiles.sum.first_mut(m), tiles.target_logit.first_mut(m));
            let targets = tiles.targets.part(first..first + m);
            device.softmax_fold(tiles.logits.first(m * width), row, targets, max, sum, target_logit)?;
        }
        Ok(())
    }

    /// The same, with the gradient of the normed rows but for the sum's division and the target.
    fn forward_backward(&mut self, (first, m): (usize, usize)) -> Result<()> {
        let c = self.base.config.hidden;
        let mut write = Write::Set;
        for (row, width) in self.vocabulary() {
            self.logits(row, width, m)?;
            let (device, tiles) = (&self.base.device, &mut *self.tiles);
            let (max, sum, target_logit) =
                (tiles.max.first_mut(m), tiles.sum.first_mut(m), tiles.target_logit.first_mut(m));
            let (targets, shrink) = (tiles.targets.part(first..first + m), tiles.shrink.first_mut(m));
            let logits = tiles.logits.first_mut(m * width);
            device.softmax_fold_terms(logits, row, targets, max, sum, target_logit, shrink)?;
            let d_normed = &mut tiles.d_normed;
            if write == Write::Add {
                device.scale_rows(tiles.shrink.first(m), d_normed.first_mut(m * c))?;
            }
            let (terms, head) = (tiles.logits.first(m * width), self.base.head());
            device.linear_backward(terms, head, row..row + width, write, d_normed.first_mut(m * c))?;
            write = Write::Add;
        }
        Ok(())
    }

    /// First row and width of each tile of the vocabulary.
    fn vocabulary(&self) -> impl Iterator<Item = (usize, usize)> + use<D> {
        let (v, width) = (self.base.config.vocab_size, self.tiles.tile_vocab);
        (0..v.div_ceil(width)).map(move |tile| (tile * width, width.min(v - tile * width)))
    }

    /// logits (m, width) = normed · head[rows]ᵀ
    fn logits(&mut self, row: usize, width: usize, m: usize) -> Result<()> {
        let (device, c) = (&self.base.device, self.base.config.hidden);
        let logits = self.tiles.logits.first_mut(m * width);
        device.linear(self.tiles.normed.first(m * c), self.base.head(), row..row + width, Write::Set, logits)
    }

    /// Σ w · (ln Σ exp(logits) - logit of the target), in f64.
    fn sum_nll(&mut self, (first, m): (usize, usize)) -> Result<f64> {
        let (device, tiles, host) = (&self.base.device, &*self.tiles, &mut *self.host);
        device.download(tiles.max.first(m), &mut host.max[..m])?;
        device.download(tiles.sum.first(m), &mut host.sum[..m])?;
        device.download(tiles.target_logit.first(m), &mut host.target_logit[..m])?;
        let nll =
            |i: usize| f64::from(host.max[i]) + f64::from(host.sum[i]).ln() - f64::from(host.target_logit[i]);
        host.nll.extend((0..m).map(nll));
        Ok((first..first + m).map(|index| f64::from(host.weight(index)) * host.nll[index]).sum())
    }

    /// The gradient of the stream at the targets, from what [`Loss::forward_backward`] and [`Loss::sum_nll`] left.
    fn finish(
        &mut self,
        (first, m): (usize, usize),
        scale: f32,
        d_stream: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (device, c) = (&self.base.device, self.base.config.hidden);
        let (tiles, host) = (&mut *self.tiles, &mut *self.host);
        for i in 0..m {
            let scale = scale * host.weight(first + i);
            let p = (host.target_logit[i] - host.max[i]).exp() / host.sum[i];
            (host.max[i], host.sum[i]) = (scale / host.sum[i], scale * (p - 1.0));
        }
        device.upload(&host.max[..m], tiles.max.first_mut(m))?;
        device.upload(&host.sum[..m], tiles.sum.first_mut(m))?;
        device.scale_rows(tiles.max.first(m), tiles.d_normed.first_mut(m * c))?;
        // The normed rows are used up: their buffer takes the targets' weights, then the gradient before the norm.
        let targets = tiles.targets.part(first..first + m);
        device.embed(self.base.head(), targets, tiles.normed.first_mut(m * c))?;
        let (factors, weights) = (tiles.sum.first(m), tiles.normed.first(m * c));
        device.add_scaled_rows(factors, weights, tiles.d_normed.first_mut(m * c))?;
        let (hidden, d_normed) = (tiles.hidden.first(m * c), tiles.d_normed.first(m * c));
        let d_hidden = tiles.normed.first_mut(m * c);
        self.base.norm_backward(None, Role::OutputNorm, hidden, d_normed, Write::Set, d_hidden)?;
        let rows = tiles.rows.part(first..first + m);
        device.scatter_rows(tiles.normed.first(m * c), c, rows, d_stream)
    }
}
