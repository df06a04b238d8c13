//! The compute buffer: the graph of one piece of a prompt as llama.cpp builds it, laid out as it does.
//!
//! Source: `src/llama-graph.cpp` and `src/models/*.cpp` of llama.cpp as vendored by llama-cpp-sys-2 0.1.160, with the
//! operations in their order. An architecture that is not known is taken for a Llama, with experts where it has them.
//! Letters: T tokens of a piece, C width, F width of the MLP, H heads, D their width, N cells of a cache, V vocabulary.

use super::Head;
use super::context::{Cache, Mixer};
use super::tape::{Tape, Tensor, Writes};
use crate::card::{FlashAttention, KvType};

use Writes::{Anew, InPlace};

/// Bytes of an f32, in which all intermediate results are, of an index into a cache, and of another.
const F32: u64 = 4;
const I64: u64 = 8;
const I32: u64 = 4;

/// The buffer of a pass.
pub(super) struct Graph<'a> {
    cache: Cache<'a>,
    output_rows: u64,
    width: u64,
}

impl<'a> Graph<'a> {
    pub(super) fn new(cache: Cache<'a>, output_rows: u64) -> Self {
        Self { cache, output_rows, width: cache.head.number("embedding_length").unwrap_or(0) }
    }

    /// The whole buffer.
    pub(super) fn peak_bytes(&self) -> u64 {
        let mut pass = Pass::new(self);
        let Some(mixer) = Mixer::of(self.cache.head) else {
            pass.decoder();
            return pass.tape.buffer_bytes();
        };
        pass.mixers(&mixer);
        // Of pieces of 1 and of 2,048 tokens llama.cpp leaves a gap more than this, up to the size of the states.
        pass.tape.buffer_bytes().saturating_add(mixer.state_bytes())
    }

    /// What is handed to a pass: ids, positions, masks, and rows of the embedding.
    pub(super) fn input_bytes(&self) -> u64 {
        let layers = 0..self.cache.head.layers();
        let number = if self.is_flash() { 2 } else { F32 };
        let cells = |windowed: bool| {
            let mut of = layers.clone().filter(|&layer| self.cache.window(layer).is_some() == windowed);
            of.next().map_or(0, |layer| self.cache.cells(layer))
        };
        let masks = if Mixer::of(self.cache.head).is_some() { 0 } else { cells(false) + cells(true) };
        self.cache.piece.saturating_mul(masks.saturating_mul(number).saturating_add(4 * self.width * F32))
    }

    /// What the processor takes beside the buffer: a piece of activations in the type that products want, and logits.
    pub(super) fn scratch_bytes(&self) -> u64 {
        let logits = self.output_rows.saturating_mul(self.cache.head.logit_rows()).saturating_mul(F32);
        let head = self.cache.head;
        let widths = head.tensors().iter().filter_map(|tensor| tensor.shape.first().copied());
        let widest = widths.max().unwrap_or(0);
        self.cache.piece.saturating_mul(widest).saturating_mul(2).saturating_add(logits)
    }

    fn is_flash(&self) -> bool {
        self.cache.load.flash_attention != FlashAttention::Off
    }
}

/// Inputs of attention over one cache.
#[derive(Clone, Copy)]
struct Reads {
    keys_at: Tensor,
    values_at: Option<Tensor>,
    mask: Tensor,
    turned_keys: Option<Tensor>,
    turned_values: Option<Tensor>,
    cells: u64,
}

/// The graph as it grows.
struct Pass<'a> {
    graph: &'a Graph<'a>,
    head: &'a Head,
    tape: Tape,
    /// T
    tokens: u64,
    /// Rows that are still computed: T, of the last layer those that logits are made of.
    rows: u64,
    /// C
    width: u64,
}

impl<'a> Pass<'a> {
    fn new(graph: &'a Graph<'a>) -> Self {
        let tokens = graph.cache.piece;
        Self {
            graph,
            head: graph.cache.head,
            tape: Tape::default(),
            tokens,
            rows: tokens,
            width: graph.width,
        }
    }

    fn is(&self, architecture: &str) -> bool {
        self.head.architecture() == architecture
    }

