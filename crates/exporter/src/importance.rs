//! The importance of a model's columns: read from a matrix, and shared out to the tensors that are quantised with it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use formats::gguf::Value;
use formats::hash;
use formats::imatrix::{Entry, ImportanceMatrix};
use model::family::TensorSpec;

use crate::merged::Tensor;
use crate::{Error, Result};

/// An importance matrix of which every entry belongs to a tensor.
pub(crate) struct Importance {
    path: PathBuf,
    blake3: String,
    /// What a file that was quantised with it records, as `llama-quantize` does.
    metadata: Vec<(String, Value)>,
    /// Of the columns of a tensor (stacked matrices, columns), flat.
    shares: HashMap<String, Vec<f32>>,
}

impl Importance {
    /// Reads a matrix and shares it out.
    ///
    /// # Errors
    /// [`Error::OtherMatrix`] for an entry that no tensor has, or of another width.
    pub(crate) fn read(path: &Path, tensors: &[Tensor]) -> Result<Importance> {
        let mut matrix = ImportanceMatrix::read(path)?;
        let metadata = metadata(path, &matrix);
        let of_another_model = |what| Error::OtherMatrix { path: path.to_owned(), what };
        let mut shares = HashMap::new();
        for spec in tensors.iter().filter_map(Tensor::spec) {
            if let Some(entry) = matrix.entries.remove(&spec.gguf) {
                shares.insert(spec.gguf.clone(), share(spec, &entry).map_err(of_another_model)?);
            }
        }
        match matrix.entries.keys().next() {
            None => {
                let (path, blake3) = (path.to_owned(), hash::blake3_file(path)?);
                Ok(Importance { path, blake3, metadata, shares })
            }
            Some(name) => Err(of_another_model(format!("there is no matrix `{name}`"))),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn blake3(&self) -> &str {
        &self.blake3
    }

    pub(crate) fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The importance of a tensor's columns; `None` where it was not measured.
    pub(crate) fn share(&self, tensor: &str) -> Option<&[f32]> {
        self.shares.get(tensor).map(Vec::as_slice)
    }
}

fn share(spec: &TensorSpec, entry: &Entry) -> Result<Vec<f32>, String> {
    let (expected, actual) = (spec.n_stacked() * spec.cols, entry.sums.len());
    if actual != expected {
        return Err(format!("`{}` has {expected} columns, its entry {actual} numbers", spec.gguf));
    }
    Ok(entry.means())
}

fn metadata(path: &Path, matrix: &ImportanceMatrix) -> Vec<(String, Value)> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let count = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let n_chunks = Some(matrix.n_chunks).filter(|&n| n > 0);
    let keys = [
        ("file", Some(Value::from(name))),
        ("dataset", matrix.datasets.first().cloned().map(Value::from)),
        ("entries_count", Some(count(matrix.entries.len()))),
        ("chunks_count", n_chunks.map(Value::U32)),
    ];
    keys.into_iter().filter_map(|(key, value)| Some((format!("quantize.imatrix.{key}"), value?))).collect()
}
