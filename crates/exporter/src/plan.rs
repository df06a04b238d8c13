//! Everything about one file that is settled before its first byte is written.

use std::path::PathBuf;

use formats::gguf::{Metadata, Planned, file_bytes};
use formats::{BlockType, block};
use model::family::Naming;
use model::policy;

use crate::importance::Importance;
use crate::merged::{Content, Merged, Tensor};
use crate::metadata::metadata;
use crate::types::types;
use crate::{Error, Request, Result, Sources, TypeCount};

/// What is to be written.
pub(crate) struct Plan<'a> {
    /// Where the file is to stand.
    pub(crate) file: PathBuf,
    /// What it is made from.
    pub(crate) merged: &'a Merged,
    /// In the order of the file.
    pub(crate) tensors: Vec<PlannedTensor<'a>>,
    pub(crate) metadata: Metadata,
    pub(crate) file_bytes: u64,
    pub(crate) sources: Sources,
}

/// A tensor of the file.
pub(crate) struct PlannedTensor<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) ty: BlockType,
    /// Of its columns (stacked matrices, cols), flat.
    importance: Option<&'a [f32]>,
    /// Blocks of the base that are taken as they are.
    pub(crate) stored: Option<&'a [u8]>,
}

/// The types of the tensors of a file, before anything large is done for it.
pub(crate) fn planned_types(request: &Request, merged: &Merged) -> Result<Vec<BlockType>> {
    let specs: Vec<_> = merged.tensors.iter().filter_map(Tensor::spec).cloned().collect();
    let mut types = types(request, &merged.base.config, &specs)?.into_iter();
    let of = |tensor: &Tensor| match tensor.content {
        Content::Weight { .. } => types.next().expect("each has one"),
        Content::Computed(_) => BlockType::F32,
    };
    Ok(merged.tensors.iter().map(of).collect())
}

/// Bytes of tensors of these types, padding not counted.
pub(crate) fn tensor_bytes(tensors: &[Tensor], types: &[BlockType]) -> Result<u64> {
    let bytes =
        |(tensor, ty): (&Tensor, &BlockType)| Ok(tensor.rows as u64 * ty.row_bytes(tensor.cols)? as u64);
    tensors.iter().zip(types).map(bytes).sum()
}

impl<'a> Plan<'a> {
    /// Gives each tensor its type and the importance of its columns; what needs that must have it.
    pub(crate) fn new(
        request: &Request,
        merged: &'a Merged,
        types: &[BlockType],
        importance: Option<&'a Importance>,
    ) -> Result<Plan<'a>> {
        let mut tensors = Vec::with_capacity(types.len());
        for (tensor, &ty) in merged.tensors.iter().zip(types) {
            let share = importance.and_then(|importance| importance.share(&tensor.name));
            if share.is_none() && tensor.spec().is_some_and(|spec| policy::tensor_needs_matrix(ty, spec)) {
                return Err(Error::Unimportant { tensor: tensor.name.clone(), type_name: ty.name() });
            }
            let is_weight = tensor.spec().is_some() && !tensor.is_changed();
            let stored = if is_weight { merged.base.stored(&tensor.name, ty) } else { None };
            tensors.push(PlannedTensor { tensor, ty, importance: share, stored });
        }
        let mut sources = merged.sources.clone();
        if let Some(importance) = importance {
            sources.imatrix = Some(importance.path().to_owned());
            sources.imatrix_blake3 = Some(importance.blake3().to_owned());
        }
        let keys = importance.map(Importance::metadata).unwrap_or_default();
        let metadata = metadata(request, merged, keys);
        let entries: Vec<Planned> = tensors.iter().map(PlannedTensor::entry).collect();
        let file_bytes = file_bytes(&metadata, &entries)?;
        let file = request.output.join(request.file_name());
        Ok(Plan { file, merged, tensors, metadata, file_bytes, sources })
    }

    pub(crate) fn entries(&self) -> Vec<Planned> {
        self.tensors.iter().map(PlannedTensor::entry).collect()
    }

    /// Mean bits of a parameter.
    pub(crate) fn bits_per_weight(&self) -> Result<f64> {
        let types: Vec<BlockType> = self.tensors.iter().map(|tensor| tensor.ty).collect();
        let bytes = tensor_bytes(&self.merged.tensors, &types)?;
        Ok(8.0 * bytes as f64 / self.merged.n_parameters() as f64)
    }

    /// Tensors and bytes of each type that occurs.
    pub(crate) fn type_counts(&self) -> Result<Vec<TypeCount>> {
        let mut counts: Vec<TypeCount> = Vec::new();
        for ty in BlockType::ALL {
            let of_type: Vec<_> = self.tensors.iter().filter(|tensor| tensor.ty == ty).collect();
            let bytes = of_type.iter().map(|planned| Ok((planned.tensor.rows * planned.row_bytes()?) as u64));
            let bytes = bytes.sum::<Result<u64>>()?;
            if !of_type.is_empty() {
                counts.push(TypeCount { type_name: ty.name().to_owned(), n_tensors: of_type.len(), bytes });
            }
        }
        Ok(counts)
    }
}

impl PlannedTensor<'_> {
    pub(crate) fn row_bytes(&self) -> Result<usize> {
        Ok(self.ty.row_bytes(self.tensor.cols)?)
    }

    pub(crate) fn has_importance(&self) -> bool {
        self.ty.block_len() > 1 && self.importance.is_some()
    }

    /// The row of a checkpoint that stands at a row of the file.
    pub(crate) fn source_row(&self, row: usize) -> usize {
        self.tensor.spec().map_or(row, |spec| spec.hf_row(row))
    }

    /// Encodes consecutive rows in the order of the base, each by the importance of its own matrix.
    pub(crate) fn encode(&self, first_row: usize, weights: &[f32], blocks: &mut [u8]) -> Result<()> {
        let (cols, row_bytes) = (self.tensor.cols, self.row_bytes()?);
        let Some(importance) = self.importance else {
            return Ok(block::encode(self.ty, weights, cols, None, blocks)?);
        };
        let matrix_rows = self.tensor.rows * cols / importance.len();
        let (mut row, end) = (first_row, first_row + weights.len() / cols);
        while row < end {
            let matrix = row / matrix_rows;
            let next = ((matrix + 1) * matrix_rows).min(end);
            let rows = row - first_row..next - first_row;
            block::encode(
                self.ty,
                &weights[rows.start * cols..rows.end * cols],
                cols,
                Some(&importance[matrix * cols..(matrix + 1) * cols]),
                &mut blocks[rows.start * row_bytes..rows.end * row_bytes],
            )?;
            row = next;
        }
        Ok(())
    }

    /// Name, shape in ggml's order, type.
    pub(crate) fn entry(&self) -> Planned {
        let shape = match self.tensor.spec() {
            Some(spec) => spec.shape(Naming::Gguf),
            None => vec![self.tensor.cols],
        };
        (self.tensor.name.clone(), shape.iter().rev().map(|&n| n as u64).collect(), self.ty)
    }
}