    fn has(&self, layer: u64, tensor: &str) -> bool {
        self.head.tensor(&format!("blk.{layer}.{tensor}")).is_some()
    }

    /// Rows of a matrix of a layer; 0 where it has none.
    fn rows_of(&self, layer: u64, tensor: &str) -> u64 {
        self.head
            .tensor(&format!("blk.{layer}.{tensor}"))
            .and_then(|tensor| tensor.shape.get(1).copied())
            .unwrap_or(0)
    }

    fn of_rows(&self, width: u64) -> u64 {
        self.rows.saturating_mul(width).saturating_mul(F32)
    }

    /// A matrix product that gives `width` numbers a row.
    fn product(&mut self, x: Tensor, width: u64) -> Tensor {
        self.tape.node(self.of_rows(width), &[x], Anew)
    }

    /// A linear layer: product, and bias where there is one.
    fn linear(&mut self, x: Tensor, layer: u64, name: &str) -> Tensor {
        let width = self.rows_of(layer, &format!("{name}.weight"));
        let y = self.product(x, width);
        let y = self.adapted(x, y, width, &format!("blk.{layer}.{name}.weight"));
        if self.has(layer, &format!("{name}.bias")) { self.changed(y, width) } else { y }
    }

    /// What adapters add to a product: x·Aᵀ of their rank, that times Bᵀ, scaled.
    fn adapted(&mut self, x: Tensor, y: Tensor, width: u64, matrix: &str) -> Tensor {
        let mut sum = y;
        for rank in self.head.ranks(matrix) {
            let low = self.product(x, rank);
            let update = self.product(low, width);
            let scaled = self.changed(update, width);
            sum = self.sum(sum, scaled, width);
        }
        sum
    }

    /// An operation of one operand that keeps its shape and may write over it.
    fn changed(&mut self, x: Tensor, width: u64) -> Tensor {
        self.tape.node(self.of_rows(width), &[x], InPlace)
    }

    fn sum(&mut self, x: Tensor, y: Tensor, width: u64) -> Tensor {
        self.tape.node(self.of_rows(width), &[x, y], InPlace)
    }

    /// A norm with its gain. A LayerNorm is never written over its operand, and has a bias.
    fn norm(&mut self, x: Tensor, width: u64) -> Tensor {
        let is_layer_norm = self.head.has_key("attention.layer_norm_epsilon");
        let writes = if is_layer_norm { Anew } else { InPlace };
        let bytes = self.of_rows(width);
        let scaled = self.tape.node(bytes, &[x], writes);
        let scaled = self.changed(scaled, width);
        if is_layer_norm { self.changed(scaled, width) } else { scaled }
    }

    /// The rows of the embedding: of the three ways to feed a pass all are in the graph, and what the two that are not
    /// used hand over is never read.
    fn embed(&mut self) -> Tensor {
        let (t, row) = (self.tokens, self.tokens * self.width * F32);
        let ids = self.tape.input(t * I32);
        self.tape.input(row);
        let x = self.tape.node(row, &[ids], Anew);
        let (mixed_ids, places, mixed) =
            (self.tape.input(t * I32), self.tape.input(t * I64), self.tape.input(row));
        let looked_up = self.tape.node(row, &[mixed_ids], Anew);
        let copy = self.tape.node(row, &[mixed], Anew);
        self.tape.written(copy, &[looked_up, places, copy]);
        if !self.is("gemma3") && !self.is("gemma2") {
            return x;
        }
        let scales = self.tape.input(t * F32);
        self.tape.node(row, &[x, scales], InPlace)
    }

