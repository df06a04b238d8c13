//! Decoding with a key-value cache, or states of mixers, on the quantised base, with or without an adapter.
//!
//! Several sequences decode side by side: one forward pass reads, of every sequence, what is new in it, be it one
//! token or a chunk of a prompt. A sequence that ends gives its place to the next prompt.

mod dialogue;
mod latent;
mod mixer;
mod sampler;
mod schedule;
mod sizes;
mod workspace;

pub use dialogue::Dialogue;
pub use sampler::{Sampler, SamplerOptions};

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::base::Base;
use crate::config::ModelConfig;
use crate::device::{Device, Segment};
use crate::lora::{Adapter, Layout, LoraOptions, RowNorms, row_norms_bytes};
use crate::step::LossSum;
use crate::{Error, Result};
use schedule::{Lane, Schedule};
use sizes::Sizes;
use workspace::{Adapted, Row, Workspace};

/// How much a [`Generator`] can hold at once; all of its memory follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Sequences that decode side by side.
    pub n_sequences: usize,
    /// Prompt and generated tokens of each.
    pub n_tokens: usize,
}

/// What the tokens of a generation are chosen by, and when it ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request<'a> {
    /// Any of these tokens ends the text.
    pub stop: &'a [u32],
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Tokens to generate at most; the capacity may end it earlier.
    pub max_new_tokens: usize,
}

/// What happens while generating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A chunk of a prompt was read.
    Prompt {
        /// Number of the prompt in the batch.
        sequence: usize,
        /// Its tokens that are read.
        n_read: usize,
        /// Its tokens.
        n_tokens: usize,
    },
    /// A token was chosen that is part of the text.
    Token {
        /// Number of the prompt in the batch.
        sequence: usize,
        /// The token.
        id: u32,
    },
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A stop token was chosen; it is not part of the ids.
    Stop,
    /// As many tokens as asked for, or as the capacity allows.
    Length,
    /// The observer broke off.
    Cancelled,
}

/// A generated sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens, without the prompt and without the stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
}

/// Decodes on a base, with memory drawn once.
pub struct Generator<D: Device> {
    base: Arc<Base<D>>,
    capacity: Capacity,
    norms: Option<RowNorms<D>>,
    workspace: Workspace<D>,
    rows: Vec<Row>,
    segments: Vec<Segment>,
    logits: Vec<f32>,
}

/// Bytes that a [`Generator`] draws: cache, and everything else.
pub fn generator_bytes(config: &ModelConfig, lora: Option<&LoraOptions>, capacity: Capacity) -> (u64, u64) {
    let sizes = Sizes::new(capacity, lora_width(config, lora));
    let norms = lora.map_or(0, |lora| row_norms_bytes(config, lora));
    (sizes.cache_bytes(config), sizes.workspace_bytes(config) + norms)
}

/// Columns of the widest x·Aᵀ.
fn lora_width(config: &ModelConfig, lora: Option<&LoraOptions>) -> usize {
    lora.map_or(0, |lora| Layout::new(config, lora).widths(lora).widest())
}

impl<D: Device> Generator<D> {
    /// Draws cache and workspace, with room for adapters of `lora`'s shape.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::InvalidBatch`] for a capacity of nothing.
    pub fn new(base: Arc<Base<D>>, lora: Option<&LoraOptions>, capacity: Capacity) -> Result<Self> {
        if capacity.n_sequences == 0 || capacity.n_tokens == 0 {
            let (what, expected) = ("capacity", "at least one sequence of one token".to_owned());
            return Err(Error::InvalidBatch { what, found: format!("{capacity:?}"), expected });
        }
        let sizes = Sizes::new(capacity, lora_width(&base.config, lora));
        let norms = lora.filter(|lora| lora.dora).map(|lora| RowNorms::new(&base, lora)).transpose()?;
        let workspace = Workspace::new(&base.device, &base.config, sizes)?;
        let logits = vec![0.0; capacity.n_sequences * base.config.vocab_size];
        Ok(Generator { base, capacity, norms, workspace, rows: Vec::new(), segments: Vec::new(), logits })
    }

