//! Where weights come from: named tensors that can be read as f32, a range of rows at a time.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Which names a source of a model's tensors uses, and with them which order of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// A checkpoint's: `model.layers.0.self_attn.q_proj.weight`.
    Hf,
    /// A GGUF's: `blk.0.attn_q.weight`.
    Gguf,
}

/// Named tensors, readable row by row so that no reader needs a whole tensor in memory.
///
/// A tensor of shape [d0, .., dn] has d0·..·d(n-1) rows of dn values; a 1-D tensor is one row, a scalar one row
/// of one value.
pub trait TensorSource: Sync {
    /// All tensor names, in a stable order.
    fn tensor_names(&self) -> Vec<String>;

    /// The shape of a tensor, outermost dimension first (PyTorch's order); `None` when there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Clears `out` and fills it with the rows `rows` of a tensor, widened to f32.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`], [`Error::Rows`] when the range is not inside the tensor, or what reading meets.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;

    /// Clears `out` and fills it with the whole tensor.
    ///
    /// # Errors
    /// As [`TensorSource::read_rows`].
    fn read(&self, name: &str, out: &mut Vec<f32>) -> Result<()> {
        let shape = self
            .shape(name)
            .ok_or_else(|| Error::NoSuchTensor { path: self.label(), tensor: name.to_owned() })?;
        self.read_rows(name, 0..rows_and_cols(&shape).0, out)
    }

    /// The BLAKE3 of the files behind this source, as hex; computed once, then cached.
    ///
    /// # Errors
    /// What reading the files meets.
    fn content_hash(&self) -> Result<String>;

    /// The names and the order of rows that it has.
    fn naming(&self) -> Naming {
        Naming::Hf
    }

    /// The path that errors and reports name for this source.
    fn label(&self) -> PathBuf {
        PathBuf::from("(memory)")
    }
}

/// Splits a shape into its rows and the length of a row.
#[must_use]
pub fn rows_and_cols(shape: &[usize]) -> (usize, usize) {
    match shape.split_last() {
        None => (1, 1),
        Some((&cols, outer)) => (outer.iter().product(), cols),
    }
}

/// Refuses a range of rows that is not inside a tensor.
pub(crate) fn check_rows(path: &Path, name: &str, rows: &Range<usize>, n_rows: usize) -> Result<()> {
    if rows.start <= rows.end && rows.end <= n_rows {
        return Ok(());
    }
    let (path, tensor) = (path.to_owned(), name.to_owned());
    Err(Error::Rows { path, tensor, begin: rows.start, end: rows.end, actual: n_rows })
}
