//! Host memory behind the CPU device: buffers drawn from the arena, blocks, and the one dense tile.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use formats::block::{self, BlockType};
use formats::map::Map;
use rayon::prelude::*;

use crate::Result;
use crate::arena::{Arena, Drawn};
use crate::device::{BlockMatrix, Buffer, DenseCopy, DenseCounter, View, ViewMut};

/// Elements of one type in host memory.
#[derive(Debug)]
pub struct HostBuffer<T> {
    data: Vec<T>,
    _drawn: Drawn,
}

impl<T: Copy + Default> HostBuffer<T> {
    pub(super) fn new(arena: &Arena, what: &str, len: usize) -> Result<Self> {
        let drawn = arena.draw(what, (len * size_of::<T>()) as u64)?;
        Ok(Self { data: vec![T::default(); len], _drawn: drawn })
    }
}

impl<T: Send + Sync> Buffer for HostBuffer<T> {
    fn len(&self) -> usize {
        self.data.len()
    }
}

pub(super) fn slice<'a, T>(view: View<'a, HostBuffer<T>>) -> &'a [T] {
    &view.buffer().data[view.range()]
}

pub(super) fn slice_mut<'a, T>(view: ViewMut<'a, HostBuffer<T>>) -> &'a mut [T] {
    let range = view.range();
    &mut view.into_buffer().data[range]
}

/// A frozen matrix as ggml blocks in host memory.
#[derive(Debug)]
pub struct HostBlocks {
    block_type: BlockType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    blocks: Blocks,
    /// `None` for blocks that pass.
    _drawn: Option<Drawn>,
}

/// Where blocks lie. Mapped ones that stay are drawn from the arena too: they are in memory while they are used.
#[derive(Debug)]
enum Blocks {
    Owned(Vec<u8>),
    Mapped(Arc<Map>, Range<usize>),
}

impl Blocks {
    fn bytes(&self) -> &[u8] {
        match self {
            Blocks::Owned(blocks) => blocks,
            Blocks::Mapped(map, range) => &map.bytes()[range.clone()],
        }
    }
}

impl HostBlocks {
    pub(super) fn new(arena: &Arena, what: &str, ty: BlockType, rows: usize, cols: usize) -> Result<Self> {
        let row_bytes = ty.row_bytes(cols)?;
        let drawn = arena.draw(what, (rows * row_bytes) as u64)?;
        let blocks = Blocks::Owned(vec![0; rows * row_bytes]);
        Ok(Self { block_type: ty, rows, cols, row_bytes, blocks, _drawn: Some(drawn) })
    }

    /// Takes blocks where they are mapped; the range must be as long as the shape says.
    pub(super) fn mapped(
        ty: BlockType,
        (rows, cols): (usize, usize),
        (map, range): (Arc<Map>, Range<usize>),
        drawn: Option<Drawn>,
    ) -> Result<Self> {
        let row_bytes = ty.row_bytes(cols)?;
        Ok(Self { block_type: ty, rows, cols, row_bytes, blocks: Blocks::Mapped(map, range), _drawn: drawn })
    }

    /// Some rows, for writing; `None` where the blocks are mapped and so are what they are.
    pub(super) fn rows_mut(&mut self, rows: Range<usize>) -> Option<&mut [u8]> {
        match &mut self.blocks {
            Blocks::Owned(blocks) => {
                Some(&mut blocks[rows.start * self.row_bytes..rows.end * self.row_bytes])
            }
            Blocks::Mapped(..) => None,
        }
    }

    /// Where blocks lie in a mapped file, for those that do.
    pub(super) fn place(&self) -> Option<(&Arc<Map>, Range<usize>)> {
        match &self.blocks {
            Blocks::Mapped(map, range) => Some((map, range.clone())),
            Blocks::Owned(_) => None,
        }
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Unpacks rows into `out` (|rows|, cols), counting nothing: the caller owns the count.
    pub(super) fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let blocks = &self.blocks.bytes()[rows.start * self.row_bytes..rows.end * self.row_bytes];
        // Row by row, since a row of NF4 begins with what its blocks share.
        let mut rows = blocks.chunks_exact(self.row_bytes).zip(out.chunks_exact_mut(self.cols));
        Ok(rows.try_for_each(|(blocks, out)| block::decode(self.block_type, blocks, out))?)
    }
}