    /// The base it decodes on.
    pub fn base(&self) -> &Arc<Base<D>> {
        &self.base
    }

    /// What it can hold at once.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Continues one prompt; `observer` sees each chunk and each token, and may break off.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] for a prompt that is empty, over-long or of unknown tokens.
    pub fn generate(
        &mut self,
        adapter: Option<&Adapter<D>>,
        prompt: &[u32],
        request: &Request<'_>,
        observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let mut generated = self.generate_batch(adapter, &[prompt], request, observer)?;
        Ok(generated.remove(0))
    }

    /// Continues several prompts; as many as the capacity holds decode side by side.
    ///
    /// The result is in the order of the prompts. Each sequence draws its own random numbers, so that sampled texts
    /// do not depend on who decodes beside them (but for rounding, which may differ with the number of rows).
    ///
    /// # Errors
    /// As [`Generator::generate`]; nothing was generated then.
    pub fn generate_batch<P: AsRef<[u32]>>(
        &mut self,
        adapter: Option<&Adapter<D>>,
        prompts: &[P],
        request: &Request<'_>,
        observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>> {
        prompts.iter().try_for_each(|prompt| self.check_prompt(prompt.as_ref()))?;
        self.take_up(adapter)?;
        let prompts = prompts.iter().map(|prompt| prompt.as_ref()).collect();
        let mut schedule = Schedule::new(prompts, request, self.capacity, self.workspace.sizes.rows);
        while schedule.fill_lanes() {
            self.read_lanes(adapter, &mut schedule)?;
            if self.choose_tokens(&mut schedule, observer)?.is_break() {
                break;
            }
        }
        Ok(schedule.finish())
    }

    /// One forward pass over what is new in each lane.
    fn read_lanes(&mut self, adapter: Option<&Adapter<D>>, schedule: &mut Schedule<'_>) -> Result<()> {
        self.rows.clear();
        self.segments.clear();
        schedule.next_pass(&mut self.rows, &mut self.segments);
        let adapted = Adapted { adapter, norms: self.norms.as_ref() };
        self.workspace.read(&self.base, adapted, &self.rows, &self.segments)
    }

    /// Chooses a token for each lane whose text is read to its end, and reports.
    fn choose_tokens(
        &mut self,
        schedule: &mut Schedule<'_>,
        observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let v = self.base.config.vocab_size;
        let rows = schedule.logit_rows();
        let logits = &mut self.logits[..rows.len() * v];
        if !rows.is_empty() {
            self.workspace.logits(&self.base, rows, logits)?;
        }
        Ok(schedule.choose(logits, v, observer))
    }

    /// Σ -ln p(token | those before it) over all tokens of a sequence but the first.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn score(&mut self, adapter: Option<&Adapter<D>>, tokens: &[u32]) -> Result<LossSum> {
        let all = vec![1.0; tokens.len()];
        let sum = self.score_targets(adapter, tokens, &all, &mut || ControlFlow::Continue(()))?;
        Ok(sum.unwrap_or_default())
    }

    /// Σ -w·ln p(token | those before it) over those tokens but the first whose weight is above 0; `None` when `go_on`, asked
    /// before every chunk, breaks off.
    ///
    /// # Errors
    /// As [`Generator::generate`]; [`Error::InvalidBatch`] when there is not one weight a token.
    pub fn score_targets(
        &mut self,
        adapter: Option<&Adapter<D>>,
        tokens: &[u32],
        weights: &[f32],
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Option<LossSum>> {
        self.check_prompt(tokens)?;
        if weights.len() != tokens.len() {
            let (what, found) = ("number of weights", weights.len().to_string());
            return Err(Error::InvalidBatch { what, found, expected: tokens.len().to_string() });
        }
        self.take_up(adapter)?;
        let mut sum = LossSum::default();
        let (mut rows, mut targets, mut of_targets) = (Vec::new(), Vec::new(), Vec::new());
        // What follows the last target predicts nothing that counts.
        let n_inputs = weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0);
        for chunk in self.chunks(n_inputs) {
            if go_on().is_break() {
                return Ok(None);
            }
            self.read_chunk(adapter, tokens, chunk.clone())?;
            rows.clear();
            targets.clear();
            of_targets.clear();
            for at in chunk.clone().filter(|at| weights[at + 1] > 0.0) {
                rows.push((at - chunk.start) as u32);
                targets.push(tokens[at + 1]);
                of_targets.push(weights[at + 1]);
            }
            sum += LossSum {
                sum_nll: self.workspace.sum_nll(&self.base, &rows, &targets, &of_targets)?,
                n_targets: targets.len(),
                sum_weights: of_targets.iter().map(|&weight| f64::from(weight)).sum(),
            };
        }
        Ok(Some(sum))
    }

