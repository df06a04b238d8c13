//! A base whose adapted weights are changed by a low-rank product: less by it where A and B do not begin at nothing, more
//! by it where an adapter is merged.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use formats::TensorSource;
use formats::adapter::AdapterTensor;

use super::super::{LoraOptions, Update};
use crate::config::ModelConfig;
use crate::family;

/// W ± s·B·A for some linear layers, row by row; every other tensor as it is.
pub struct Shifted<'a> {
    source: &'a dyn TensorSource,
    updates: HashMap<String, Update>,
}

impl<'a> Shifted<'a> {
    /// Takes the pairs' products, scaled as the options say, out of a checkpoint's weights.
    pub fn new(
        source: &'a dyn TensorSource,
        config: &ModelConfig,
        options: &LoraOptions,
        pairs: &[AdapterTensor],
    ) -> Self {
        let pairs: HashMap<&str, &AdapterTensor> =
            pairs.iter().map(|pair| (pair.module.as_str(), pair)).collect();
        let update = |spec: family::TensorSpec| {
            let pair = *pairs.get(spec.module())?;
            let (_, scale) = options.shape(spec.layer?, spec.role)?;
            Some((spec.hf.clone(), Update::new(pair.clone(), -scale)))
        };
        Self::by(source, family::tensors(config).into_iter().filter_map(update).collect())
    }

    /// Adds updates to the tensors of these names.
    pub fn by(source: &'a dyn TensorSource, updates: HashMap<String, Update>) -> Self {
        Self { source, updates }
    }
}

impl TensorSource for Shifted<'_> {
    fn tensor_names(&self) -> Vec<String> {
        self.source.tensor_names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> formats::Result<()> {
        let first_row = rows.start;
        self.source.read_rows(name, rows, out)?;
        if let Some(update) = self.updates.get(name) {
            update.add_to(out, first_row);
        }
        Ok(())
    }

    fn content_hash(&self) -> formats::Result<String> {
        self.source.content_hash()
    }

    fn label(&self) -> PathBuf {
        self.source.label()
    }
}
