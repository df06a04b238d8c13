//! Who decodes when: prompts wait, lanes hold a sequence each, a pass reads what is new in every lane.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::sampler::Sampler;
use super::workspace::Row;
use super::{Capacity, Generated, Progress, Request, StopReason};
use crate::device::Segment;

/// A place in the cache and the sequence that has it.
pub(super) struct Lane {
    /// Number of the place.
    slot: usize,
    /// Number of the prompt.
    sequence: usize,
    /// Prompt and what was generated.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens whose keys and values are in the cache.
    n_read: usize,
    sampler: Sampler,
}

impl Lane {
    /// Rows of consecutive tokens from position `first` on in the place `slot`, and how attention sees them.
    ///
    /// The segment's queries start at row 0.
    pub fn pass(
        slot: usize,
        capacity: Capacity,
        first: usize,
        tokens: &[u32],
    ) -> (impl Iterator<Item = Row>, Segment) {
        let first_key = slot * capacity.n_tokens;
        let row = move |(i, &token): (usize, &u32)| {
            let position = first + i;
            Row { token, position: position as u32, cache_row: (first_key + position) as u32 }
        };
        let n_queries = tokens.len();
        let segment = Segment { first_query: 0, n_queries, first_key, n_keys: first + n_queries };
        (tokens.iter().enumerate().map(row), segment)
    }

    /// Adds the next token, or notes that the sequence ended.
    fn choose(
        &mut self,
        logits: &[f32],
        request: &Request<'_>,
        capacity: Capacity,
        index: usize,
        ended: &mut Vec<(usize, StopReason)>,
        observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let id = self.sampler.choose(logits);
        if request.stop.contains(&id) {
            ended.push((index, StopReason::Stop));
            return ControlFlow::Continue(());
        }
        self.tokens.push(id);
        let n_new = self.tokens.len() - self.prompt_len;
        if n_new == request.max_new_tokens || self.tokens.len() == capacity.n_tokens {
            ended.push((index, StopReason::Length));
        }
        observer(Progress::Token { sequence: self.sequence, id })
    }

    fn is_reading_prompt(&self) -> bool {
        self.tokens.len() == self.prompt_len
    }
}

/// All prompts of a batch: waiting, decoding, done.
pub(super) struct Schedule<'a> {
    prompts: Vec<&'a [u32]>,
    request: &'a Request<'a>,
    capacity: Capacity,
    /// Rows of one pass at most.
    max_rows: usize,
    waiting: VecDeque<usize>,
    /// In the order of their places.
    lanes: Vec<Lane>,
    free_slots: Vec<usize>,
    done: Vec<Option<Generated>>,
    /// Lanes that the last pass advanced.
    advanced: Vec<usize>,
    logit_rows: Vec<u32>,
}

impl<'a> Schedule<'a> {
    pub fn new(
        prompts: Vec<&'a [u32]>,
        request: &'a Request<'a>,
        capacity: Capacity,
        max_rows: usize,
    ) -> Self {
        Schedule {
            request,
            capacity,
            max_rows,
            waiting: (0..prompts.len()).collect(),
            lanes: Vec::new(),
            free_slots: (0..capacity.n_sequences).rev().collect(),
            done: vec![None; prompts.len()],
            advanced: Vec::new(),
            logit_rows: Vec::new(),
            prompts,
        }
    }

    /// Gives free places to waiting prompts; false when nothing is left to do.
    pub fn fill_lanes(&mut self) -> bool {
        while !self.waiting.is_empty() {
            let Some(slot) = self.free_slots.pop() else { break };
            let Some(sequence) = self.waiting.pop_front() else { break };
            let prompt = self.prompts[sequence];
            if prompt.len() == self.capacity.n_tokens || self.request.max_new_tokens == 0 {
                self.done[sequence] = Some(Generated { ids: Vec::new(), reason: StopReason::Length });
                self.free_slots.push(slot);
                continue;
            }
            let room = self.request.max_new_tokens.min(self.capacity.n_tokens - prompt.len());
            let mut tokens = Vec::with_capacity(prompt.len() + room);
            tokens.extend_from_slice(prompt);
            let sampler = Sampler::new(&self.request.sampler, sequence as u64);
            self.lanes.push(Lane { slot, sequence, prompt_len: prompt.len(), tokens, n_read: 0, sampler });
        }
        self.lanes.sort_unstable_by_key(|lane| lane.slot);
        !self.lanes.is_empty()
    }