    fn decoder(&mut self) {
        let mut x = self.embed();
        let positions = self.tape.input(self.tokens * I32);
        let layers = self.head.layers();
        let cache = self.graph.cache;
        let everywhere = (0..layers).find(|&layer| cache.window(layer).is_none());
        let windowed = (0..layers).find(|&layer| cache.window(layer).is_some());
        let everywhere = everywhere.map(|layer| self.reads(layer));
        let windowed = windowed.map(|layer| self.reads(layer));
        let chosen = self.tape.input(self.graph.output_rows * I32);
        for layer in 0..layers {
            let reads = if cache.window(layer).is_some() { windowed } else { everywhere };
            let Some(reads) = reads else { return };
            let attended = if cache.is_latent() {
                self.latent_attention(x, layer, positions, &reads)
            } else {
                self.attention(x, layer, positions, &reads)
            };
            let (mut attended, mut before) = (attended, x);
            if layer + 1 == layers {
                self.rows = self.graph.output_rows;
                let row = self.of_rows(self.width);
                attended = self.tape.node(row, &[attended, chosen], Anew);
                before = self.tape.node(row, &[before, chosen], Anew);
            }
            if self.has(layer, "post_attention_norm.weight") {
                attended = self.norm(attended, self.width);
            }
            let middle = self.sum(attended, before, self.width);
            let normed = self.norm(middle, self.width);
            let mut y = if self.has(layer, "ffn_gate_inp.weight") {
                self.experts(normed, layer)
            } else {
                self.mlp(normed, layer, "")
            };
            if self.has(layer, "post_ffw_norm.weight") {
                y = self.norm(y, self.width);
            }
            x = self.sum(y, middle, self.width);
        }
        self.logits(x);
    }

    fn logits(&mut self, x: Tensor) {
        let normed = self.norm(x, self.width);
        self.tape.keep(normed);
        let rows = self.head.logit_rows();
        let logits = self.product(normed, rows);
        let logits = self.adapted(normed, logits, rows, "output.weight");
        self.tape.keep(logits);
    }

    /// Indices, mask and rotations for the cache of a layer.
    fn reads(&mut self, layer: u64) -> Reads {
        let cache = self.graph.cache;
        let (t, cells) = (self.tokens, cache.cells(layer));
        let is_flash = self.graph.is_flash();
        let keys_at = self.tape.input(t * I64);
        // Values are kept transposed without flash attention, and each number has an index.
        let values = if is_flash { 1 } else { cache.kv_widths().1 };
        let values_at = (!cache.is_latent()).then(|| self.tape.input(t * values * I64));
        let mask = self.tape.input(t * cells * if is_flash { 2 } else { F32 });
        // Keys and values in few bits are turned by a Hadamard matrix before they are rounded.
        let is_turned = |ty: KvType, width: u64| ty.is_quantised() && width.is_multiple_of(64);
        let mut size = 64;
        while cache.key_length().is_multiple_of(2 * size) {
            size *= 2;
        }
        let turned_keys = is_turned(cache.load.kv_type_k, cache.key_length()) && !cache.is_latent();
        let turned_keys = turned_keys.then(|| self.tape.input(size * size * F32));
        let turned_values = is_turned(cache.load.kv_type_v, cache.value_length()) && !cache.is_latent();
        let turned_values = turned_values.then(|| self.tape.input(64 * 64 * F32));
        Reads { keys_at, values_at, mask, turned_keys, turned_values, cells }
    }

    /// Grouped attention: queries, keys and values, rotated; the cache; the output projection.
    fn attention(&mut self, x: Tensor, layer: u64, positions: Tensor, reads: &Reads) -> Tensor {
        let cache = self.graph.cache;
        let queries = cache.heads(layer).saturating_mul(cache.key_length());
        let values = cache.kv_widths().1;
        let normed = self.norm(x, self.width);
        let is_fused = self.has(layer, "attn_qkv.weight");
        let fused = is_fused.then(|| self.linear(normed, layer, "attn_qkv"));
        let q = self.part(fused, normed, layer, "attn_q");
        let q = self.rotated(q, queries, positions, self.has(layer, "attn_q_norm.weight"));
        let q = if self.is("phi3") || self.is("gemma3") { self.changed(q, queries) } else { q };
        let q = self.turned(q, queries, reads.turned_keys);
        // Where there are windows keys come before values.
        let has_windows = (0..self.head.layers()).any(|layer| cache.window(layer).is_some());
        let early = has_windows.then(|| self.keys(fused, normed, layer, positions, reads));
        let v = self.part(fused, normed, layer, "attn_v");
        let v = self.turned(v, values, reads.turned_values);
        let k = early.unwrap_or_else(|| self.keys(fused, normed, layer, positions, reads));
        let stored = self.tape.view(k);
        self.tape.store(&[stored, reads.keys_at]);
        let stored = self.tape.view(v);
        let at = reads.values_at.unwrap_or(reads.keys_at);
        self.tape.store(&[stored, at]);
        let heads = cache.heads(layer);
        let attended = self.attend(q, heads, cache.value_length(), reads, None);
        let attended = self.turned(attended, heads.saturating_mul(cache.value_length()), reads.turned_values);
        self.linear(attended, layer, "attn_output")
    }

