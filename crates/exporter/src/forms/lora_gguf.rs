//! The adapter as llama.cpp loads it beside a GGUF of its base.
//!
//! Source: llama.cpp's `convert_lora_to_gguf.py` and `llama-adapter.cpp`. It scales B·A by alpha / R with one alpha for all,
//! R being each pair's; what rsLoRA and patterns of alphas mean beyond that is multiplied into B.

use std::io::Write;

use formats::gguf::{Metadata, Planned, Reader, Writer, file_bytes};
use formats::{BlockType, TensorSource, atomic, json};
use model::family::{self, Taken, TensorSpec};
use model::lora::Update;

use super::{FormReceipt, FormRequest, Inputs};
use crate::{Error, Result, pending};

/// A row of B·A that was read back may differ by so much, of its largest number: B was rounded once more.
const MAX_ERROR: f32 = 1e-5;

/// An adapted matrix of the GGUF.
struct Pair {
    spec: TensorSpec,
    update: Update,
}

/// Writes `<name>-lora-f32.gguf`, reads it back, and returns what is recorded beside it.
///
/// # Errors
/// [`Error::Form`] for an adapter that llama.cpp would load and apply otherwise than it was trained.
pub fn export_adapter(request: &FormRequest) -> Result<FormReceipt> {
    let inputs = Inputs::open(request)?;
    let pairs = pairs(&inputs)?;
    let alpha = common_alpha(&pairs);
    let metadata = metadata(request, &inputs, alpha)?;
    let planned: Vec<Planned> = pairs.iter().flat_map(Pair::planned).collect();
    let bytes = file_bytes(&metadata, &planned)?;
    let path = request.output.join(format!("{}-lora-f32.gguf", request.name));
    pending::create_dir(&request.output)?;
    atomic::write_file(&path, |out| {
        out.reserve(bytes)?;
        let mut writer = Writer::begin(&mut *out, &metadata, &planned)?;
        for pair in &pairs {
            writer.write_tensor(&little_endian(&pair.update.pair().a))?;
            writer.write_tensor(&little_endian(&pair.b(alpha)))?;
        }
        writer.finish()?.flush().map_err(|source| Error::Io { path: path.clone(), action: "write", source })
    })?;
    if let Err(error) = check(&path, &pairs, alpha) {
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let receipt = inputs.receipt(request, "adapter", &path, &[name])?;
    json::write(&path.with_extension("json"), &receipt)?;
    Ok(receipt)
}

/// The adapted matrices in the order of a GGUF.
fn pairs(inputs: &Inputs) -> Result<Vec<Pair>> {
    let mut specs = family::tensors(&inputs.base.config);
    family::sort_for_gguf(&mut specs);
    let mut pairs = Vec::with_capacity(inputs.adapter.updates.len());
    for spec in specs {
        let Some(update) = inputs.adapter.updates.get(spec.module()) else { continue };
        let refuse = |reason| Err(Error::Form { module: spec.module().to_owned(), reason });
        if update.pair().magnitude.is_some() {
            return refuse(
                "with DoRA the lengths of its rows are trained, which llama.cpp's adapters cannot say",
            );
        }
        if spec.taken != Taken::Whole {
            return refuse("llama.cpp runs it as two other matrices, to which it applies no adapter");
        }
        pairs.push(Pair { update: update.clone(), spec });
    }
    Ok(pairs)
}

/// The alpha that most pairs have in llama.cpp's sense: scale · R.
fn common_alpha(pairs: &[Pair]) -> f32 {
    let alphas: Vec<f32> = pairs.iter().map(Pair::alpha).collect();
    let count = |alpha: f32| alphas.iter().filter(|&&other| other == alpha).count();
    alphas.iter().copied().max_by_key(|&alpha| count(alpha)).unwrap_or(1.0)
}

impl Pair {
    fn alpha(&self) -> f32 {
        self.update.scale() * self.update.pair().r as f32
    }

    fn planned(&self) -> [Planned; 2] {
        let (pair, name) = (self.update.pair(), &self.spec.gguf);
        let (r, cols, rows) = (pair.r as u64, pair.in_features as u64, pair.out_features as u64);
        [
            (format!("{name}.lora_a"), vec![cols, r], BlockType::F32),
            (format!("{name}.lora_b"), vec![r, rows], BlockType::F32),
        ]
    }

    /// B with its rows in the order of the GGUF, times what its alpha differs from the common one.
    fn b(&self, alpha: f32) -> Vec<f32> {
        let (pair, factor) = (self.update.pair(), self.alpha() / alpha);
        let rows = (0..pair.out_features).map(|row| self.spec.hf_row(row));
        rows.flat_map(|row| &pair.b[row * pair.r..(row + 1) * pair.r]).map(|b| b * factor).collect()
    }
}

fn metadata(request: &FormRequest, inputs: &Inputs, alpha: f32) -> Result<Metadata> {
    let mut metadata = Metadata::new();
    metadata.push("general.architecture", inputs.base.config.family.gguf_architecture());
    metadata.push("general.type", "adapter");
    metadata.push("general.name", request.name.as_str());
    if let Some(base) = &request.provenance.base_name {
        metadata.push("general.base_model.count", 1_u32);
        metadata.push("general.base_model.0.name", base.as_str());
    }
    metadata.push("tune.base_blake3", inputs.base.source().content_hash()?);
    metadata.push("tune.adapter_blake3", inputs.adapter.blake3().unwrap_or_default());
    metadata.push("adapter.type", "lora");
    metadata.push("adapter.lora.alpha", alpha);
    metadata.push("general.quantization_version", crate::metadata::QUANTIZATION_VERSION);
    Ok(metadata)
}

/// The file read as llama.cpp reads it gives what a merge would add, row by row.
fn check(path: &std::path::Path, pairs: &[Pair], alpha: f32) -> Result<()> {
    let reader = Reader::open(path)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for pair in pairs {
        let (name, r) = (&pair.spec.gguf, pair.update.pair().r);
        reader.read(&format!("{name}.lora_a"), &mut a)?;
        reader.read(&format!("{name}.lora_b"), &mut b)?;
        let cols = pair.update.pair().in_features;
        let mut rows = vec![0, pair.spec.rows / 3, pair.spec.rows - 1];
        rows.dedup();
        for row in rows {
            let mut expected = vec![0.0; cols];
            pair.update.add_to(&mut expected, pair.spec.hf_row(row));
            let mut found = vec![0.0_f32; cols];
            for (b, a) in b[row * r..(row + 1) * r].iter().zip(a.chunks_exact(cols)) {
                found.iter_mut().zip(a).for_each(|(sum, a)| *sum += alpha / r as f32 * b * a);
            }
            let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let differs = |(found, expected): (&f32, &f32)| (found - expected).abs() > MAX_ERROR * largest;
            if found.iter().zip(&expected).any(differs) {
                return Err(Error::Written {
                    place: format!("row {row} of the update of `{name}`"),
                    expected: "what a merge adds".to_owned(),
                    actual: "something else".to_owned(),
                });
            }
        }
    }
    Ok(())
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
