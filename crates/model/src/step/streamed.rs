//! A forward pass over weights that are read layer by layer, for all sequences before the next: the memory of one layer,
//! however large the model.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use formats::TensorSource;

use super::pass::{Pass, rows};
use super::{Batch, IGNORE, StepPlan, TrainStep};
use crate::base::{Base, Weights};
use crate::config::ModelConfig;
use crate::device::{Buffer, Device, Write};
use crate::family::{self, Role, TensorSpec};
use crate::importance::Importance;
use crate::policy::Quant;
use crate::{Error, Result};

/// The pass, whose weights are held in `quant`'s blocks while they are here.
pub struct Streamed<'a, D: Device> {
    step: TrainStep<D>,
    source: &'a dyn TensorSource,
    quant: Quant,
}

/// Sequences that are run together.
#[derive(Default)]
struct Packed {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    starts: Vec<usize>,
    /// (N, C) before the layer that comes next.
    stream: Vec<f32>,
}

/// What the pass's buffers are drawn for: one layer, and those before the first that is like most.
pub(crate) fn one_layer_of(config: &ModelConfig) -> ModelConfig {
    let n_dense = config.experts.map_or(0, |experts| experts.n_dense_layers);
    ModelConfig { n_layers: config.n_layers.min(n_dense + 1), ..config.clone() }
}

impl<'a, D: Device> Streamed<'a, D> {
    /// Draws the memory of one layer's pass over up to `max_tokens` tokens, which bounds a sequence.
    ///
    /// # Errors
    /// As [`Base::load`], for what can be told without reading the layers.
    pub fn new(
        device: &D,
        config: &ModelConfig,
        source: &'a dyn TensorSource,
        quant: Quant,
        max_tokens: usize,
    ) -> Result<Self> {
        let base = Base::without_matrices(&Weights { device, config, source, quant })?;
        let of_one_layer = one_layer_of(config);
        let plan = StepPlan::new(config, max_tokens);
        let step = TrainStep::with_room_for(&of_one_layer, Arc::new(base), None, plan)?;
        Ok(Streamed { step, source, quant })
    }

    /// The streams after the last layer (N, C) of each sequence; `after` is told each layer that is done, and `None` is
    /// returned where it says that this is enough.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] for a sequence that is empty or too long; what reading meets.
    pub fn run(
        &mut self,
        sequences: &[&[u32]],
        importance: Option<&Importance<D>>,
        after: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        let mut batches = self.pack(sequences)?;
        let n_layers = self.step.base.config.n_layers;
        for index in 0..n_layers {
            self.with_base(|base, weights| base.load_layer(weights, index))?;
            for batch in &mut batches {
                self.layer(index, batch, importance)?;
            }
            self.with_base(|base, _| {
                base.drop_layer(index);
                Ok(())
            })?;
            if after(index).is_break() {
                return Ok(None);
            }
        }
        let c = self.step.base.config.hidden;
        let mut found = Vec::with_capacity(sequences.len());
        for Packed { tokens, starts, stream, .. } in &batches {
            let ends = starts[1..].iter().copied().chain([tokens.len()]);
            found.extend(starts.iter().zip(ends).map(|(&start, end)| stream[start * c..end * c].to_vec()));
        }
        Ok(Some(found))
    }

    /// The logits (n, V) that follow from streams after the last layer (n, C), a few rows at a time.
    ///
    /// # Errors
    /// What reading the head meets, which is kept from then on.
    pub fn logits(&mut self, streams: &[f32], each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.with_base(|base, weights| base.load_head(weights))?;
        let (base, tiles) = (&self.step.base, &mut self.step.workspace.loss);
        let (device, c, v) = (&base.device, base.config.hidden, base.config.vocab_size);
        let (mut part, mut logits) = (Vec::new(), Vec::new());
        for (tile, streams) in streams.chunks(tiles.tile_tokens * c).enumerate() {
            let m = streams.len() / c;
            device.upload(streams, tiles.hidden.first_mut(m * c))?;
            let (hidden, normed) = (tiles.hidden.first(m * c), tiles.normed.first_mut(m * c));
            base.norm(None, Role::OutputNorm, hidden, normed)?;
            logits.resize(m * v, 0.0);
            for first in (0..v).step_by(tiles.tile_vocab) {
                let width = tiles.tile_vocab.min(v - first);
                let (normed, to) = (tiles.normed.first(m * c), tiles.logits.first_mut(m * width));
                device.linear(normed, base.head(), first..first + width, Write::Set, to)?;
                part.resize(m * width, 0.0);
                device.download(tiles.logits.first(m * width), &mut part)?;
                for (row, part) in logits.chunks_exact_mut(v).zip(part.chunks_exact(width)) {
                    row[first..first + width].copy_from_slice(part);
                }
            }
            for (row, logits) in logits.chunks_exact(v).enumerate() {
                each(tile * tiles.tile_tokens + row, logits);
            }
        }
        Ok(())
    }

