//! Layers that are state-space mixers, in decoding: each sequence has a state of fixed size in place of a cache.

use super::sizes::{Part, Sizes};
use super::workspace::Pass;
use crate::Result;
use crate::base::Mixed;
use crate::config::ModelConfig;
use crate::device::{Buffer, Device, Segment, Span, View, Write};
use crate::family::Role;
use crate::lora::Group;

/// What one layer knows of the sequences so far.
struct State<B> {
    /// Rows that its convolution still sees (sequences, k - 1, W).
    window: B,
    /// (sequences, H, P, S)
    state: B,
}

/// Memory of all mixers.
pub(super) struct Mixers<B> {
    states: Vec<State<B>>,
    gate: B,
    raw: B,
    steps: B,
    mixed: B,
    out: B,
    gated: B,
    normed: B,
    spans: Vec<Span>,
    /// Rows of a cache that a sequence would have: where a segment's keys begin tells whose it is.
    positions: usize,
}

impl<B: Buffer> Mixers<B> {
    /// The memory, in a model of mixers.
    pub fn new<D: Device<Buffer = B>>(
        device: &D,
        config: &ModelConfig,
        sizes: &Sizes,
    ) -> Result<Option<Self>> {
        let Some(mixer) = config.mixer else { return Ok(None) };
        let part = |part: Part| device.alloc("decoding workspace", part.len(sizes, config));
        let state = |_| -> Result<_> {
            let window = device.alloc("windows of mixers", sizes.n_sequences() * mixer.window_len())?;
            let state = device.alloc("states of mixers", sizes.n_sequences() * mixer.state_len())?;
            Ok(State { window, state })
        };
        Ok(Some(Mixers {
            states: (0..config.n_layers).map(state).collect::<Result<_>>()?,
            gate: part(Part::Inner)?,
            raw: part(Part::Mixed)?,
            steps: part(Part::Steps)?,
            mixed: part(Part::Mixed)?,
            out: part(Part::Inner)?,
            gated: part(Part::Inner)?,
            normed: part(Part::Inner)?,
            spans: Vec::with_capacity(sizes.n_sequences()),
            positions: sizes.positions,
        }))
    }

    /// Takes up the sequences of a pass.
    pub fn begin(&mut self, segments: &[Segment]) {
        let span = |segment: &Segment| Span {
            first: segment.first_query,
            n: segment.n_queries,
            place: segment.first_key / self.positions,
            begins: segment.n_keys == segment.n_queries,
        };
        self.spans.clear();
        self.spans.extend(segments.iter().map(span));
    }

    /// stream += Wout · norm(silu(z) · scan(conv(xBC), dt)), (z, xBC, dt) = Win · input
    pub fn run<D: Device<Buffer = B>>(
        &mut self,
        pass: Pass<'_, D>,
        index: usize,
        input: View<'_, B>,
        projected: &mut B,
        stream: &mut B,
    ) -> Result<()> {
        let Pass { base, n, .. } = pass;
        let mixer = base.mixer();
        let (inner, mixed, h) = (n * mixer.inner(), n * mixer.mixed(), n * mixer.n_heads);
        pass.project(index, Group::SsmIn, input, projected)?;
        let u = projected.all();
        pass.linear(index, Role::SsmGate, input, u, Write::Set, self.gate.first_mut(inner))?;
        pass.linear(index, Role::SsmMixed, input, u, Write::Set, self.raw.first_mut(mixed))?;
        pass.linear(index, Role::SsmStep, input, u, Write::Set, self.steps.first_mut(h))?;
        let parts = Mixed {
            gate: self.gate.first(inner),
            raw: self.raw.first(mixed),
            steps: self.steps.first(h),
            mixed: &mut self.mixed,
            out: &mut self.out,
            gated: &mut self.gated,
        };
        let State { window, state } = &mut self.states[index];
        base.mix(index, &self.spans, parts, window.all_mut(), state.all_mut())?;
        base.mixer_norm(index, self.gated.first(inner), self.normed.first_mut(inner))?;
        let stream = stream.first_mut(n * base.config.hidden);
        base.linear(index, Role::SsmOut, None, n, self.normed.first(inner), Write::Add, stream)
    }
}