    /// Queries, keys or values: rows of the fused matrix, or of one of their own.
    fn part(&mut self, fused: Option<Tensor>, x: Tensor, layer: u64, name: &str) -> Tensor {
        let whole = fused.unwrap_or_else(|| self.linear(x, layer, name));
        self.tape.view(whole)
    }

    fn keys(
        &mut self,
        fused: Option<Tensor>,
        x: Tensor,
        layer: u64,
        positions: Tensor,
        reads: &Reads,
    ) -> Tensor {
        let width = self.graph.cache.kv_widths().0;
        let k = self.part(fused, x, layer, "attn_k");
        let k = self.rotated(k, width, positions, self.has(layer, "attn_k_norm.weight"));
        self.turned(k, width, reads.turned_keys)
    }

    /// The norm of each head, where there is one, and the rotation. A view is not written over.
    fn rotated(&mut self, x: Tensor, width: u64, positions: Tensor, has_norm: bool) -> Tensor {
        let x = if has_norm { self.norm(x, width) } else { x };
        self.tape.node(self.of_rows(width), &[x, positions], InPlace)
    }

    /// The product with a Hadamard matrix, head by head.
    fn turned(&mut self, x: Tensor, width: u64, by: Option<Tensor>) -> Tensor {
        let Some(by) = by else { return x };
        let flat = self.tape.view(x);
        let turned = self.tape.node(self.of_rows(width), &[by, flat], Anew);
        self.tape.view(turned)
    }

    /// Scores and their sum over a cache: in one operation, or with the scores of all heads between. `up` is the width
    /// of the values that are made from an attended latent.
    fn attend(&mut self, q: Tensor, heads: u64, value: u64, reads: &Reads, up: Option<u64>) -> Tensor {
        let q = self.tape.view(q);
        let q = self.tape.view(q);
        let width = heads.saturating_mul(value);
        let is_flash = self.graph.is_flash();
        let y = if is_flash {
            let mut operands = vec![q];
            let (keys, values) = self.graph.cache.kv_widths();
            let cached = [(self.graph.cache.load.kv_type_k, keys), (self.kept_as(up.is_some()), values)];
            // There is no kernel for f32: what is cached so is copied to f16, for each layer.
            for (_, width) in cached.into_iter().filter(|(ty, _)| *ty == KvType::F32) {
                operands.push(self.tape.node(2 * reads.cells.saturating_mul(width), &[], Anew));
            }
            operands.push(reads.mask);
            self.tape.node(self.of_rows(width), &operands, Anew)
        } else {
            self.scored(q, heads, value, reads, up.is_some())
        };
        let Some(up) = up else {
            return if is_flash { self.tape.view(y) } else { self.joined(y, width) };
        };
        let y = if is_flash { self.tape.view(y) } else { y };
        let width = heads.saturating_mul(up);
        let y = self.product(y, width);
        self.joined(y, width)
    }

    /// Type of the cached values, which of a latent are part of the keys.
    fn kept_as(&self, is_latent: bool) -> KvType {
        let load = self.graph.cache.load;
        if is_latent { load.kv_type_k } else { load.kv_type_v }
    }

