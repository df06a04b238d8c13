//! `pipeline.toml`: experts and steps.  Paths in it are relative to the folder `tune` is started in, as in a recipe.

use crate::failure::{Failure, of_runner};
use crate::recipe::Recipe;
use crate::servers;
use crate::toml_file;
use runner::Registry;
use runner::pipeline::{Pipeline, PipelineSpec};
use std::path::{Path, PathBuf};

/// Reads a pipeline and checks all that can be checked before a model is loaded.
pub fn read(path: &Path, registry: &Registry) -> Result<Pipeline, Failure> {
    let mut spec: PipelineSpec = toml_file::read(path, &[])?;
    let missing = spec.experts.values().filter_map(|expert| expert.file.as_ref()).find(|file| !file.exists());
    if let Some(file) = missing {
        return Err(
            Failure::new(format!("{}: {} does not exist", path.display(), file.display())).hint(way_to(file))
        );
    }
    for expert in spec.experts.values_mut().filter(|expert| expert.ollama.is_some()) {
        expert.host.get_or_insert_with(servers::ollama_host);
    }
    spec.check(&Recipe::run_name(path), Path::new("."), registry).map_err(|error| {
        let failure = of_runner(&error);
        Failure { message: format!("{}: {}", path.display(), failure.message), ..failure }
    })
}

/// An expert's file that is not there is most often an export that was not made yet.
fn way_to(file: &Path) -> String {
    let run = file.parent().and_then(Path::parent).filter(|_| file.extension().is_some_and(|e| e == "gguf"));
    match run {
        Some(run) if run.join("adapter").is_dir() => format!("make it with: tune export {}", run.display()),
        _ => "make it with tune export; paths are relative to the folder you are in".into(),
    }
}

/// Where experts are registered.
pub fn registry() -> Registry {
    Registry::at(Path::new("runs").join("experts"))
}

/// Where pipeline runs are kept.
pub fn runs() -> PathBuf {
    Path::new("runs").join("pipelines")
}
