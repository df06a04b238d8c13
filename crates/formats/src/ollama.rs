//! Models that a local Ollama holds: its manifests, and the blobs that they name.
//!
//! A folder `models` has `manifests/HOST/NAMESPACE/MODEL/TAG`, each a JSON list of layers, and `blobs/sha256-HEX`.
//! Layout: <https://github.com/ollama/ollama>, `manifest` and `types/model`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Error, Result, json};

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";
const MODEL_LAYER: &str = "application/vnd.ollama.image.model";
/// What stands beside a model's weights in ways that a training base cannot take over.
const FOREIGN_LAYERS: [(&str, &str); 2] = [
    ("application/vnd.ollama.image.adapter", "an adapter"),
    ("application/vnd.ollama.image.projector", "a projector for images"),
];

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
}

/// The GGUF of a model by its name, `[HOST/][NAMESPACE/]MODEL[:TAG]`, in Ollama's folder `models`.
///
/// # Errors
/// [`Error::OllamaModel`]: a name that is none, an unknown model (with those there are), a model that is more than
/// its weights, a blob that is missing or of another size; [`Error::Json`] for a broken manifest.
pub fn model_file(models: &Path, name: &str) -> Result<PathBuf> {
    let wrong =
        |reason: String| Error::OllamaModel { name: name.to_owned(), models: models.to_owned(), reason };
    let parts = name_parts(name).ok_or_else(|| wrong("this is no name of a model".to_owned()))?;
    let path = parts.iter().fold(models.join("manifests"), |path, part| path.join(part));
    if !path.is_file() {
        return Err(wrong(format!("there is no such model; there are {}", listed(models))));
    }
    let manifest: Manifest = json::read(&path)?;
    let has = |kind: &str| manifest.layers.iter().any(|layer| layer.media_type == kind);
    if let Some((_, what)) = FOREIGN_LAYERS.into_iter().find(|(kind, _)| has(kind)) {
        return Err(wrong(format!("it consists of weights and {what}")));
    }
    let of_weights: Vec<&Layer> =
        manifest.layers.iter().filter(|layer| layer.media_type == MODEL_LAYER).collect();
    let [layer] = of_weights[..] else {
        return Err(wrong(format!("its manifest names {} files of weights, expected 1", of_weights.len())));
    };
    let hex = layer.digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    let hex = hex.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let hex = hex.ok_or_else(|| wrong(format!("its manifest names a blob `{}`", layer.digest)))?;
    let blob = models.join("blobs").join(format!("sha256-{hex}"));
    match std::fs::metadata(&blob) {
        Ok(found) if found.len() == layer.size => Ok(blob),
        Ok(found) => {
            let (path, actual, size) = (blob.display(), found.len(), layer.size);
            Err(wrong(format!("{path} has {actual} bytes, its manifest says {size}: pull it again")))
        }
        Err(_) => Err(wrong(format!("{} is missing: pull it again", blob.display()))),
    }
}

/// Host, namespace, model, tag; `None` when a part could be anything but a name.
fn name_parts(name: &str) -> Option<[String; 4]> {
    let (path, tag) = match name.rsplit_once(':') {
        // A colon before a slash is that of a port.
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, TAG),
    };
    let parts: Vec<&str> = path.split('/').collect();
    let (host, namespace, model) = match parts[..] {
        [model] => (HOST, NAMESPACE, model),
        [namespace, model] => (HOST, namespace, model),
        [host, namespace, model] => (host, namespace, model),
        _ => return None,
    };
    let are_names = [namespace, model, tag].iter().all(|part| is_part(part, "_-."));
    (are_names && is_part(host, "_-.:")).then(|| [host, namespace, model, tag].map(str::to_owned))
}

/// Letters, digits and some `further` characters, none of these first: no part can lead out of the folder.
fn is_part(part: &str, further: &str) -> bool {
    let starts_well = part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_');
    starts_well && part.len() <= 350 && part.chars().all(|c| c.is_ascii_alphanumeric() || further.contains(c))
}

/// The models of the default host and namespace, for a message.
fn listed(models: &Path) -> String {
    let folder = models.join("manifests").join(HOST).join(NAMESPACE);
    let names = |path: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let tags = |model: &String| {
        names(&folder.join(model)).into_iter().map(|tag| format!("{model}:{tag}")).collect::<Vec<_>>()
    };
    let all: Vec<String> = names(&folder).iter().flat_map(tags).take(12).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with one model, of which a test may break a part.
    fn models(manifest: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let tags = dir.path().join("manifests/registry.ollama.ai/library/qwen3");
        std::fs::create_dir_all(&tags).unwrap();
        std::fs::write(tags.join("4b"), manifest).unwrap();
        std::fs::create_dir(dir.path().join("blobs")).unwrap();
        std::fs::write(dir.path().join(format!("blobs/sha256-{}", "a".repeat(64))), b"GGUF").unwrap();
        dir
    }

    fn manifest(digest: &str, size: u64, further: &str) -> String {
        format!(
            r#"{{"schemaVersion": 2, "layers": [
                {{"mediaType": "application/vnd.ollama.image.model", "digest": "{digest}", "size": {size}}},
                {{"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:0", "size": 1}}{further}]}}"#
        )
    }

    fn check(manifest: &str, name: &str, expected: &str) {
        let dir = models(manifest);
        let error = model_file(dir.path(), name).unwrap_err().to_string();
        let error = error.replace(&dir.path().display().to_string(), "DIR");
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_model_is_found_by_short_and_full_name() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let dir = models(&manifest(&digest, 4, ""));
        for name in ["qwen3:4b", "library/qwen3:4b", "registry.ollama.ai/library/qwen3:4b"] {
            let blob = model_file(dir.path(), name).unwrap();
            assert_eq!(std::fs::read(blob).unwrap(), b"GGUF");
        }
    }

    #[test]
    fn what_cannot_be_a_base_is_refused_with_the_reason() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let good = manifest(&digest, 4, "");
        check(&good, "qwen3", "there is no such model; there are qwen3:4b");
        for name in ["", "../x", "a/b/c/d", "qwen3:../4b", "a//b", "-x"] {
            check(&good, name, "this is no name of a model");
        }
        check(&manifest(&digest, 5, ""), "qwen3:4b", "has 4 bytes, its manifest says 5: pull it again");
        let missing = format!("sha256:{}", "b".repeat(64));
        check(&manifest(&missing, 4, ""), "qwen3:4b", "is missing: pull it again");
        check(&manifest("sha256:../../x", 4, ""), "qwen3:4b", "names a blob `sha256:../../x`");
        let projector =
            r#", {"mediaType": "application/vnd.ollama.image.projector", "digest": "sha256:0", "size": 1}"#;
        check(&manifest(&digest, 4, projector), "qwen3:4b", "weights and a projector for images");
        check("{\"layers\": []}", "qwen3:4b", "names 0 files of weights, expected 1");
        check("{", "qwen3:4b", "DIR/manifests/registry.ollama.ai/library/qwen3/4b");
    }
}