    fn with_base(&mut self, change: impl FnOnce(&mut Base<D>, &Weights<'_, D>) -> Result<()>) -> Result<()> {
        let base = Arc::get_mut(&mut self.step.base).expect("no one else holds this base");
        let (device, config) = (base.device.clone(), base.config.clone());
        change(base, &Weights { device: &device, config: &config, source: self.source, quant: self.quant })
    }

    /// Sequences laid end to end as far as there is room, and their embeddings.
    fn pack(&self, sequences: &[&[u32]]) -> Result<Vec<Packed>> {
        let max_tokens = self.step.plan.max_tokens;
        let mut batches: Vec<Packed> = Vec::new();
        for sequence in sequences {
            let n = sequence.len();
            if n == 0 || n > max_tokens {
                let (found, expected) = (n.to_string(), format!("1 to {max_tokens}"));
                return Err(Error::InvalidBatch { what: "length of a sequence", found, expected });
            }
            if batches.last().is_none_or(|batch| batch.tokens.len() + n > max_tokens) {
                batches.push(Packed::default());
            }
            let batch = batches.last_mut().expect("one was pushed where there was none");
            batch.starts.push(batch.tokens.len());
            batch.tokens.extend_from_slice(sequence);
            batch.positions.extend(0..n as u32);
        }
        let config = &self.step.base.config;
        let specs = family::tensors(config);
        let is_embedding = |spec: &&TensorSpec| spec.role == Role::Embedding;
        let embedding = specs.iter().find(is_embedding).expect("every family has an embedding");
        let mut row = Vec::new();
        for batch in &mut batches {
            for &token in &batch.tokens {
                if token as usize >= config.vocab_size {
                    let (found, expected) = (token.to_string(), format!("below {}", config.vocab_size));
                    return Err(Error::InvalidBatch { what: "token id", found, expected });
                }
                embedding.read_rows(self.source, token as usize..token as usize + 1, &mut row)?;
                batch.stream.extend(row.iter().map(|x| x * config.embedding_scale));
            }
        }
        Ok(batches)
    }

    /// The stream of a batch after a layer that is here.
    fn layer(&mut self, index: usize, batch: &mut Packed, importance: Option<&Importance<D>>) -> Result<()> {
        let Packed { tokens, positions, starts, stream } = batch;
        let (n, c) = (tokens.len(), self.step.base.config.hidden);
        let targets = vec![IGNORE; n];
        let placed = Batch { tokens, targets: &targets, weights: None, positions, sequence_starts: starts };
        self.step.place(&placed)?;
        let TrainStep { base, workspace, segments, spans, .. } = &mut self.step;
        let (streams, set) = (&mut workspace.streams, &mut workspace.activations[0]);
        let (input, output) = streams.around(0);
        base.device.upload(stream, input.first_mut(n * c))?;
        set.forget();
        let pass = Pass {
            base,
            adapter: None,
            norms: None,
            dropout: None,
            importance,
            copy: RefCell::new(&mut workspace.copy),
            n,
            segments,
            spans,
            rotary_rows: workspace.rotary_rows.first(n),
            rotary: &workspace.rotary,
        };
        pass.layer_forward(index, rows(input, c, 0, n), set, workspace.mixer.as_mut(), output)?;
        base.device.download(output.first(n * c), stream)
    }
}
