//! Our own forward on the blocks of an exported file.

use std::sync::Arc;

use formats::gguf::Reader;
use formats::observe::Silent;
use model::arena::Arena;
use model::generate::{Capacity, Generator};
use model::{Base, Cpu};

/// The logits (N, V) after each token of a sequence.
pub fn logits(file: &Reader, tokens: &[u32]) -> Vec<Vec<f32>> {
    let device = Cpu::new(Arena::unlimited()).unwrap();
    let base = Arc::new(Base::from_gguf(&device, file, &mut Silent).unwrap());
    let capacity = Capacity { n_sequences: 1, n_tokens: tokens.len() };
    let mut generator = Generator::new(base, None, capacity).unwrap();
    let mut rows = Vec::new();
    generator.logits(None, tokens, &mut |_, logits| rows.push(logits.to_vec())).unwrap();
    rows
}