    /// The logits (V) after each token of a sequence, handed to `each` with the token's index, first to last.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn logits(
        &mut self,
        adapter: Option<&Adapter<D>>,
        tokens: &[u32],
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.check_prompt(tokens)?;
        self.take_up(adapter)?;
        let v = self.base.config.vocab_size;
        for chunk in self.chunks(tokens.len()) {
            self.read_chunk(adapter, tokens, chunk.clone())?;
            for index in chunk.clone() {
                let logits = &mut self.logits[..v];
                self.workspace.logits(&self.base, &[(index - chunk.start) as u32], logits)?;
                each(index, logits);
            }
        }
        Ok(())
    }

    /// The parts in which a sequence of `n` tokens is read.
    fn chunks(&self, n: usize) -> impl Iterator<Item = Range<usize>> + use<D> {
        let chunk = self.workspace.sizes.rows;
        (0..n).step_by(chunk).map(move |first| first..(first + chunk).min(n))
    }

    fn read_chunk(
        &mut self,
        adapter: Option<&Adapter<D>>,
        tokens: &[u32],
        chunk: Range<usize>,
    ) -> Result<()> {
        self.read_tokens(adapter, chunk.start, &tokens[chunk])
    }

    /// Reads tokens from position `first` on of the sequence in the first place.
    fn read_tokens(&mut self, adapter: Option<&Adapter<D>>, first: usize, tokens: &[u32]) -> Result<()> {
        let (rows, segment) = Lane::pass(0, self.capacity, first, tokens);
        self.rows.clear();
        self.rows.extend(rows);
        let adapted = Adapted { adapter, norms: self.norms.as_ref() };
        self.workspace.read(&self.base, adapted, &self.rows, &[segment])
    }

    fn check_prompt(&self, prompt: &[u32]) -> Result<()> {
        let invalid = |what, found: usize, expected: String| {
            Err(Error::InvalidBatch { what, found: found.to_string(), expected })
        };
        let (n, limit, v) = (prompt.len(), self.capacity.n_tokens, self.base.config.vocab_size);
        if n == 0 || n > limit {
            return invalid("number of prompt tokens", n, format!("1 to {limit}"));
        }
        if let Some(&id) = prompt.iter().find(|&&id| id as usize >= v) {
            return invalid("token id", id as usize, format!("below {v}"));
        }
        Ok(())
    }

    /// Checks that there is room for an adapter, and with DoRA measures the rows that it makes.
    fn take_up(&mut self, adapter: Option<&Adapter<D>>) -> Result<()> {
        let Some(adapter) = adapter else { return Ok(()) };
        let (width, room) =
            (adapter.layout().widths(adapter.options()).widest(), self.workspace.sizes.lora_width);
        if width > room || adapter.options().dora != self.norms.is_some() {
            let (what, found) = ("adapter shape".to_owned(), format!("{width} columns"));
            let expected = format!("at most {room}, and DoRA as the generator was built for");
            return Err(Error::InvalidAdapter { what, found, expected });
        }
        match &mut self.norms {
            Some(norms) => norms.refresh(&self.base, adapter),
            None => Ok(()),
        }
    }
}
