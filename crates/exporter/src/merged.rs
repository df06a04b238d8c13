//! The base with the adapter in it, for what runs the model instead of writing it.

use formats::checkpoint::Checkpoint;
use model::lora::init::Shifted;

use crate::plan::{Content, PlannedTensor};

/// The merged weights under the names of the base.
pub(crate) fn merged<'a>(base: &'a Checkpoint, tensors: &[PlannedTensor]) -> Shifted<'a> {
    let updates = tensors.iter().filter_map(|tensor| match &tensor.content {
        Content::Weight { spec, update: Some(update) } => Some((spec.hf.clone(), update.clone())),
        _ => None,
    });
    Shifted::by(base, updates.collect())
}

/// Whether an adapter changes anything.
pub(crate) fn is_merged(tensors: &[PlannedTensor]) -> bool {
    tensors.iter().any(PlannedTensor::is_merged)
}
