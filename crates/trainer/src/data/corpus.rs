//! The rows of one or more data files as token ids, with the place each came from.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use text::Encoded;

use super::encoder::{Fate, RowEncoder, has_target};
use super::reader::{Place, RowReader, read_again};
use super::row::Row;
use crate::error::{Error, Result};

/// Rows that are parsed and encoded together, on all processors.
const CHUNK_ROWS: usize = 512;

/// Token ids and masks of all rows, one after another.
///
/// A row ends at its last target, since nothing after that is ever learned from.
#[derive(Debug, Default)]
pub struct Corpus {
    files: Vec<PathBuf>,
    ids: Vec<u32>,
    is_target: Vec<bool>,
    starts: Vec<usize>,
    places: Vec<(u32, Place)>,
    /// BLAKE3 of the files' hashes.
    pub blake3: String,
    /// What the files hold: `messages` or `text`.
    pub kind: &'static str,
    /// Rows left out for their length.
    pub dropped_rows: usize,
    /// Rows cut for their length.
    pub truncated_rows: usize,
    /// Whether some row has the end-of-turn token among its targets.
    pub has_end_of_turn: bool,
}

impl Corpus {
    /// Reads, parses and encodes all rows of the files, in order.
    ///
    /// # Errors
    /// [`Error::NoRows`] for an empty file or when no row was short enough; whatever is wrong with a row.
    pub fn read(files: &[PathBuf], encoder: &RowEncoder<'_>, end_of_turn: Option<u32>) -> Result<Self> {
        let mut corpus = Self { files: files.to_vec(), starts: vec![0], ..Self::default() };
        let mut hashes = String::new();
        for (index, path) in files.iter().enumerate() {
            corpus.read_file(index as u32, path, encoder, end_of_turn)?;
            hashes += &formats::hash::blake3_file(path)?;
        }
        corpus.blake3 = formats::hash::blake3_bytes(hashes.as_bytes());
        if corpus.n_rows() == 0 {
            let path = files.first().cloned().unwrap_or_default();
            let reason = format!("all {} rows are longer than `data.max_seq_len`", corpus.dropped_rows);
            return Err(Error::NoRows { path, reason });
        }
        Ok(corpus)
    }

    fn read_file(
        &mut self,
        file: u32,
        path: &Path,
        encoder: &RowEncoder<'_>,
        end_of_turn: Option<u32>,
    ) -> Result<()> {
        let mut reader = RowReader::open(path)?;
        let mut n_rows = 0;
        loop {
            let chunk = read_chunk(&mut reader)?;
            if chunk.is_empty() {
                break;
            }
            n_rows += chunk.len();
            let rows: Vec<_> =
                chunk.par_iter().map(|(place, bytes)| encode_row(path, *place, bytes, encoder)).collect();
            for ((place, _), row) in chunk.iter().zip(rows) {
                let (kind, fate) = row?;
                self.check_kind(kind, path, *place)?;
                let fate =
                    fate.map_err(|reason| Error::Row { path: path.into(), line: place.line, reason })?;
                self.push(file, path, *place, fate, encoder, end_of_turn)?;
            }
        }
        match n_rows {
            0 => Err(Error::NoRows { path: path.into(), reason: "the data file has no rows".into() }),
            _ => Ok(()),
        }
    }

    /// All rows are of one kind, so that nothing is guessed wrong silently.
    fn check_kind(&mut self, kind: &'static str, path: &Path, place: Place) -> Result<()> {
        if self.kind.is_empty() {
            self.kind = kind;
        }
        if self.kind == kind {
            return Ok(());
        }
        let reason = format!("the row has `{kind}`, the rows before it `{}`", self.kind);
        Err(Error::Row { path: path.into(), line: place.line, reason })
    }

    fn push(
        &mut self,
        file: u32,
        path: &Path,
        place: Place,
        fate: Fate,
        encoder: &RowEncoder<'_>,
        end_of_turn: Option<u32>,
    ) -> Result<()> {
        let encoded = match fate {
            Fate::Kept(encoded) => encoded,
            Fate::Truncated(encoded) => {
                self.truncated_rows += 1;
                encoded
            }
            Fate::Dropped => {
                self.dropped_rows += 1;
                return Ok(());
            }
            Fate::TooLong { tokens } => {
                let limit = encoder.max_seq_len();
                return Err(Error::RowTooLong { path: path.into(), line: place.line, tokens, limit });
            }
        };
        self.has_end_of_turn |= end_of_turn.is_some_and(|token| has_target(&encoded, token));
        self.push_ids(&encoded);
        self.places.push((file, place));
        Ok(())
    }

    fn push_ids(&mut self, encoded: &Encoded) {
        let end = encoded.is_target.iter().rposition(|&is_target| is_target).map_or(0, |last| last + 1);
        self.ids.extend_from_slice(&encoded.ids[..end]);
        self.is_target.extend_from_slice(&encoded.is_target[..end]);
        self.starts.push(self.ids.len());
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.places.len()
    }

    /// Token ids of a row, the last of which is a target.
    pub fn ids(&self, row: usize) -> &[u32] {
        &self.ids[self.starts[row]..self.starts[row + 1]]
    }

    /// Whether each token of a row is a target.
    pub fn is_target(&self, row: usize) -> &[bool] {
        &self.is_target[self.starts[row]..self.starts[row + 1]]
    }

    /// Tokens that a row puts into the model: all but the last, which is only predicted.
    pub fn n_inputs(&self, row: usize) -> usize {
        self.ids(row).len() - 1
    }

    /// Tokens of a row that are learned.
    pub fn n_targets(&self, row: usize) -> usize {
        // The first token of a row has nothing before it to be predicted from.
        self.is_target(row)[1..].iter().filter(|&&is_target| is_target).count()
    }

    /// Reads a row's text again.
    ///
    /// # Errors
    /// The file is gone, or has changed since it was read.
    pub fn row(&self, row: usize) -> Result<Row> {
        let (file, place) = self.places[row];
        let path = &self.files[file as usize];
        Row::parse(path, place, &read_again(path, place)?)
    }
}

fn read_chunk(reader: &mut RowReader) -> Result<Vec<(Place, Vec<u8>)>> {
    let mut chunk = Vec::new();
    while chunk.len() < CHUNK_ROWS {
        let Some((place, bytes)) = reader.next_row()? else { break };
        chunk.push((place, bytes.to_vec()));
    }
    Ok(chunk)
}

/// A row's kind, and what became of it or what is wrong with it.
type EncodedRow = (&'static str, std::result::Result<Fate, String>);

fn encode_row(path: &Path, place: Place, bytes: &[u8], encoder: &RowEncoder<'_>) -> Result<EncodedRow> {
    let row = Row::parse(path, place, bytes)?;
    Ok((row.kind(), encoder.encode(&row)))
}

#[cfg(test)]
impl Corpus {
    /// A corpus of made-up rows: token ids, and the index of the first target.
    pub fn of_rows(rows: &[(Vec<u32>, usize)]) -> Self {
        let mut corpus = Self { starts: vec![0], ..Self::default() };
        for (ids, first_target) in rows {
            let is_target = (0..ids.len()).map(|index| index >= *first_target).collect();
            corpus.push_ids(&Encoded { ids: ids.clone(), is_target });
            corpus.places.push((0, Place { line: 1, offset: 0, bytes: 0 }));
        }
        corpus
    }
}
