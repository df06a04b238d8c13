//! The metadata of an exported file, in the order in which llama.cpp's converter and then its quantiser write it.
//!
//! Keys that the converter guesses from the name of a directory (`general.basename`, `.finetune`, `.version`) are
//! left out; `general.base_model.*`, `general.dataset.*` and `tune.*` say where the file comes from.

use formats::config::GenerationConfig;
use formats::gguf::{Metadata, Value};

use crate::merged::Merged;
use crate::{Provenance, Request, Template};

/// Version of the block layouts; llama.cpp's GGML_QNT_VERSION.
pub(crate) const QUANTIZATION_VERSION: u32 = 2;

/// The keys of a file; `importance` are whole keys about the matrix.
pub(crate) fn metadata(request: &Request, merged: &Merged, importance: &[(String, Value)]) -> Metadata {
    let mut metadata = match merged.base.metadata() {
        Some(of_base) => of_gguf(request, merged, of_base),
        None => of_folder(request, merged),
    };
    let is_there = merged.base.metadata().is_some() && request.template == Template::FromTokenizer;
    if let Some(template) = merged.template.as_ref().filter(|_| !is_there) {
        metadata.insert("tokenizer.chat_template", template.source());
    }
    metadata.remove("general.quantization_version");
    metadata.remove("general.file_type");
    metadata.push("general.quantization_version", QUANTIZATION_VERSION);
    if let Some(file_type) = request.quant.file_type() {
        metadata.push("general.file_type", file_type);
    }
    metadata.extend(importance.iter().cloned());
    metadata
}

fn of_folder(request: &Request, merged: &Merged) -> Metadata {
    let config = &merged.base.config;
    let mut metadata = Metadata::new();
    metadata.push("general.architecture", config.family.gguf_architecture());
    metadata.push("general.type", "model");
    metadata.extend(sampling(merged.generation.as_ref()));
    metadata.push("general.name", request.name.as_str());
    metadata.extend(origin(&merged.provenance, merged.n_parameters()));
    metadata.extend(hashes(merged));
    metadata.extend(model::config::gguf_metadata(config));
    metadata.extend(merged.vocabulary.iter().cloned());
    metadata
}

/// Those of the base, as `llama-quantize` keeps them; with adapters in it, it is another model, and says of which.
fn of_gguf(request: &Request, merged: &Merged, of_base: &Metadata) -> Metadata {
    let is_of_old_matrix = |key: &str| key.starts_with("quantize.imatrix.") && request.importance.is_some();
    let kept = of_base.entries().iter();
    let kept = kept.filter(|(key, _)| !key.starts_with("split.") && !is_of_old_matrix(key));
    let mut metadata: Metadata = kept.cloned().collect();
    if merged.is_changed() {
        metadata.insert("general.name", request.name.as_str());
        for (key, value) in hashes(merged) {
            metadata.insert(key, value);
        }
    }
    metadata
}

/// Hashes of what the file is made from.
fn hashes(merged: &Merged) -> Vec<(String, Value)> {
    let (provenance, sources) = (&merged.provenance, &merged.sources);
    let keys = [
        ("base", Some(&sources.base_blake3)),
        ("adapter", sources.adapter_blake3.as_ref()),
        ("recipe", provenance.recipe_blake3.as_ref()),
        ("dataset", provenance.dataset_blake3.as_ref()),
    ];
    let keys = keys.into_iter();
    keys.filter_map(|(name, hash)| Some((format!("tune.{name}_blake3"), Value::from(hash?.clone()))))
        .collect()
}

/// How the base's makers advise to sample.
fn sampling(generation: Option<&GenerationConfig>) -> Vec<(String, Value)> {
    let Some(generation) = generation else { return Vec::new() };
    let top_k = generation.top_k.and_then(|k| i32::try_from(k).ok()).map(Value::I32);
    let keys = [
        ("top_k", top_k),
        ("top_p", generation.top_p.map(Value::F32)),
        ("temp", generation.temperature.map(Value::F32)),
    ];
    keys.into_iter().filter_map(|(key, value)| Some((format!("general.sampling.{key}"), value?))).collect()
}

fn origin(provenance: &Provenance, n_parameters: u64) -> Vec<(String, Value)> {
    let text = |value: &Option<String>| value.clone().map(Value::from);
    let one = |value: &Option<String>| value.as_ref().map(|_| Value::U32(1));
    let keys = [
        ("author", text(&provenance.author)),
        ("size_label", Some(Value::from(size_label(n_parameters)))),
        ("license", text(&provenance.license)),
        ("base_model.count", one(&provenance.base_name)),
        ("base_model.0.name", text(&provenance.base_name)),
        ("dataset.count", one(&provenance.dataset_name)),
        ("dataset.0.name", text(&provenance.dataset_name)),
    ];
    keys.into_iter().filter_map(|(key, value)| Some((format!("general.{key}"), value?))).collect()
}

/// A count with two digits at least and the largest unit below it: `260K`, `1.2B`.
fn size_label(n_parameters: u64) -> String {
    let n = n_parameters as f64;
    let (scaled, unit) = match n {
        _ if n > 1e12 => (n * 1e-12, 'T'),
        _ if n > 1e9 => (n * 1e-9, 'B'),
        _ if n > 1e6 => (n * 1e-6, 'M'),
        _ => (n * 1e-3, 'K'),
    };
    let whole = format!("{:.0}", scaled.round_ties_even());
    let digits = whole.trim_start_matches('0').len();
    format!("{scaled:.*}{unit}", 2_usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of gguf 0.19's `size_label`.
    #[test]
    fn size_labels_are_those_of_the_converter() {
        let cases = [
            (260_032, "260K"),
            (384_313_376, "384M"),
            (1_235_814_432, "1.2B"),
            (596_049_920, "596M"),
            (4_022_468_096, "4.0B"),
            (9_800, "10K"),
            (400, "0.40K"),
            (14_768_307_200, "15B"),
        ];
        for (n, expected) in cases {
            assert_eq!(size_label(n), expected);
        }
    }
}
