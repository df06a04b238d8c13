//! Whether a source holds the tensors of a model: all of them, no others, in their shapes.

use formats::TensorSource;
use formats::source::Naming;

use super::tensor::HEAD;
use super::{TensorSpec, tensors};
use crate::config::ModelConfig;
use crate::{Error, Result};

/// Checks that a source holds exactly the tensors of `config`, each in its shape.
///
/// Two surplus tensors are known and accepted: the head that Qwen3-0.6B ships although it is tied (transformers and
/// llama.cpp use the embedding), and rotary tables, which are computed here.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::SurplusTensor`], [`Error::TensorShape`].
pub fn check(config: &ModelConfig, source: &dyn TensorSource) -> Result<()> {
    let naming = source.naming();
    let mut expected = expected(&tensors(config), naming);
    let missing: Vec<&String> =
        expected.iter().map(|(name, _)| name).filter(|name| source.shape(name).is_none()).collect();
    if let Some(name) = missing.first() {
        let (n_missing, n_expected) = (missing.len(), expected.len());
        return Err(Error::MissingTensor { name: (*name).clone(), n_missing, n_expected });
    }
    if config.tied {
        let head = TensorSpec::new(config, &HEAD, None);
        expected.push((head.name(naming).to_owned(), head.shape(naming)));
    }
    check_shapes(&expected, source)?;
    check_surplus(config, &expected, source)
}

/// Names and shapes that a source has, some of them of one tensor's parts.
fn expected(specs: &[TensorSpec], naming: Naming) -> Vec<(String, Vec<usize>)> {
    let of = |spec: &TensorSpec| {
        spec.names(naming).into_iter().map(|name| (name, spec.shape(naming))).collect::<Vec<_>>()
    };
    let mut expected: Vec<_> = specs.iter().flat_map(of).collect();
    // Two parts of one tensor stand side by side.
    expected.dedup();
    expected
}

/// Checks that every weight of a source is of a type that can be read, without reading any.
///
/// # Errors
/// [`formats::Error::UnknownType`], for 8-bit floats say.
pub fn check_types(config: &ModelConfig, source: &dyn TensorSource) -> Result<()> {
    for name in tensors(config).iter().flat_map(|spec| spec.names(source.naming())) {
        source.read_rows(&name, 0..0, &mut Vec::new())?;
    }
    Ok(())
}

/// Checks that the head which a tied model's checkpoint ships nevertheless is its embedding.
///
/// transformers takes such a head where it differs, llama.cpp the embedding: there is no one right model then.
///
/// # Errors
/// [`Error::TiedHead`], and what reading meets.
pub fn check_tied_head(config: &ModelConfig, source: &dyn TensorSource) -> Result<()> {
    let (head, embedding) = (TensorSpec::new(config, &HEAD, None), TensorSpec::embedding(config));
    if !config.tied || source.shape(&head.hf).is_none() {
        return Ok(());
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for first in (0..head.rows).step_by(COMPARED_ROWS) {
        let rows = first..(first + COMPARED_ROWS).min(head.rows);
        source.read_rows(&embedding.hf, rows.clone(), &mut ours)?;
        source.read_rows(&head.hf, rows, &mut theirs)?;
        let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
        if let Some(at) = ours.iter().zip(&theirs).position(differs) {
            let row = first + at / head.cols;
            return Err(Error::TiedHead { head: head.hf, embedding: embedding.hf, row });
        }
    }
    Ok(())
}

/// Rows that are compared at once.
const COMPARED_ROWS: usize = 1024;

fn check_shapes(expected: &[(String, Vec<usize>)], source: &dyn TensorSource) -> Result<()> {
    for (name, shape) in expected {
        match source.shape(name) {
            // A file that no quantiser has written may hold a matrix of one row where others hold a vector.
            Some(found) if source.naming() == Naming::Gguf && found.strip_prefix(&[1]) == Some(shape) => {}
            Some(found) if found != *shape => {
                return Err(Error::TensorShape { name: name.clone(), found, expected: shape.clone() });
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_surplus(
    config: &ModelConfig,
    expected: &[(String, Vec<usize>)],
    source: &dyn TensorSource,
) -> Result<()> {
    let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let is_surplus = |name: &String| {
        !known.contains(name.as_str()) && !is_rotary_table(name) && !config.text_part.excludes(name)
    };
    let mut surplus: Vec<String> = source.tensor_names().into_iter().filter(is_surplus).collect();
    surplus.sort();
    match surplus.first() {
        None => Ok(()),
        Some(name) => Err(Error::SurplusTensor {
            name: name.clone(),
            family: config.family.hf_architectures()[0],
            n_surplus: surplus.len(),
        }),
    }
}

/// Tables that old checkpoints and GGUFs carry and that follow from the configuration.
fn is_rotary_table(name: &str) -> bool {
    let computed = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
    name.ends_with(".rotary_emb.inv_freq") || computed.contains(&name)
}