/// What packed products ask for.
#[cfg(target_arch = "x86_64")]
impl HostBlocks {
    /// Unpacks some columns of a row, from the beginning of a block to the end of one.
    pub(super) fn decode_columns(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<()> {
        let row = &self.blocks.bytes()[row * self.row_bytes..][..self.row_bytes];
        Ok(block::decode_part(self.block_type, row, self.cols, columns, out)?)
    }

    /// Unpacks some columns of rows, rounded to bf16: see [`block::decode_rows_to_bf16`].
    pub(super) fn decode_to_bf16(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [u16],
    ) -> Result<()> {
        let rows = &self.blocks.bytes()[rows.start * self.row_bytes..rows.end * self.row_bytes];
        Ok(block::decode_rows_to_bf16(self.block_type, rows, self.cols, columns, out)?)
    }
}

impl BlockMatrix for HostBlocks {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn block_type(&self) -> BlockType {
        self.block_type
    }

    fn bytes(&self) -> u64 {
        self.blocks.bytes().len() as u64
    }
}

/// Floats of the one tile that base weights are unpacked into: 4 MiB.
///
/// A tile of few rows makes the product pack its other operand again and again: at 9728 columns, one thread, 1 MiB
/// (26 rows) gave 131 GFLOP/s and 4 MiB gave 214; 16 MiB gave no more.
pub const TILE_FLOATS: usize = 1024 * 1024;

/// The one place where base weights are dense: a tile that every linear op reuses.
#[derive(Debug)]
pub(super) struct DenseTile {
    tile: Mutex<Vec<f32>>,
    counter: DenseCounter,
    _drawn: Drawn,
}

impl DenseTile {
    pub(super) fn new(arena: &Arena) -> Result<Self> {
        let drawn = arena.draw("tile of dense weights", 4 * TILE_FLOATS as u64)?;
        Ok(Self { tile: Mutex::new(vec![0.0; TILE_FLOATS]), counter: DenseCounter::default(), _drawn: drawn })
    }

    pub(super) fn counter(&self) -> &DenseCounter {
        &self.counter
    }

    /// How many rows of `cols` columns the tile holds, in whole groups of 16 where it can.
    pub(super) fn rows(cols: usize) -> usize {
        let rows = (TILE_FLOATS / cols).max(1);
        if rows > 16 { rows - rows % 16 } else { rows }
    }

    /// Lends the first `len` floats of the tile to tasks that unpack rows into them; counted while lent.
    pub(super) fn lend(&self, len: usize) -> DenseRows<'_> {
        let tile = self.tile.lock().unwrap_or_else(PoisonError::into_inner);
        DenseRows { tile, len, _copy: self.counter.count(4 * len as u64) }
    }

    /// Unpacks rows into the tile; they are dense, and counted, until the result is dropped.
    pub(super) fn unpack(&self, weights: &HostBlocks, rows: Range<usize>) -> Result<DenseRows<'_>> {
        let cols = weights.cols;
        let mut tile = self.tile.lock().unwrap_or_else(PoisonError::into_inner);
        let len = rows.len() * cols;
        let copy = self.counter.count(4 * len as u64);
        let chunk = (UNPACK_FLOATS / cols).max(1);
        tile[..len].par_chunks_mut(chunk * cols).enumerate().try_for_each(|(i, out)| {
            let first = rows.start + i * chunk;
            weights.decode(first..first + out.len() / cols, out)
        })?;
        Ok(DenseRows { tile, len, _copy: copy })
    }
}

/// Floats that one task unpacks.
const UNPACK_FLOATS: usize = 16 * 1024;

/// Dense rows of a frozen matrix, for as long as this lives.
pub(super) struct DenseRows<'a> {
    tile: MutexGuard<'a, Vec<f32>>,
    len: usize,
    _copy: DenseCopy,
}

impl DenseRows<'_> {
    pub(super) fn floats(&self) -> &[f32] {
        &self.tile[..self.len]
    }

    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        &mut self.tile[..self.len]
    }
}
