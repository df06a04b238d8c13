//! Reading a GGUF file through a memory map.
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Metadata, TensorInfo};
use crate::{Result, TensorSource};

/// An open GGUF file.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

impl Reader {
    /// Opens a file and checks its header, metadata and tensor directory.
    ///
    /// # Errors
    /// A variant of [`crate::Error`] for each way in which the file can be wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let _ = path;
        todo!()
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its keys and values.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its tensors, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor with this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The stored bytes of a tensor of this file.
    #[must_use]
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let _ = tensor;
        todo!()
    }
}

impl TensorSource for Reader {
    fn tensor_names(&self) -> Vec<String> {
        todo!()
    }

    fn shape(&self, _name: &str) -> Option<Vec<usize>> {
        todo!()
    }

    fn read_rows(&self, _name: &str, _rows: Range<usize>, _out: &mut Vec<f32>) -> Result<()> {
        todo!()
    }

    fn content_hash(&self) -> Result<String> {
        todo!()
    }

    fn label(&self) -> PathBuf {
        self.path.clone()
    }
}
