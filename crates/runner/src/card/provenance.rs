//! Where a model file comes from: hashes of what it was made of, as the receipt beside it tells.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Hashes of what an expert was made from, taken from the export's receipt beside the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// The receipt's path.
    pub receipt: PathBuf,
    /// Base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_blake3: Option<String>,
    /// Adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_blake3: Option<String>,
    /// Recipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe_blake3: Option<String>,
}

/// Reads `receipt.json` beside a model file, as an export leaves it; a model without one has no provenance.
pub(super) fn provenance(file: &Path) -> Result<Option<Provenance>> {
    let receipt = file.with_file_name("receipt.json");
    let bytes = match std::fs::read(&receipt) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(receipt)(error)),
    };
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return Ok(None) };
    let text = |pointer: &str| value.pointer(pointer).and_then(|value| value.as_str()).map(str::to_owned);
    // A receipt beside several files speaks of one of them.
    if text("/file").as_deref() != file.file_name().and_then(|name| name.to_str()) {
        return Ok(None);
    }
    Ok(Some(Provenance {
        base_blake3: text("/sources/base_blake3"),
        adapter_blake3: text("/sources/adapter_blake3"),
        recipe_blake3: text("/provenance/recipe_blake3"),
        receipt,
    }))
}
