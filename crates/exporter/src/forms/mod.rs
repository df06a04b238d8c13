//! Other forms of a result than one quantised GGUF: the adapter alone, and a merged checkpoint of Hugging Face's layout.

mod checkpoint;
mod lora_gguf;

pub use checkpoint::export_checkpoint;
pub use lora_gguf::export_adapter;

use std::path::{Path, PathBuf};

use formats::hash;
use serde::{Deserialize, Serialize};

use crate::adapter::{self, Adapter};
use crate::base::Base;
use crate::checks::check_name;
use crate::{AdapterSource, Provenance, Result};

/// An adapter and its base, to be written in another form.
#[derive(Clone, Debug)]
pub struct FormRequest {
    /// The base: a directory in Hugging Face layout, or, for an adapter alone, a GGUF.
    pub base: PathBuf,
    /// The adapters, which become one.
    pub adapters: Vec<AdapterSource>,
    /// The directory that receives the result; made when missing.
    pub output: PathBuf,
    /// The name of the expert.
    pub name: String,
    /// Where base, data and recipe come from.
    pub provenance: Provenance,
}

/// The record of what was written, kept beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormReceipt {
    /// `adapter` or `merged-hf`.
    pub form: String,
    /// The expert's name.
    pub name: String,
    /// The file, or the directory.
    pub path: PathBuf,
    /// What was written.
    pub files: Vec<WrittenFile>,
    /// Hash of the base's weights.
    pub base_blake3: String,
    /// Hash of the adapter's weights.
    pub adapter_blake3: String,
    /// Whether the adapter records the base it was trained on, and it is this one.
    pub base_checked: bool,
    /// The version of this program.
    pub tune_version: String,
}

/// A file of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its BLAKE3.
    pub blake3: String,
}

/// Base and adapter, opened and found to fit.
struct Inputs {
    base: Base,
    adapter: Adapter,
}

impl Inputs {
    fn open(request: &FormRequest) -> Result<Inputs> {
        check_name(&request.name)?;
        let base = Base::open(&request.base)?;
        let adapter = adapter::read(&request.adapters, &base.config)?;
        base.read_through()?;
        adapter.check_base(&base)?;
        Ok(Inputs { base, adapter })
    }

    fn receipt(
        &self,
        request: &FormRequest,
        form: &str,
        path: &Path,
        names: &[String],
    ) -> Result<FormReceipt> {
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
        let written = |name: &String| {
            let file = dir.join(name);
            let bytes = std::fs::metadata(&file).map(|metadata| metadata.len()).unwrap_or_default();
            Ok(WrittenFile { name: name.clone(), bytes, blake3: hash::blake3_file(&file)? })
        };
        Ok(FormReceipt {
            form: form.to_owned(),
            name: request.name.clone(),
            path: path.to_owned(),
            files: names.iter().map(written).collect::<Result<_>>()?,
            base_blake3: self.base.source().content_hash()?,
            adapter_blake3: self.adapter.blake3().unwrap_or_default(),
            base_checked: self.adapter.names_base().unwrap_or(false),
            tune_version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}
