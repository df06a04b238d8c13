//! Routed experts: an MLP of which each token passes a few parts. All of it is frozen; a gradient only goes through.
//!
//! out_t = Σ_j w_tj · Wdown_e · (act(Wgate_e · h_t) · (Wup_e · h_t)), e = picks_tj, w = scale · softmax(Wrouter · h_t)_e
//!
//! Tokens are sorted by expert, so that each expert's weights are read once for a tile of tokens.
//! Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.2.

use std::ops::Range;

use super::Base;
use crate::Result;
use crate::config::{Experts, ModelConfig};
use crate::device::{Buffer, Device, View, ViewMut, Write};
use crate::family::Role;
use crate::importance::{Importance, Input};

/// What the routed experts of a layer leave for their backward. Letters: T tokens in tiles of M, X experts of width F,
/// k of them a token.
pub(crate) struct ExpertRoom<B, I> {
    /// The router's (T, X), then their gradient.
    logits: B,
    /// (T, X)
    probabilities: B,
    /// w (T, k)
    weights: B,
    /// Its gradient (T, k).
    d_weights: B,
    /// The inputs by expert (T·k, C), then their gradients.
    inputs: B,
    /// (T·k, F)
    gate: B,
    /// (T·k, F)
    up: B,
    /// act(gate) · up of one expert (M, F).
    act: B,
    /// Outputs by expert (T·k, C), then their gradients.
    outputs: B,
    /// (T, k)
    picks: I,
    /// Token of each place (T·k).
    rows: I,
    /// Place of each pick (T, k).
    places: I,
    /// Places of each expert, tile by tile.
    counts: Vec<usize>,
    /// M
    pub tile_tokens: usize,
}

/// Where the gradients of one expert's activations are kept, each (M, F).
pub(crate) struct ExpertDeltas<'a, B> {
    pub act: &'a mut B,
    pub gate: &'a mut B,
    pub up: &'a mut B,
}

/// Elements of the buffers of an [`ExpertRoom`]: of its floats, and of its indices.
pub(crate) struct ExpertLens {
    pub floats: [usize; 9],
    pub indices: [usize; 3],
}

impl ExpertLens {
    /// Room for `n_tokens`, a tile at a time; nothing in models without routed experts.
    pub fn new(config: &ModelConfig, n_tokens: usize, tile_tokens: usize) -> ExpertLens {
        let Some(Experts { routing, width, .. }) = config.experts else {
            return ExpertLens { floats: [0; 9], indices: [0; 3] };
        };
        let (t, picked) = (n_tokens, n_tokens * routing.n_used);
        let (x, c) = (routing.n_experts, config.hidden);
        ExpertLens {
            floats: [
                t * x,
                t * x,
                picked,
                picked,
                picked * c,
                picked * width,
                picked * width,
                tile_tokens.min(n_tokens) * width,
                picked * c,
            ],
            indices: [picked; 3],
        }
    }
}

impl<B, I> ExpertRoom<B, I> {
    /// The room made of buffers of [`ExpertLens`].
    pub fn new(
        config: &ModelConfig,
        n_tokens: usize,
        tile_tokens: usize,
        floats: Vec<B>,
        indices: Vec<I>,
    ) -> Self {
        let wrong = "there is a buffer for each of the lens";
        let floats: [B; 9] = floats.try_into().ok().expect(wrong);
        let [logits, probabilities, weights, d_weights, inputs, gate, up, act, outputs] = floats;
        let [picks, rows, places]: [I; 3] = indices.try_into().ok().expect(wrong);
        let n_experts = config.experts.map_or(0, |experts| experts.routing.n_experts);
        let counts = vec![0; n_experts * n_tokens.div_ceil(tile_tokens)];
        ExpertRoom {
            logits,
            probabilities,
            weights,
            d_weights,
            inputs,
            gate,
            up,
            act,
            outputs,
            picks,
            rows,
            places,
            counts,
            tile_tokens,
        }
    }
}

/// Some consecutive tokens of a room: a tile, or less.
#[derive(Clone, Copy)]
struct Place {
    /// The first one.
    at: usize,
    /// How many.
    n: usize,
    experts: Experts,
}

impl Place {
    /// Elements of a buffer of so many for each token.
    fn of(self, per_token: usize) -> Range<usize> {
        self.at * per_token..(self.at + self.n) * per_token
    }

    /// The same for each pick.
    fn picked(self, per_pick: usize) -> Range<usize> {
        self.of(self.experts.routing.n_used * per_pick)
    }

    fn counts(self, tile_tokens: usize) -> Range<usize> {
        let (tile, x) = (self.at / tile_tokens, self.experts.routing.n_experts);
        tile * x..(tile + 1) * x
    }
}

/// Experts that tokens go to: number, and their places among all.
fn used(counts: &[usize]) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut first = 0;
    counts.iter().enumerate().filter_map(move |(expert, &n)| {
        let places = first..first + n;
        first += n;
        (n > 0).then_some((expert, places))
    })
}

impl<D: Device> Base<D> {
    fn place(&self, at: usize, n: usize) -> Place {
        Place { at, n, experts: self.config.experts.expect("only layers with experts are run as such") }
    }

