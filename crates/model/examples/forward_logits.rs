//! Logits of a checkpoint on disk, for a comparison with another program: `scripts/check/published_layouts.py`.
//!
//!     cargo run --release -p model --example forward_logits -- MODEL_DIR TOKENS.json OUT.f32
//!
//! Reads a JSON list of token ids, writes the logits after each of them as little-endian f32 (N, V). The base is held
//! in 32 bits.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use formats::checkpoint::Checkpoint;
use formats::config::HfConfig;
use formats::observe::Silent;
use model::arena::Arena;
use model::generate::{Capacity, Generator};
use model::{Base, Cpu, ModelConfig, Quant};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, tokens, out] = &arguments[..] else {
        return Err("usage: forward_logits MODEL_DIR TOKENS.json OUT.f32".into());
    };
    let tokens: Vec<u32> = serde_json::from_slice(&std::fs::read(tokens)?)?;
    let config = ModelConfig::from_hf(&HfConfig::from_dir(Path::new(dir))?)?;
    let checkpoint = Checkpoint::open(Path::new(dir))?;
    let base = Base::load(&Cpu::new(Arena::unlimited())?, &config, &checkpoint, Quant::F32, &mut Silent)?;
    let capacity = Capacity { n_sequences: 1, n_tokens: tokens.len() };
    let mut generator = Generator::new(Arc::new(base), None, capacity)?;
    let mut file = std::io::BufWriter::new(std::fs::File::create(out)?);
    let mut written = Ok(());
    generator.logits(None, &tokens, &mut |_, logits| {
        let mut write = || logits.iter().try_for_each(|logit| file.write_all(&logit.to_le_bytes()));
        if written.is_ok() {
            written = write();
        }
    })?;
    written?;
    Ok(file.flush()?)
}
