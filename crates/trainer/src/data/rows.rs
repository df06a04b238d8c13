//! Sequences of tokens as columns: in memory, or in the files of a folder that is mapped.

use std::path::Path;

use bytemuck::{Pod, Zeroable};
use formats::column::{Column, ColumnWriter};
use serde::{Deserialize, Serialize};

use super::encoder::Encoded;
use super::reader::Place;
use crate::error::{Error, Result};

/// Where an example stands: index of its file, and the place there.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Stand {
    line: u64,
    offset: u64,
    bytes: u32,
    file: u32,
}

/// Sequences one after another, each up to its last target, since nothing after that is ever learned from.
#[derive(Debug, Default)]
pub struct Rows {
    ids: Column<u32>,
    is_target: Column<u8>,
    /// Where each sequence begins, and where the last one ends.
    starts: Column<u64>,
    /// How much each token counts; empty where all targets of all sequences count alike.
    weights: Column<f32>,
    stands: Column<Stand>,
}

/// Rows that grow at their end.
#[derive(Debug)]
pub struct RowsWriter {
    ids: ColumnWriter<u32>,
    is_target: ColumnWriter<u8>,
    starts: ColumnWriter<u64>,
    weights: ColumnWriter<f32>,
    stands: ColumnWriter<Stand>,
    n_tokens: u64,
    has_weights: bool,
}

/// The files of a folder, one a column.
const IDS: &str = "ids";
const IS_TARGET: &str = "is_target";
const STARTS: &str = "starts";
const WEIGHTS: &str = "weights";
const STANDS: &str = "places";

/// BLAKE3 of each column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest([String; 5]);

impl RowsWriter {
    /// No rows, in memory or in new files of a folder.
    ///
    /// # Errors
    /// What making files meets.
    pub fn new(dir: Option<&Path>) -> Result<Self> {
        let path = |name: &str| dir.map(|dir| dir.join(name));
        let mut starts = ColumnWriter::new(path(STARTS))?;
        starts.extend(&[0])?;
        Ok(Self {
            ids: ColumnWriter::new(path(IDS))?,
            is_target: ColumnWriter::new(path(IS_TARGET))?,
            starts,
            weights: ColumnWriter::new(path(WEIGHTS))?,
            stands: ColumnWriter::new(path(STANDS))?,
            n_tokens: 0,
            has_weights: false,
        })
    }

    /// Appends the sequences of an example, which stands at a place of the file with that index.
    ///
    /// # Errors
    /// What writing meets.
    pub fn push(&mut self, file: u32, place: Place, sequences: &[Encoded]) -> Result<()> {
        for sequence in sequences {
            self.push_sequence(sequence)?;
        }
        let Place { line, offset, bytes } = place;
        self.stands.extend(&[Stand { line, offset, bytes, file }])?;
        Ok(())
    }

    fn push_sequence(&mut self, encoded: &Encoded) -> Result<()> {
        let end = encoded.is_target.iter().rposition(|&is_target| is_target).map_or(0, |last| last + 1);
        if !encoded.weights.is_empty() && !self.has_weights {
            self.has_weights = true;
            self.count_alike(self.n_tokens as usize)?;
        }
        match encoded.weights.get(..end) {
            Some(weights) => self.weights.extend(weights)?,
            None if self.has_weights => self.count_alike(end)?,
            None => {}
        }
        self.ids.extend(&encoded.ids[..end])?;
        self.is_target.extend(bytemuck::cast_slice(&encoded.is_target[..end]))?;
        self.n_tokens += end as u64;
        self.starts.extend(&[self.n_tokens])?;
        Ok(())
    }

    /// The weights of so many tokens that have none of their own.
    fn count_alike(&mut self, mut n: usize) -> Result<()> {
        const ONES: [f32; 1024] = [1.0; 1024];
        while n > 0 {
            let now = n.min(ONES.len());
            self.weights.extend(&ONES[..now])?;
            n -= now;
        }
        Ok(())
    }

    /// All rows.
    ///
    /// # Errors
    /// What writing and mapping meet.
    pub fn finish(self) -> Result<Rows> {
        Ok(Rows {
            ids: self.ids.finish()?,
            is_target: self.is_target.finish()?,
            starts: self.starts.finish()?,
            weights: self.weights.finish()?,
            stands: self.stands.finish()?,
        })
    }
}

impl Rows {
    /// Maps the rows of a folder, which must be those of a digest.
    ///
    /// # Errors
    /// A file that is missing or has changed.
    pub fn open(dir: &Path, digest: &Digest) -> Result<Self> {
        let rows = Self {
            ids: Column::open(&dir.join(IDS))?,
            is_target: Column::open(&dir.join(IS_TARGET))?,
            starts: Column::open(&dir.join(STARTS))?,
            weights: Column::open(&dir.join(WEIGHTS))?,
            stands: Column::open(&dir.join(STANDS))?,
        };
        if rows.digest() != *digest {
            let reason = std::io::Error::other("the kept rows are not the ones that were written");
            return Err(Error::Io { path: dir.into(), source: reason });
        }
        Ok(rows)
    }

    /// What they can be known by.
    pub fn digest(&self) -> Digest {
        let (ids, is_target, starts) = (self.ids.blake3(), self.is_target.blake3(), self.starts.blake3());
        Digest([ids, is_target, starts, self.weights.blake3(), self.stands.blake3()])
    }

    /// Number of examples.
    pub fn n_examples(&self) -> usize {
        self.stands.len()
    }

    /// Number of sequences.
    pub fn n_rows(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Index of the file that an example comes from, and its place there.
    pub fn place(&self, example: usize) -> (usize, Place) {
        let Stand { line, offset, bytes, file } = self.stands[example];
        (file as usize, Place { line, offset, bytes })
    }

    /// Token ids of a sequence, the last of which is a target.
    pub fn ids(&self, row: usize) -> &[u32] {
        &self.ids[self.range(row)]
    }

    /// Whether each token of a sequence is a target.
    pub fn is_target(&self, row: usize) -> &[bool] {
        bytemuck::checked::cast_slice(&self.is_target[self.range(row)])
    }

    /// How much each token of a sequence counts as a target; `None` where all of all sequences count alike.
    pub fn weights(&self, row: usize) -> Option<&[f32]> {
        self.weights.get(self.range(row)).filter(|weights| !weights.is_empty())
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        self.starts[row] as usize..self.starts[row + 1] as usize
    }
}
