//! Material that lies outside the repository; tests say so and pass where it is absent.

#![allow(dead_code, reason = "each test uses a part")]

pub mod expected;
pub mod llama_cpp;
pub mod masks;

use std::path::{Path, PathBuf};

use formats::gguf::Reader;
use text::Tokenizer;

/// A file of the shared assets, or a printed line that there is none.
pub fn asset(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TUNE_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/assets"),
        |shared| PathBuf::from(shared).join("assets"),
    );
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: `{}` is not here", path.display());
    None
}

/// The folder of a published model.
pub fn model(name: &str) -> Option<PathBuf> {
    asset(&format!("models/{name}"))
}

/// The tokenizer of a published model.
pub fn model_tokenizer(name: &str) -> Option<Tokenizer> {
    Some(Tokenizer::from_dir(&model(name)?).unwrap())
}

/// The tokenizer of a folder, of a GGUF, or of a `tokenizer.model` without what stands beside it.
pub fn tokenizer(path: &Path) -> Tokenizer {
    if path.is_dir() {
        Tokenizer::from_dir(path).unwrap()
    } else if path.ends_with("tokenizer.model") {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(path, folder.path().join("tokenizer.model")).unwrap();
        Tokenizer::from_dir(folder.path()).unwrap()
    } else {
        Tokenizer::from_gguf(Reader::open(path).unwrap().metadata()).unwrap()
    }
}
