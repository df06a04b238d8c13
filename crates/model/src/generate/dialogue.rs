//! One text that grows turn by turn: what of it is in the cache already is not read again.
//!
//! A conversation that is rendered anew begins as the one before did, so that a turn costs its own tokens. Where the texts
//! part (a template drops what was thought, a turn is taken back), everything from there on is read again.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::sampler::Sampler;
use super::{Capacity, Generated, Generator, Progress, Request, StopReason};
use crate::Result;
use crate::base::Base;
use crate::device::Device;
use crate::lora::{Adapter, LoraOptions};

/// A generator for one text at a time, which remembers what it has read.
pub struct Dialogue<D: Device> {
    generator: Generator<D>,
    /// Tokens whose keys and values are in the cache.
    read: Vec<u32>,
    /// Whether they were read with the adapter.
    by_adapter: bool,
    /// Of the last prompt.
    n_kept: usize,
}

impl<D: Device> Dialogue<D> {
    /// Draws cache and workspace for `n_tokens` of text, with room for an adapter of `lora`'s shape.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn new(base: Arc<Base<D>>, lora: Option<&LoraOptions>, n_tokens: usize) -> Result<Self> {
        let generator = Generator::new(base, lora, Capacity { n_sequences: 1, n_tokens })?;
        Ok(Self { generator, read: Vec::new(), by_adapter: false, n_kept: 0 })
    }

    /// Tokens of text that it holds.
    pub fn capacity_tokens(&self) -> usize {
        self.generator.capacity().n_tokens
    }

    /// Tokens of the last prompt that were in the cache and were not read again.
    pub fn n_kept(&self) -> usize {
        self.n_kept
    }

    /// Forgets everything that was read; to be called when the adapter's weights have changed.
    pub fn forget(&mut self) {
        self.read.clear();
    }

    /// Continues a prompt; `observer` sees each chunk that is read and each token, and may break off.
    ///
    /// The adapter is the same each time, or none: with the other one everything is read again. An end at the capacity is
    /// [`StopReason::Length`], as is one at `max_new_tokens`.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn generate(
        &mut self,
        adapter: Option<&Adapter<D>>,
        prompt: &[u32],
        request: &Request<'_>,
        observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Generated> {
        self.generator.check_prompt(prompt)?;
        self.keep(adapter, prompt)?;
        let mut ids = Vec::new();
        let room = request.max_new_tokens.min(self.capacity_tokens() - prompt.len());
        if room == 0 {
            return Ok(Generated { ids, reason: StopReason::Length });
        }
        let Some(mut row) = self.read_prompt(adapter, prompt, observer)? else {
            return Ok(Generated { ids, reason: StopReason::Cancelled });
        };
        let mut sampler = Sampler::new(&request.sampler, 0);
        loop {
            let id = sampler.choose(self.logits(row)?);
            if request.stop.contains(&id) {
                return Ok(Generated { ids, reason: StopReason::Stop });
            }
            ids.push(id);
            if observer(Progress::Token { sequence: 0, id }).is_break() {
                return Ok(Generated { ids, reason: StopReason::Cancelled });
            }
            if ids.len() == room {
                return Ok(Generated { ids, reason: StopReason::Length });
            }
            row = self.read_on(adapter, &[id])?;
        }
    }

    /// Keeps of the cache what the prompt begins with, but for its last token, whose logits are wanted.
    fn keep(&mut self, adapter: Option<&Adapter<D>>, prompt: &[u32]) -> Result<()> {
        let is_other = self.by_adapter != adapter.is_some();
        if is_other || self.read.is_empty() {
            self.read.clear();
            self.generator.take_up(adapter)?;
            self.by_adapter = adapter.is_some();
        }
        let common = self.read.iter().zip(prompt).take_while(|(read, new)| read == new).count();
        let mut kept = common.min(prompt.len() - 1);
        // The state of a mixer cannot be taken back to an earlier token.
        if self.generator.base.config.mixer.is_some() && kept < self.read.len() {
            kept = 0;
        }
        self.read.truncate(kept);
        self.n_kept = kept;
        Ok(())
    }

    /// Reads what is new in a prompt; gives the row of its last token, `None` when the observer breaks off.
    fn read_prompt(
        &mut self,
        adapter: Option<&Adapter<D>>,
        prompt: &[u32],
        observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Option<u32>> {
        let (mut row, n_tokens) = (0, prompt.len());
        let chunk = self.generator.workspace.sizes.rows;
        while self.read.len() < n_tokens {
            let first = self.read.len();
            let end = (first + chunk).min(n_tokens);
            row = self.read_on(adapter, &prompt[first..end])?;
            if observer(Progress::Prompt { sequence: 0, n_read: end, n_tokens }).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(row))
    }

    /// Reads tokens after those in the cache; gives the row of the last one.
    fn read_on(&mut self, adapter: Option<&Adapter<D>>, tokens: &[u32]) -> Result<u32> {
        let first = self.read.len();
        // A pass that fails half-way leaves a cache of which nothing is known.
        let before = std::mem::take(&mut self.read);
        self.generator.read_tokens(adapter, first, tokens)?;
        self.read = before;
        self.read.extend_from_slice(tokens);
        Ok(tokens.len() as u32 - 1)
    }

    fn logits(&mut self, row: u32) -> Result<&[f32]> {
        let Generator { base, workspace, logits, .. } = &mut self.generator;
        let logits = &mut logits[..base.config.vocab_size];
        workspace.logits(base, &[row], logits)?;
        Ok(logits)
    }
}
