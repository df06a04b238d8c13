//! A base whose adapted weights are changed by a low-rank product: less by it where A and B do not begin at nothing, more
//! by it where an adapter is merged.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use formats::TensorSource;
use formats::adapter::AdapterTensor;
use formats::source::Naming;

use super::super::{LoraOptions, Update};
use crate::config::ModelConfig;
use crate::family::{self, TensorSpec};

/// W ± s·B·A for some linear layers, row by row; every other tensor as it is.
pub struct Shifted<'a> {
    source: &'a dyn TensorSource,
    /// By the names of the source.
    updates: HashMap<String, (TensorSpec, Update)>,
}

impl<'a> Shifted<'a> {
    /// Takes the pairs' products, scaled as the options say, out of a base's weights.
    pub fn new(
        source: &'a dyn TensorSource,
        config: &ModelConfig,
        options: &LoraOptions,
        pairs: &[AdapterTensor],
    ) -> Self {
        let pairs: HashMap<&str, &AdapterTensor> =
            pairs.iter().map(|pair| (pair.module.as_str(), pair)).collect();
        let update = |spec: TensorSpec| {
            let pair = *pairs.get(spec.module())?;
            let (_, scale) = options.shape(spec.layer?, spec.role)?;
            Some((spec, Update::new(pair.clone(), -scale)))
        };
        Self::by(source, family::tensors(config).into_iter().filter_map(update))
    }

    /// Adds updates to tensors.
    pub fn by(source: &'a dyn TensorSource, updates: impl IntoIterator<Item = (TensorSpec, Update)>) -> Self {
        let naming = source.naming();
        let named = updates.into_iter().map(|(spec, update)| (spec.name(naming).to_owned(), (spec, update)));
        Self { source, updates: named.collect() }
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
        let Some((spec, update)) = self.updates.get(name) else {
            return self.source.read_rows(name, rows, out);
        };
        let first_row = rows.start;
        match self.source.naming() {
            Naming::Hf => {
                self.source.read_rows(name, rows, out)?;
                update.add_to(out, first_row);
                Ok(())
            }
            // Its rows stand elsewhere than those of A and B.
            Naming::Gguf if spec.permute.is_some() => {
                self.source.read_rows(name, rows, out)?;
                for (row, weights) in (first_row..).zip(out.chunks_exact_mut(spec.cols)) {
                    update.add_to(weights, spec.hf_row(row));
                }
                Ok(())
            }
            Naming::Gguf => {
                let add = |weights: &mut [f32], first_row: usize| update.add_to(weights, first_row);
                spec.read_changed_rows(self.source, rows, &add, out)
            }
        }
    }

    fn content_hash(&self) -> formats::Result<String> {
        self.source.content_hash()
    }

    fn naming(&self) -> Naming {
        self.source.naming()
    }

    fn label(&self) -> PathBuf {
        self.source.label()
    }
}