    /// The rows and segments of the next pass, in the order of places in the cache.
    ///
    /// A lane that decodes needs one row and gets it first, so that a long prompt does not hold up the others;
    /// prompts share what room is left.
    pub fn next_pass(&mut self, rows: &mut Vec<Row>, segments: &mut Vec<Segment>) {
        self.advanced.clear();
        self.logit_rows.clear();
        let n_decoding = self.lanes.iter().filter(|lane| !lane.is_reading_prompt()).count();
        let mut prompt_room = self.max_rows - n_decoding;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let n = if lane.is_reading_prompt() {
                let n = (lane.tokens.len() - lane.n_read).min(prompt_room);
                prompt_room -= n;
                n
            } else {
                1
            };
            if n == 0 {
                continue;
            }
            let new = &lane.tokens[lane.n_read..lane.n_read + n];
            let (lane_rows, segment) = Lane::pass(lane.slot, self.capacity, lane.n_read, new);
            segments.push(Segment { first_query: rows.len(), ..segment });
            rows.extend(lane_rows);
            lane.n_read += n;
            self.advanced.push(index);
            if lane.n_read == lane.tokens.len() {
                self.logit_rows.push(rows.len() as u32 - 1);
            }
        }
    }

    /// The rows of the last pass that end a lane's text.
    pub fn logit_rows(&self) -> &[u32] {
        &self.logit_rows
    }

    /// Chooses the next token of each lane that the pass read to its end; logits in the order of
    /// [`Schedule::logit_rows`].
    pub fn choose(
        &mut self,
        logits: &[f32],
        vocab_size: usize,
        observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut logits = logits.chunks_exact(vocab_size);
        let mut ended = Vec::new();
        let mut flow = ControlFlow::Continue(());
        for &index in &self.advanced {
            let lane = &mut self.lanes[index];
            if lane.is_reading_prompt() {
                let (sequence, n_read, n_tokens) = (lane.sequence, lane.n_read, lane.prompt_len);
                flow = observer(Progress::Prompt { sequence, n_read, n_tokens });
            }
            if flow.is_continue() && lane.n_read == lane.tokens.len() {
                let Some(logits) = logits.next() else { break };
                flow = lane.choose(logits, self.request, self.capacity, index, &mut ended, observer);
            }
            if flow.is_break() {
                break;
            }
        }
        self.end(ended);
        flow
    }

    fn end(&mut self, mut ended: Vec<(usize, StopReason)>) {
        ended.sort_unstable_by_key(|&(index, _)| std::cmp::Reverse(index));
        for (index, reason) in ended {
            let lane = self.lanes.remove(index);
            self.free_slots.push(lane.slot);
            let ids = lane.tokens[lane.prompt_len..].to_vec();
            self.done[lane.sequence] = Some(Generated { ids, reason });
        }
    }

    /// The result in the order of the prompts; what did not end was cancelled.
    pub fn finish(mut self) -> Vec<Generated> {
        for lane in self.lanes {
            let ids = lane.tokens[lane.prompt_len..].to_vec();
            self.done[lane.sequence] = Some(Generated { ids, reason: StopReason::Cancelled });
        }
        let cancelled = || Generated { ids: Vec::new(), reason: StopReason::Cancelled };
        self.done.into_iter().map(|done| done.unwrap_or_else(cancelled)).collect()
    }
}