    /// The outputs of all chosen experts      h (n, C); `at` is the first token's number in the room, where a tile begins
    pub(crate) fn run_experts(
        &self,
        layer: usize,
        n: usize,
        h: View<'_, D::Buffer>,
        at: usize,
        room: &mut ExpertRoom<D::Buffer, D::Indices>,
        importance: Option<&Importance<D>>,
    ) -> Result<()> {
        let (device, c, place) = (&self.device, self.config.hidden, self.place(at, n));
        let Experts { routing, width: f, .. } = place.experts;
        let (x, k) = (routing.n_experts, routing.n_used);
        let router = self.matrix(layer, Role::Router);
        device.linear(h, router, 0..x, Write::Set, room.logits.part_mut(place.of(x)))?;
        let (logits, weights) = (room.logits.part(place.of(x)), room.weights.part_mut(place.of(k)));
        let picks = room.picks.part_mut(place.of(k));
        device.route(routing, logits, room.probabilities.part_mut(place.of(x)), picks, weights)?;
        let counts = &mut room.counts[place.counts(room.tile_tokens)];
        let (rows, places) = (room.rows.part_mut(place.of(k)), room.places.part_mut(place.of(k)));
        device.group_picks(routing, room.picks.part(place.of(k)), rows, places, counts)?;
        let inputs = room.inputs.part_mut(place.picked(c));
        device.gather_rows(h, c, room.rows.part(place.of(k)), inputs)?;
        let first = at * k;
        for (expert, places) in used(counts) {
            let places = first + places.start..first + places.end;
            let of = |width: usize| places.start * width..places.end * width;
            let input = room.inputs.part(of(c));
            let wide = expert * f..(expert + 1) * f;
            let matrix = self.matrix(layer, Role::ExpertGate);
            device.linear(input, matrix, wide.clone(), Write::Set, room.gate.part_mut(of(f)))?;
            let matrix = self.matrix(layer, Role::ExpertUp);
            device.linear(input, matrix, wide, Write::Set, room.up.part_mut(of(f)))?;
            let (gate, up) = (room.gate.part(of(f)), room.up.part(of(f)));
            device.gated(self.config.activation, gate, up, room.act.first_mut(gate.len()))?;
            let matrix = self.matrix(layer, Role::ExpertDown);
            let (act, output) = (room.act.first(places.len() * f), room.outputs.part_mut(of(c)));
            if let Some(importance) = importance {
                importance.add(layer, Input::Expert, expert, input)?;
                importance.add(layer, Input::ExpertDown, expert, act)?;
            }
            device.linear(act, matrix, expert * c..(expert + 1) * c, Write::Set, output)?;
        }
        Ok(())
    }

    /// out += what [`Base::run_experts`] left, weighted      out (n, C)
    pub(crate) fn join_experts(
        &self,
        n: usize,
        at: usize,
        room: &ExpertRoom<D::Buffer, D::Indices>,
        out: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (c, place) = (self.config.hidden, self.place(at, n));
        let Experts { routing, .. } = place.experts;
        let k = routing.n_used;
        let (places, weights) = (room.places.part(place.of(k)), room.weights.part(place.of(k)));
        let outputs = room.outputs.part(place.picked(c));
        self.device.combine_experts(routing, outputs, places, Some(weights), Write::Add, out)
    }

    /// dh += the gradient of [`Base::run_experts`]'s input, from that of what was joined      d_out, d_h (n, C)
    ///
    /// Uses up what the room holds of these tokens.
    pub(crate) fn experts_backward(
        &self,
        layer: usize,
        (n, at): (usize, usize),
        room: &mut ExpertRoom<D::Buffer, D::Indices>,
        deltas: ExpertDeltas<'_, D::Buffer>,
        d_out: View<'_, D::Buffer>,
        mut d_h: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (device, c, place) = (&self.device, self.config.hidden, self.place(at, n));
        let Experts { routing, width: f, .. } = place.experts;
        let (x, k) = (routing.n_experts, routing.n_used);
        let (places, weights) = (room.places.part(place.of(k)), room.weights.part(place.of(k)));
        let outputs = room.outputs.part_mut(place.picked(c));
        let d_weights = room.d_weights.part_mut(place.of(k));
        device.combine_experts_backward(routing, outputs, places, weights, d_out, d_weights)?;
        let (picks, d_weights) = (room.picks.part(place.of(k)), room.d_weights.part(place.of(k)));
        let (probabilities, d_logits) =
            (room.probabilities.part(place.of(x)), room.logits.part_mut(place.of(x)));
        device.route_backward(routing, probabilities, picks, d_weights, Write::Set, d_logits)?;

        let first = at * k;
        for (expert, places) in used(&room.counts[place.counts(room.tile_tokens)]) {
            let places = first + places.start..first + places.end;
            let of = |width: usize| places.start * width..places.end * width;
            let (wide, len) = (expert * f..(expert + 1) * f, places.len() * f);
            let matrix = self.matrix(layer, Role::ExpertDown);
            let (d_output, d_act) = (room.outputs.part(of(c)), deltas.act.first_mut(len));
            device.linear_backward(d_output, matrix, expert * c..(expert + 1) * c, Write::Set, d_act)?;
            let (gate, up, d_act) = (room.gate.part(of(f)), room.up.part(of(f)), deltas.act.first(len));
            let (d_gate, d_up) = (deltas.gate.first_mut(len), deltas.up.first_mut(len));
            device.gated_backward(self.config.activation, gate, up, d_act, d_gate, d_up)?;
            let matrix = self.matrix(layer, Role::ExpertGate);
            let d_input = room.inputs.part_mut(of(c));
            device.linear_backward(deltas.gate.first(len), matrix, wide.clone(), Write::Set, d_input)?;
            let matrix = self.matrix(layer, Role::ExpertUp);
            let d_input = room.inputs.part_mut(of(c));
            device.linear_backward(deltas.up.first(len), matrix, wide, Write::Add, d_input)?;
        }
        let (d_inputs, places) = (room.inputs.part(place.picked(c)), room.places.part(place.of(k)));
        device.combine_experts(routing, d_inputs, places, None, Write::Add, d_h.reborrow())?;
        let router = self.matrix(layer, Role::Router);
        device.linear_backward(room.logits.part(place.of(x)), router, 0..x, Write::Add, d_h)
    }
}
