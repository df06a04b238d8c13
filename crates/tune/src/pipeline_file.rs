//! `pipeline.toml`: experts and steps.  Paths in it, of programs too, are relative to the folder `tune` is started in, as
//! in a recipe, and a program runs there.

use crate::failure::{Failure, of_runner};
use crate::recipe::Recipe;
use crate::servers;
use crate::toml_file;
use crate::trained_on;
use runner::pipeline::{Pipeline, PipelineSpec};
use runner::registry::{self, Probe};
use runner::{ExpertCard, Registry};
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
    let wrong = |error: &runner::Error| {
        let failure = of_runner(error);
        Failure { message: format!("{}: {}", path.display(), failure.message), ..failure }
    };
    let pipeline =
        spec.check(&Recipe::run_name(path), Path::new("."), registry).map_err(|error| wrong(&error))?;
    for card in pipeline.experts().values() {
        check_adapter(card).map_err(|error| {
            wrong(&error)
                .hint("take the base with the template that the adapter was trained under, or merge both")
        })?;
    }
    Ok(pipeline)
}

/// An adapter whose run had another template or tokenizer than its base has would babble; what was registered has shown
/// that already.
fn check_adapter(card: &ExpertCard) -> Result<(), runner::Error> {
    let Some(adapter) = card.file().and_then(|file| file.adapters.last()) else { return Ok(()) };
    // An adapter that lies in no run's folder tells nothing of its training.
    let Ok(run) = trained_on::of_file(&adapter.file, adapter.base_blake3.as_deref()) else { return Ok(()) };
    let probe = Probe { training: run.language(), conversations: run.conversations.clone() };
    registry::compare(card, &probe).map(drop)
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