    /// Without flash attention.
    fn scored(&mut self, q: Tensor, heads: u64, value: u64, reads: &Reads, is_latent: bool) -> Tensor {
        // A latent is not kept transposed, and is copied so.
        let latent = self.graph.cache.load.kv_type_k.bytes(value).saturating_mul(reads.cells);
        let latent = is_latent.then(|| self.tape.node(latent, &[], Anew));
        let scores = self.of_rows(heads.saturating_mul(reads.cells));
        let scored = self.tape.node(scores, &[q], Anew);
        let weighed = self.tape.node(scores, &[scored, reads.mask], InPlace);
        let operands: Vec<Tensor> = latent.into_iter().chain([weighed]).collect();
        self.tape.node(self.of_rows(heads.saturating_mul(value)), &operands, Anew)
    }

    /// The heads of a row, side by side.
    fn joined(&mut self, y: Tensor, width: u64) -> Tensor {
        let permuted = self.tape.view(y);
        self.tape.node(self.of_rows(width), &[permuted], Anew)
    }

    /// Attention over a latent: queries are brought to it, values are made from what was attended.
    fn latent_attention(&mut self, x: Tensor, layer: u64, positions: Tensor, reads: &Reads) -> Tensor {
        let cache = self.graph.cache;
        let number = |key: &str| self.head.number(key).unwrap_or(0);
        let (heads, rank, rotated) =
            (cache.heads(layer), number("attention.kv_lora_rank"), number("rope.dimension_count"));
        let value = number("attention.value_length_mla");
        let normed = self.norm(x, self.width);
        let q = self.linear(normed, layer, "attn_q");
        let q = self.tape.view(q);
        let plain = self.tape.view(q);
        let plain = self.tape.view(plain);
        let brought = self.product(plain, heads.saturating_mul(rank));
        let brought = self.tape.view(brought);
        let turning = self.tape.view(q);
        let turned =
            self.tape.node(self.of_rows(heads.saturating_mul(rotated)), &[turning, positions], InPlace);
        let q = self.tape.node(self.of_rows(heads.saturating_mul(rank + rotated)), &[brought, turned], Anew);
        let shared = self.linear(normed, layer, "attn_kv_a_mqa");
        let latent = self.tape.view(shared);
        let latent = self.norm(latent, rank);
        let latent = self.tape.view(latent);
        let turning = self.tape.view(shared);
        let turned = self.tape.node(self.of_rows(rotated), &[turning, positions], InPlace);
        let k = self.tape.node(self.of_rows(rank + rotated), &[latent, turned], Anew);
        let stored = self.tape.view(k);
        self.tape.store(&[stored, reads.keys_at]);
        let attended = self.attend(q, heads, cache.value_length(), reads, Some(value));
        self.linear(attended, layer, "attn_output")
    }

    /// Gate and up projection, apart or in one matrix, or up alone; down.
    fn mlp(&mut self, x: Tensor, layer: u64, kind: &str) -> Tensor {
        let name = |part: &str| format!("ffn_{part}{kind}");
        let inner = if self.has(layer, &format!("{}.weight", name("gate"))) {
            let gate = self.linear(x, layer, &name("gate"));
            let up = self.linear(x, layer, &name("up"));
            let width = self.rows_of(layer, &format!("{}.weight", name("up")));
            self.tape.node(self.of_rows(width), &[gate, up], Anew)
        } else {
            let width = self.rows_of(layer, &format!("{}.weight", name("up")));
            let up = self.linear(x, layer, &name("up"));
            // Phi-3 has gate and up in one matrix; StarCoder2 has no gate.
            match self.is("phi3") {
                true => self.tape.node(self.of_rows(width / 2), &[up], Anew),
                false => self.changed(up, width),
            }
        };
        self.linear(inner, layer, &name("down"))
    }

