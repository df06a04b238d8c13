//! What an expert takes in memory, before it is loaded: from the head of its file, or from a published configuration.
//!
//! GiB = weights + context + compute + overhead, on the graphics card and in main memory
//!
//! Weights and context are exact to the byte for the architectures of [`Head::is_known`]; the compute buffer is never
//! less than llama.cpp's and at most [`COMPUTE_ERROR`] more. Both are compared with llama.cpp's own figures in
//! `tests/budget.rs`, for whole published models through its simulated allocation. A card was not at hand: which
//! tensors llama.cpp puts on one is read from its source, the overhead there is what [`CARD_OVERHEAD_BYTES`] says.

mod compute;
mod context;
mod fit;
mod head;
mod planned;
mod tape;

use serde::{Deserialize, Serialize};

pub(crate) use fit::size;
pub use fit::{Remedy, fits, remedies};
pub use head::{Head, HeadTensor};
pub use planned::Planned;

use self::compute::Graph;
use self::context::{CONTEXT_STEP, Cache};
use crate::card::LoadOptions;
use crate::engine::ExpertMemory;
use crate::memory::MemoryState;

/// The compute buffer that is planned is at most so much more than the one that llama.cpp allocates, of it. Of all that was
/// compared only Phi-4 with logits of every row differs at all, by 1.4 %, and mixers, by the states of a layer.
pub const COMPUTE_ERROR: f64 = 0.02;

/// The driver's context, libraries and scratch of a process on a graphics card: 0.1 to 0.55 GiB by driver and card.
pub const CARD_OVERHEAD_BYTES: u64 = 300 << 20;

/// Main memory of the engine and of both readings of a vocabulary (llama.cpp's and the text layer's), for each token.
/// An estimate from what each keeps for a token (texts, maps both ways, merges), on the high side; not measured yet.
const VOCABULARY_BYTES: u64 = 900;

/// What the program takes with no expert loaded; an estimate on the high side.
const PROGRAM_BYTES: u64 = 24 << 20;

/// Where an expert is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In main memory, on the processor.
    Main,
    /// On a graphics card, as far as its card (`num_gpu`) says.
    Card,
}

/// Memory there is; `None` where nobody knows, which is not held against an expert.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Available {
    /// On the graphics cards together.
    pub card_bytes: Option<u64>,
    /// In main memory.
    pub main_bytes: Option<u64>,
}

impl Available {
    /// What is free now.
    pub fn now(memory: &MemoryState) -> Self {
        let cards = memory.devices.iter().map(|device| device.free_bytes).sum();
        Self {
            card_bytes: (!memory.devices.is_empty()).then_some(cards),
            main_bytes: (memory.total_bytes > 0).then_some(memory.free_bytes),
        }
    }
}

/// What an expert takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Tokens of context, as llama.cpp rounds them.
    pub context_tokens: u64,
    /// On the graphics card; nothing where there is none.
    pub card: Share,
    /// In main memory.
    pub main: Share,
    /// Whether the architecture is one whose figures were compared with llama.cpp's.
    pub is_known: bool,
}

/// What an expert takes in one memory, by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The weights, those of adapters included.
    pub weights_bytes: u64,
    /// Keys and values, latents or states.
    pub context_bytes: u64,
    /// Intermediate results.
    pub compute_bytes: u64,
    /// Vocabulary, buffers and the driver's own.
    pub overhead_bytes: u64,
}

impl Share {
    /// All parts.
    pub fn total_bytes(&self) -> u64 {
        let parts = [self.weights_bytes, self.context_bytes, self.compute_bytes, self.overhead_bytes];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Both, part by part.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            weights_bytes: self.weights_bytes.saturating_add(other.weights_bytes),
            context_bytes: self.context_bytes.saturating_add(other.context_bytes),
            compute_bytes: self.compute_bytes.saturating_add(other.compute_bytes),
            overhead_bytes: self.overhead_bytes.saturating_add(other.overhead_bytes),
        }
    }
}

impl Budget {
    /// What takes the memory that the expert runs in.
    pub fn share(&self, place: Place) -> &Share {
        match place {
            Place::Main => &self.main,
            Place::Card => &self.card,
        }
    }

