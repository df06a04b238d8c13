//! `pipeline.toml`: experts and steps.  Paths in it are relative to the folder `tune` is started in, as in a recipe.

use crate::failure::Failure;
use crate::recipe::Recipe;
use crate::toml_file;
use runner::Registry;
use runner::pipeline::{Pipeline, PipelineSpec};
use std::path::{Path, PathBuf};

/// Reads a pipeline and checks all that can be checked before a model is loaded.
pub fn read(path: &Path, registry: &Registry) -> Result<Pipeline, Failure> {
    let spec: PipelineSpec = toml_file::read(path, &[])?;
    let missing = spec.experts.values().filter_map(|expert| expert.file.as_ref()).find(|file| !file.exists());
    if let Some(file) = missing {
        return Err(
            Failure::new(format!("{}: {} does not exist", path.display(), file.display())).hint(way_to(file))
        );
    }
    spec.check(&Recipe::run_name(path), Path::new("."), registry)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))
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
