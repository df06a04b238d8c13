//! Where a checkpoint holds the language model, and what tensors and modules are called there.
//!
//! Checkpoints of models that also see are published as `language_model.model.layers…`; transformers has named the
//! modules `model.language_model.layers…` since 4.52, and what saves the modules' own names writes these. An adapter's
//! modules have the newer names whatever the checkpoint: by them PEFT finds modules, whole names included.

use std::borrow::Cow;

use formats::TensorSource;

/// Where the language model lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TextPart {
    /// Nothing else is in the checkpoint: `model.layers.0…`.
    #[default]
    Whole,
    /// `language_model.model.layers.0…`, `language_model.lm_head`.
    Outer,
    /// `model.language_model.layers.0…`, `lm_head`.
    Inner,
}

const OUTER: &str = "language_model.";
const OUTER_STEM: &str = "language_model.model.";
const INNER_STEM: &str = "model.language_model.";
const HEAD: &str = "lm_head.";

impl TextPart {
    /// The name here of a tensor that a checkpoint of the language model alone calls `name`.
    pub(super) fn tensor(self, name: &str) -> String {
        match (self, name.strip_prefix("model.")) {
            (TextPart::Outer, _) => format!("{OUTER}{name}"),
            (TextPart::Inner, Some(name)) => format!("{INNER_STEM}{name}"),
            _ => name.to_owned(),
        }
    }

    /// The name of an adapter's module that holds a tensor of this name.
    pub(super) fn module(self, tensor: &str) -> String {
        let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
        if self == TextPart::Outer { newer_module(module).into_owned() } else { module.to_owned() }
    }

    /// Whether a tensor belongs to another part of the model, a vision tower say.
    pub(super) fn excludes(self, tensor: &str) -> bool {
        match self {
            TextPart::Whole => false,
            TextPart::Outer => !tensor.starts_with(OUTER),
            TextPart::Inner => !tensor.starts_with(INNER_STEM) && !tensor.starts_with(HEAD),
        }
    }

    /// Which of the two names the tensors of a model that also sees have.
    pub(crate) fn found_in(self, source: &dyn TensorSource) -> TextPart {
        let is_inner = || source.tensor_names().iter().any(|name| name.starts_with(INNER_STEM));
        if self == TextPart::Outer && is_inner() { TextPart::Inner } else { self }
    }
}

/// What an adapter calls a module, where older adapters call it otherwise.
pub fn newer_module(name: &str) -> Cow<'_, str> {
    match name.strip_prefix(OUTER_STEM) {
        Some(rest) => format!("{INNER_STEM}{rest}").into(),
        None => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_ways_name_the_same_modules() {
        let names = |part: TextPart, name: &str| {
            let tensor = part.tensor(name);
            (part.module(&tensor), tensor)
        };
        let layer = "model.layers.3.mlp.up_proj.weight";
        let module = "model.language_model.layers.3.mlp.up_proj".to_owned();
        let outer = "language_model.model.layers.3.mlp.up_proj.weight".to_owned();
        let inner = "model.language_model.layers.3.mlp.up_proj.weight".to_owned();
        assert_eq!(names(TextPart::Outer, layer), (module.clone(), outer));
        assert_eq!(names(TextPart::Inner, layer), (module.clone(), inner));
        assert_eq!(
            names(TextPart::Whole, layer),
            ("model.layers.3.mlp.up_proj".to_owned(), layer.to_owned())
        );
        assert_eq!(TextPart::Outer.tensor("lm_head.weight"), "language_model.lm_head.weight");
        assert_eq!(TextPart::Inner.tensor("lm_head.weight"), "lm_head.weight");
        assert_eq!(newer_module("language_model.model.layers.3.mlp.up_proj"), module);
        assert_eq!(newer_module(&module), module);
    }

    #[test]
    fn only_parts_beside_the_language_model_are_passed_over() {
        for (part, ours, theirs) in [
            (TextPart::Outer, "language_model.model.norm.extra", "vision_tower.head.probe"),
            (TextPart::Inner, "model.language_model.norm.extra", "model.vision_tower.head.probe"),
            (TextPart::Inner, "lm_head.weight", "model.multi_modal_projector.mm_soft_emb_norm.weight"),
        ] {
            assert!(!part.excludes(ours) && part.excludes(theirs), "{part:?}");
        }
        assert!(!TextPart::Whole.excludes("vision_tower.head.probe"));
    }
}
