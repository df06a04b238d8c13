//! Tokens a second of decoding on a 5 M parameter Qwen3 with hashed weights: one text, then sixteen side by side.

#[path = "../tests/hashed/mod.rs"]
mod hashed;

use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::generate::{Capacity, Generator, Request, SamplerOptions};
use model::{Adapter, Base, Cpu, LoraOptions, ModelConfig, Quant};

const NEW_TOKENS: usize = 128;
const PROMPT_TOKENS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let shape = hashed::qwen3();
    let (vocab_size, hidden, intermediate, n_layers) = (2048, 256, 768, 6);
    let (n_heads, n_kv_heads, head_dim) = (4, 2, 64);
    let config =
        ModelConfig { vocab_size, hidden, intermediate, n_layers, n_heads, n_kv_heads, head_dim, ..shape };
    println!(
        "{:.1} M weights, Q4_K_M, {} threads",
        config.n_weights() as f64 / 1e6,
        rayon::current_num_threads()
    );
    let device = Cpu::new(Arena::unlimited())?;
    let source = HashedCheckpoint::new(&config);
    let base = Arc::new(Base::load(&device, &config, &source, Quant::Q4KM, &mut Silent)?);
    let adapter = Adapter::new(&device, &config, &LoraOptions::default(), 1)?;
    for (n_sequences, adapter) in [(1, None), (1, Some(&adapter)), (16, None), (16, Some(&adapter))] {
        let capacity = Capacity { n_sequences, n_tokens: PROMPT_TOKENS + NEW_TOKENS };
        let mut generator = Generator::new(base.clone(), Some(&LoraOptions::default()), capacity)?;
        let prompts: Vec<Vec<u32>> = (0..n_sequences)
            .map(|i| hashed::tokens(&i.to_string(), PROMPT_TOKENS, config.vocab_size))
            .collect();
        let request = Request { stop: &[], sampler: SamplerOptions::GREEDY, max_new_tokens: NEW_TOKENS };
        let started = Instant::now();
        let generated =
            generator.generate_batch(adapter, &prompts, &request, &mut |_| ControlFlow::Continue(()))?;
        let seconds = started.elapsed().as_secs_f64();
        let n_tokens: usize = generated.iter().map(|generated| generated.ids.len()).sum();
        let with = if adapter.is_some() { "adapter" } else { "base" };
        println!("{n_sequences:>2} at once, {with:>7}: {:>6.0} tokens/s", n_tokens as f64 / seconds);
    }
    Ok(())
}
