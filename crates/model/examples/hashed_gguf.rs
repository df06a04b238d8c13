//! Writes the hashed models of the goldens as Q4_K_M, for PyTorch to dequantise: `hashed_gguf DIR`.
//!
//! For `scripts/golden/lora_gradients.py --quantised DIR` only: no tokenizer, and rows in Hugging Face's order.

#[path = "../tests/hashed/mod.rs"]
mod hashed;

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use formats::block;
use formats::gguf::{Metadata, Writer};
use hashed::HashedCheckpoint;
use model::family::Naming;
use model::policy::{self, Quant};
use model::{ModelConfig, family};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("usage: hashed_gguf DIR")?);
    write(&hashed::qwen3(), &dir.join("qwen3.gguf"))?;
    write(&hashed::llama(), &dir.join("llama.gguf"))
}

fn write(config: &ModelConfig, path: &Path) -> Result<(), Box<dyn Error>> {
    let source = HashedCheckpoint::new(config);
    let specs = family::tensors(config);
    let types = policy::block_types(Quant::Q4KM, false, config, &specs);
    let planned: Vec<_> = specs
        .iter()
        .zip(&types)
        .map(|(spec, &ty)| {
            (spec.gguf.clone(), spec.shape(Naming::Gguf).iter().rev().map(|&n| n as u64).collect(), ty)
        })
        .collect();
    let mut metadata = Metadata::new();
    metadata.push("general.architecture", config.family.gguf_architecture());
    let mut writer = Writer::begin(BufWriter::new(File::create(path)?), &metadata, &planned)?;
    let mut floats = Vec::new();
    for (spec, ty) in specs.iter().zip(types) {
        spec.read(&source, &mut floats)?;
        let mut blocks = vec![0; spec.rows * ty.row_bytes(spec.cols)?];
        block::encode_par(ty, &floats, spec.cols, None, &mut blocks)?;
        writer.write_tensor(&blocks)?;
    }
    writer.finish()?;
    Ok(())
}