    /// Both memories together, without overhead: what an engine reports once it has loaded.
    pub fn memory(&self) -> ExpertMemory {
        let sum = |part: fn(&Share) -> u64| part(&self.card).saturating_add(part(&self.main));
        ExpertMemory {
            weights_bytes: sum(|share| share.weights_bytes),
            context_bytes: sum(|share| share.context_bytes),
            compute_bytes: sum(|share| share.compute_bytes),
        }
    }
}

/// What an expert of that head takes under these options.
///
/// `num_ctx` 0 means, as in a card, the smaller of 4096 and what the model was trained on.
pub fn budget(head: &Head, load: &LoadOptions, place: Place) -> Budget {
    with_outputs(head, load, place, 1)
}

/// The same, where a piece may give so many rows of logits: all of them, as a comparison of files needs, or one.
pub fn with_outputs(head: &Head, load: &LoadOptions, place: Place, output_rows: u64) -> Budget {
    let asked = u64::from(asked_context(head, load));
    let cache = Cache {
        head,
        load,
        context: asked.next_multiple_of(CONTEXT_STEP),
        piece: u64::from(load.num_batch).clamp(1, asked.max(1)),
    };
    let split = Split::new(head, load, place);
    let mut budget = Budget { context_tokens: cache.context, is_known: head.is_known(), ..Budget::default() };
    for layer in 0..head.layers() {
        let share = if split.is_on_card(layer) { &mut budget.card } else { &mut budget.main };
        share.context_bytes = share.context_bytes.saturating_add(cache.layer_bytes(layer));
    }
    for tensor in head.tensors() {
        let on_card = match (tensor.layer(), tensor.name.as_str()) {
            (Some(layer), _) => split.is_on_card(layer),
            // Looking up the rows of a few tokens is done in main memory.
            (None, "token_embd.weight") => false,
            (None, _) => split.has_output(),
        };
        let share = if on_card { &mut budget.card } else { &mut budget.main };
        let bytes = tensor.bytes.saturating_add(head.pair_bytes(&tensor.name));
        share.weights_bytes = share.weights_bytes.saturating_add(bytes);
    }
    // A head that is the embedding is there twice then: where rows are looked up, and where logits are made.
    if let (None, Some(embedding), true) =
        (head.tensor("output.weight"), head.tensor("token_embd.weight"), split.has_output())
    {
        budget.card.weights_bytes = budget.card.weights_bytes.saturating_add(embedding.bytes);
    }
    let graph = Graph::new(cache, output_rows.min(cache.piece));
    if split.n_on_card > 0 {
        budget.card.compute_bytes = graph.peak_bytes();
        budget.card.overhead_bytes = CARD_OVERHEAD_BYTES;
    }
    budget.main.compute_bytes = if split.is_whole() { graph.input_bytes() } else { graph.peak_bytes() };
    budget.main.overhead_bytes = PROGRAM_BYTES
        .saturating_add(head.vocabulary_tokens().saturating_mul(VOCABULARY_BYTES))
        .saturating_add(graph.scratch_bytes());
    budget
}

/// Tokens of context that options ask for.
pub(crate) fn asked_context(head: &Head, load: &LoadOptions) -> u32 {
    let trained = head.trained_context_tokens().unwrap_or(4096);
    if load.num_ctx > 0 { load.num_ctx } else { trained.clamp(1, 4096) }
}

/// Which layers lie on the graphics card: the last ones, and before them all the output.
struct Split {
    layers: u64,
    n_on_card: u64,
}

impl Split {
    fn new(head: &Head, load: &LoadOptions, place: Place) -> Self {
        let layers = head.layers();
        let all = layers + 1;
        let n_on_card = match place {
            Place::Main => 0,
            Place::Card => load.num_gpu.map_or(all, |n| u64::from(n).min(all)),
        };
        Self { layers, n_on_card }
    }

    fn is_on_card(&self, layer: u64) -> bool {
        layer + self.n_on_card > self.layers
    }

    fn has_output(&self) -> bool {
        self.n_on_card > 0
    }

    fn is_whole(&self) -> bool {
        self.n_on_card > self.layers
    }
}