    /// Routed experts, those of a token side by side, and the shared ones beside them.
    fn experts(&mut self, x: Tensor, layer: u64) -> Tensor {
        let number = |key: &str| self.head.number(key).unwrap_or(0);
        let (all, used) = (number("expert_count"), number("expert_used_count"));
        let width = self.rows_of(layer, "ffn_up_exps.weight");
        let logits = self.product(x, all);
        let likely = self.changed(logits, all);
        let sorted = self.product(likely, all);
        let chosen = self.tape.view(sorted);
        let flat = self.tape.view(likely);
        let weights = self.tape.node(self.of_rows(used), &[flat, chosen], Anew);
        let scale = self.head.has_key("expert_weights_scale") && !self.head.is_one("expert_weights_scale");
        let weights = if scale { self.changed(weights, used) } else { weights };
        let each = self.tape.view(x);
        let side_by_side = |width: u64| used.saturating_mul(width);
        let gate = self.tape.node(self.of_rows(side_by_side(width)), &[each, chosen], Anew);
        let up = self.tape.node(self.of_rows(side_by_side(width)), &[each, chosen], Anew);
        let inner = self.tape.node(self.of_rows(side_by_side(width)), &[gate, up], Anew);
        let down = self.tape.node(self.of_rows(side_by_side(self.width)), &[inner, chosen], Anew);
        let weighed = self.tape.node(self.of_rows(side_by_side(self.width)), &[down, weights], InPlace);
        let parts: Vec<Tensor> = (0..used).map(|_| self.tape.view(weighed)).collect();
        let mut parts = parts.into_iter();
        let Some(mut y) = parts.next() else { return x };
        for part in parts {
            y = self.sum(y, part, self.width);
        }
        if !self.has(layer, "ffn_up_shexp.weight") {
            return y;
        }
        let shared = self.mlp(x, layer, "_shexp");
        self.sum(y, shared, self.width)
    }

    fn mixers(&mut self, mixer: &Mixer) {
        let mut x = self.embed();
        let copies = self.tape.input(I32);
        let layers = self.head.layers();
        let chosen = self.tape.input(self.graph.output_rows * I32);
        for layer in 0..layers {
            let normed = self.norm(x, self.width);
            let mut y = self.mixer(normed, copies, mixer);
            let mut before = x;
            if layer + 1 == layers {
                self.rows = self.graph.output_rows;
                let row = self.of_rows(self.width);
                y = self.tape.node(row, &[y, chosen], Anew);
                before = self.tape.node(row, &[before, chosen], Anew);
            }
            x = self.sum(y, before, self.width);
        }
        self.logits(x);
    }

    /// A state-space mixer: projection, convolution with what it saw before, scan, gate, norm, projection.
    fn mixer(&mut self, x: Tensor, copies: Tensor, mixer: &Mixer) -> Tensor {
        let (inner, mixed) = (mixer.inner, mixer.mixed);
        let seen = mixer.kernel.saturating_sub(1).saturating_mul(mixed).saturating_mul(F32);
        let gathered = self.tape.node(seen, &[copies], Anew);
        let window = self.tape.view(gathered);
        let extra = self.tape.view(gathered);
        self.tape.store(&[extra]);
        let window = self.tape.view(window);
        let projected = self.product(x, mixer.projected());
        let projected = self.tape.view(projected);
        let through = self.tape.view(projected);
        let through = self.tape.view(through);
        let joined = self.tape.node(seen + self.of_rows(mixed), &[window, through], Anew);
        let last = self.tape.view(joined);
        self.tape.store(&[last]);
        let conv = self.tape.node(self.of_rows(mixed), &[joined], Anew);
        let conv = self.changed(conv, mixed);
        let conv = self.changed(conv, mixed);
        let (scanned, b, c) = (self.tape.view(conv), self.tape.view(conv), self.tape.view(conv));
        let step = self.tape.view(projected);
        let step = self.product(step, mixer.heads);
        let step = self.changed(step, mixer.heads);
        let state = inner.saturating_mul(mixer.state).saturating_mul(F32);
        let y = self.tape.node(self.of_rows(inner) + state, &[scanned, step, b, c, copies], Anew);
        let stored = self.tape.view(y);
        self.tape.store(&[stored]);
        let out = self.tape.view(y);
        let gate = self.tape.view(projected);
        let gate = self.product(gate, inner);
        let skipped = self.product(scanned, inner);
        let sum = self.tape.node(self.of_rows(inner), &[out, skipped], InPlace);
        let gated = self.tape.node(self.of_rows(inner), &[gate, sum], Anew);
        let flat = self.tape.view(gated);
        let normed = self.norm(flat, inner);
        let flat = self.tape.view(normed);
        self.product(flat, self.width)
    }
}
