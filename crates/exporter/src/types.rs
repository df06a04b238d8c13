//! The type of each tensor: the policy's, or the one that is asked for.

use formats::BlockType;
use model::family::TensorSpec;
use model::{ModelConfig, policy};
use regex::{Regex, RegexBuilder};

use crate::{Error, Request, Result};

/// Bytes that a compiled pattern may take.
const COMPILED_BYTES: usize = 1 << 20;

/// The types of tensors, in their order.
///
/// # Errors
/// [`Error::Pattern`] for a pattern that is none, that names no tensor, or whose type no file has.
pub(crate) fn types(request: &Request, config: &ModelConfig, specs: &[TensorSpec]) -> Result<Vec<BlockType>> {
    let mut types = policy::block_types(request.quant, request.importance.is_some(), config, specs);
    let patterns = request.types.iter().map(|asked| compiled(request, &asked.pattern, asked.ty));
    let patterns: Vec<Regex> = patterns.collect::<Result<_>>()?;
    for (ty, spec) in types.iter_mut().zip(specs) {
        if let Some(at) = patterns.iter().position(|pattern| pattern.is_match(&spec.gguf)) {
            *ty = policy::asked_type(request.types[at].ty, spec);
        }
    }
    for (pattern, asked) in patterns.iter().zip(&request.types) {
        if !specs.iter().any(|spec| pattern.is_match(&spec.gguf)) {
            return Err(refused(&asked.pattern, "it names no tensor of the model".to_owned()));
        }
    }
    Ok(types)
}

fn compiled(request: &Request, pattern: &str, ty: BlockType) -> Result<Regex> {
    if ty.id().is_none() {
        return Err(refused(pattern, format!("{ty} is a form of weights in memory that no file has")));
    }
    if !request.quant.is_quantised() {
        return Err(refused(pattern, format!("in {} all tensors are alike", request.quant)));
    }
    let built = RegexBuilder::new(pattern).size_limit(COMPILED_BYTES).build();
    built.map_err(|error| refused(pattern, error.to_string().lines().last().unwrap_or_default().to_owned()))
}

fn refused(pattern: &str, reason: String) -> Error {
    Error::Pattern { pattern: pattern.to_owned(), reason }
}
