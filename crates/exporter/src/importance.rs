//! The importance of a model's columns: read from a matrix, and shared out to the tensors that are quantised with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use formats::gguf::Value;
use formats::hash;
use formats::imatrix::{Entry, ImportanceMatrix};
use model::family::TensorSpec;

use crate::{Error, Result};

/// An importance matrix, of which tensors take their parts.
pub(crate) struct Importance {
    path: PathBuf,
    blake3: String,
    /// What a file that was quantised with it records, as `llama-quantize` does.
    metadata: Vec<(String, Value)>,
    entries: BTreeMap<String, Entry>,
}

impl Importance {
    pub(crate) fn read(path: &Path) -> Result<Importance> {
        let matrix = ImportanceMatrix::read(path)?;
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let count = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
        let n_chunks = Some(matrix.n_chunks).filter(|&n| n > 0);
        let keys = [
            ("file", Some(Value::from(name))),
            ("dataset", matrix.datasets.first().cloned().map(Value::from)),
            ("entries_count", Some(count(matrix.entries.len()))),
            ("chunks_count", n_chunks.map(Value::U32)),
        ];
        let metadata = keys.into_iter();
        Ok(Importance {
            path: path.to_owned(),
            blake3: hash::blake3_file(path)?,
            metadata: metadata
                .filter_map(|(key, value)| Some((format!("quantize.imatrix.{key}"), value?)))
                .collect(),
            entries: matrix.entries,
        })
    }

    pub(crate) fn blake3(&self) -> &str {
        &self.blake3
    }

    pub(crate) fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The importance of a tensor's columns (stacked matrices, columns), flat; `None` where it was not measured.
    pub(crate) fn take(&mut self, spec: &TensorSpec) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.entries.remove(&spec.gguf) else { return Ok(None) };
        let (expected, actual) = (spec.n_stacked() * spec.cols, entry.sums.len());
        if actual != expected {
            let what = format!("`{}` has {expected} columns, its entry {actual} numbers", spec.gguf);
            return Err(self.of_another_model(what));
        }
        Ok(Some(entry.means()))
    }

    /// Every tensor has taken its part: what is left belongs to none.
    pub(crate) fn finish(&self) -> Result<()> {
        match self.entries.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.of_another_model(format!("there is no matrix `{name}`"))),
        }
    }

    fn of_another_model(&self, what: String) -> Error {
        Error::OtherMatrix { path: self.path.clone(), what }
    }
}
