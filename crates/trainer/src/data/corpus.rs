//! The rows of one or more data files as token ids, with the place each came from.

use std::collections::HashSet;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::encoder::{Encoded, Fate, RowEncoder};
use super::reader::{Place, RowReader, rows_again};
use super::row::Row;
use super::rows::{Rows, RowsWriter};
use crate::error::{Error, Result};
use crate::options::Source;

/// Rows that are parsed and encoded together, on all processors.
const CHUNK_ROWS: usize = 512;

/// How many of the rows that are left out for being wrong are named.
const NAMED_BAD_ROWS: usize = 5;

/// The sequences of some data files, and what became of the rows they were made of.
///
/// An example, which is what is split, shuffled and counted, is one sequence, or of preferences two: the better answer,
/// then the worse.
#[derive(Debug, Default)]
pub struct Corpus {
    sources: Vec<Source>,
    rows: Rows,
    /// What became of the rows.
    pub tally: Tally,
    /// What went wrong that is no reason to stop.
    pub warning: Option<String>,
}

/// What became of the rows of some files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// BLAKE3 of the files' hashes.
    pub blake3: String,
    /// What the files hold: `messages`, `text` or `preference`.
    pub kind: String,
    /// Rows left out for their length.
    pub dropped_rows: usize,
    /// Rows cut for their length.
    pub truncated_rows: usize,
    /// Rows left out because something was wrong with them.
    pub bad_rows: u64,
    /// What was wrong with the first of them.
    pub named_bad_rows: Vec<String>,
    /// Rows that say what a row before them says.
    pub duplicate_rows: usize,
    /// Whether some row has the end-of-turn token among its targets.
    pub has_end_of_turn: bool,
}

/// A corpus that is being read.
struct Reading<'a> {
    sources: &'a [Source],
    encoder: &'a RowEncoder<'a>,
    end_of_turn: Option<u32>,
    writer: RowsWriter,
    tally: Tally,
    n_examples: usize,
    seen: HashSet<u128>,
}

impl Corpus {
    /// Reads, parses and encodes all rows of the files, in order, into `writer`.
    ///
    /// # Errors
    /// [`Error::NoRows`] for an empty file or when no row was short enough; whatever is wrong with a row, when that is one
    /// more than the recipe lets pass.
    pub fn read(
        sources: &[Source],
        encoder: &RowEncoder<'_>,
        end_of_turn: Option<u32>,
        writer: RowsWriter,
    ) -> Result<Self> {
        Self::read_hashed(sources, blake3_of_all(sources)?.0, encoder, end_of_turn, writer)
    }

    /// The same of files that were hashed before, by [`blake3_of_all`].
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub fn read_hashed(
        sources: &[Source],
        blake3: String,
        encoder: &RowEncoder<'_>,
        end_of_turn: Option<u32>,
        writer: RowsWriter,
    ) -> Result<Self> {
        let (tally, seen) = (Tally::default(), HashSet::new());
        let mut reading = Reading { sources, encoder, end_of_turn, writer, tally, n_examples: 0, seen };
        for (index, source) in sources.iter().enumerate() {
            reading.read_file(index as u32, source)?;
        }
        reading.tally.blake3 = blake3;
        reading.check_any()?;
        let Reading { writer, tally, .. } = reading;
        Ok(Self { sources: sources.to_vec(), rows: writer.finish()?, tally, warning: None })
    }

    /// Rows that were read before.
    pub fn of_kept(sources: &[Source], rows: Rows, tally: Tally) -> Self {
        Self { sources: sources.to_vec(), rows, tally, warning: None }
    }

    /// The sequences.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// What the files hold: `messages`, `text` or `preference`.
    pub fn kind(&self) -> &str {
        &self.tally.kind
    }

    /// Number of examples.
    pub fn n_examples(&self) -> usize {
        self.rows.n_examples()
    }

    /// Number of sequences.
    pub fn n_rows(&self) -> usize {
        self.rows.n_rows()
    }

    /// Sequences of an example.
    pub fn rows_per_example(&self) -> usize {
        if self.kind() == "preference" { 2 } else { 1 }
    }

    /// The sequences of some examples, in order.
    pub fn rows_of(&self, examples: &[usize]) -> Vec<usize> {
        let n = self.rows_per_example();
        examples.iter().flat_map(|&example| n * example..n * (example + 1)).collect()
    }

    /// Index of the file that an example comes from.
    pub fn source_index(&self, example: usize) -> usize {
        self.rows.place(example).0
    }

    /// The files.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// File and line of an example.
    pub fn place(&self, example: usize) -> (&Source, u64) {
        let (file, place) = self.rows.place(example);
        (&self.sources[file], place.line)
    }

    /// Token ids of a sequence, the last of which is a target.
    pub fn ids(&self, row: usize) -> &[u32] {
        self.rows.ids(row)
    }

    /// Whether each token of a sequence is a target.
    pub fn is_target(&self, row: usize) -> &[bool] {
        self.rows.is_target(row)
    }

    /// How much each token of a sequence counts as a target; `None` where all count alike.
    pub fn weights(&self, row: usize) -> Option<&[f32]> {
        self.rows.weights(row)
    }

    /// Tokens that a sequence puts into the model: all but the last, which is only predicted.
    pub fn n_inputs(&self, row: usize) -> usize {
        self.ids(row).len() - 1
    }

    /// Tokens of a sequence that are learned.
    pub fn n_targets(&self, row: usize) -> usize {
        // The first token of a row has nothing before it to be predicted from.
        self.is_target(row)[1..].iter().filter(|&&is_target| is_target).count()
    }

    /// What the targets of a sequence count together: their number, where all count alike.
    pub fn target_weight(&self, row: usize) -> f64 {
        let Some(weights) = self.weights(row) else { return self.n_targets(row) as f64 };
        let counted = self.is_target(row)[1..].iter().zip(&weights[1..]);
        counted.filter(|(is_target, _)| **is_target).map(|(_, &weight)| f64::from(weight)).sum()
    }

    /// Reads the text of some examples again.
    ///
    /// # Errors
    /// The file is gone, or has changed since it was read.
    pub fn read_again(&self, examples: &[usize]) -> Result<Vec<Row>> {
        let bytes = self.bytes_again(examples)?;
        bytes.iter().map(|(source, place, bytes)| Row::parse(source, *place, bytes)).collect()
    }

    /// The bytes of some examples, and where each stands.
    ///
    /// # Errors
    /// As [`Corpus::read_again`].
    pub fn bytes_again(&self, examples: &[usize]) -> Result<Vec<(&Source, Place, Vec<u8>)>> {
        let mut rows = vec![None; examples.len()];
        let stands: Vec<(usize, Place)> = examples.iter().map(|&example| self.rows.place(example)).collect();
        for (file, source) in self.sources.iter().enumerate() {
            let here: Vec<usize> = (0..examples.len()).filter(|&at| stands[at].0 == file).collect();
            let places: Vec<Place> = here.iter().map(|&at| stands[at].1).collect();
            for ((at, place), bytes) in here.iter().zip(&places).zip(rows_again(&source.path, &places)?) {
                rows[*at] = Some((source, *place, bytes));
            }
        }
        Ok(rows.into_iter().flatten().collect())
    }
}

/// BLAKE3 of the hashes of all files, and these.
///
/// # Errors
/// What reading meets.
pub fn blake3_of_all(sources: &[Source]) -> Result<(String, Vec<String>)> {
    let hash = |source: &Source| {
        // What is wrong with a file is said as where its rows are read.
        drop(RowReader::open(&source.path)?);
        Ok(formats::hash::blake3_file(&source.path)?)
    };
    let hashes = sources.iter().map(hash).collect::<Result<Vec<String>>>()?;
    Ok((formats::hash::blake3_bytes(hashes.concat().as_bytes()), hashes))
}

impl Reading<'_> {
    fn read_file(&mut self, file: u32, source: &Source) -> Result<()> {
        let mut reader = RowReader::open(&source.path)?;
        let mut n_rows = 0;
        loop {
            let chunk = read_chunk(&mut reader)?;
            if chunk.is_empty() {
                break;
            }
            n_rows += chunk.len();
            let encoder = self.encoder;
            let rows: Vec<_> =
                chunk.par_iter().map(|(place, bytes)| encode_row(source, *place, bytes, encoder)).collect();
            for ((place, _), row) in chunk.iter().zip(rows) {
                let row = row.and_then(|(kind, fate)| self.check_kind(kind, source, *place).map(|()| fate));
                match row {
                    Ok(fate) => self.push((file, *place), fate)?,
                    Err(error) => self.skip(error)?,
                }
            }
        }
        match n_rows {
            0 => Err(Error::NoRows { path: source.path.clone(), reason: "the data file has no rows".into() }),
            _ => Ok(()),
        }
    }

    /// Leaves a broken row out, if the recipe lets one more pass.
    fn skip(&mut self, error: Error) -> Result<()> {
        let tally = &mut self.tally;
        if tally.bad_rows >= self.encoder.options().max_bad_rows {
            return Err(error);
        }
        tally.bad_rows += 1;
        if tally.named_bad_rows.len() < NAMED_BAD_ROWS {
            tally.named_bad_rows.push(error.to_string());
        }
        Ok(())
    }

    /// All rows are of one kind, so that nothing is guessed wrong silently.
    fn check_kind(&mut self, kind: &'static str, source: &Source, place: Place) -> Result<()> {
        let known = &mut self.tally.kind;
        if known.is_empty() {
            kind.clone_into(known);
        }
        if known == kind {
            return Ok(());
        }
        let reason = format!("the row is of kind `{kind}`, the rows before it are `{known}`");
        Err(Error::Row { path: source.path.clone(), line: place.line, reason })
    }

    fn push(&mut self, (file, place): (u32, Place), fate: Fate) -> Result<()> {
        let sequences = match fate {
            Fate::Kept(sequences) => sequences,
            Fate::Truncated(sequences) => {
                self.tally.truncated_rows += 1;
                sequences
            }
            Fate::Dropped => {
                self.tally.dropped_rows += 1;
                return Ok(());
            }
            Fate::TooLong { tokens } => {
                let path = self.sources[file as usize].path.clone();
                let limit = self.encoder.options().max_seq_len;
                return Err(Error::RowTooLong { path, line: place.line, tokens, limit });
            }
        };
        if !self.seen.insert(fingerprint(&sequences)) {
            self.tally.duplicate_rows += 1;
        }
        let teaches_end =
            self.end_of_turn.is_some_and(|token| sequences.iter().any(|sequence| sequence.teaches(token)));
        self.tally.has_end_of_turn |= teaches_end;
        self.n_examples += 1;
        self.writer.push(file, place, &sequences)
    }

    fn check_any(&self) -> Result<()> {
        if self.n_examples > 0 {
            return Ok(());
        }
        let path = self.sources.first().map(|source| source.path.clone()).unwrap_or_default();
        let dropped = self.tally.dropped_rows;
        let reason = match self.tally.bad_rows {
            0 => format!("all {dropped} rows are longer than `data.max_seq_len`"),
            bad => {
                format!("{dropped} rows are longer than `data.max_seq_len`, and the other {bad} are broken")
            }
        };
        Err(Error::NoRows { path, reason })
    }
}

/// Sequences that say the same have the same.
fn fingerprint(sequences: &[Encoded]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    for sequence in sequences {
        hasher.update(&(sequence.ids.len() as u64).to_le_bytes());
        for id in &sequence.ids {
            hasher.update(&id.to_le_bytes());
        }
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(bytes)
}

fn read_chunk(reader: &mut RowReader) -> Result<Vec<(Place, Vec<u8>)>> {
    let mut chunk = Vec::new();
    while chunk.len() < CHUNK_ROWS {
        let Some((place, bytes)) = reader.next_row()? else { break };
        chunk.push((place, bytes.to_vec()));
    }
    Ok(chunk)
}

/// A row's kind, and what became of it.
fn encode_row(
    source: &Source,
    place: Place,
    bytes: &[u8],
    encoder: &RowEncoder<'_>,
) -> Result<(&'static str, Fate)> {
    let row = Row::parse(source, place, bytes)?;
    let fate = encoder.encode(&row);
    let fate = fate.map_err(|reason| Error::Row { path: source.path.clone(), line: place.line, reason })?;
    Ok((row.kind(), fate))
}

#[cfg(test)]
impl Corpus {
    /// A corpus of made-up rows, one a line of a file: the index of the file, token ids, and the index of the first target.
    fn made_up(n_sources: usize, rows: &[(u32, Vec<u32>, usize)]) -> Self {
        let mut writer = RowsWriter::new(None).unwrap();
        for (file, ids, first_target) in rows {
            let is_target = (0..ids.len()).map(|index| index >= *first_target).collect();
            let encoded = Encoded { ids: ids.clone(), is_target, weights: Vec::new() };
            writer.push(*file, Place { line: 1, offset: 0, bytes: 0 }, &[encoded]).unwrap();
        }
        let sources = vec![Source::new("made up"); n_sources];
        Self { sources, rows: writer.finish().unwrap(), ..Self::default() }
    }

    /// A corpus of made-up rows: token ids, and the index of the first target.
    pub fn of_rows(rows: &[(Vec<u32>, usize)]) -> Self {
        let rows: Vec<_> = rows.iter().map(|(ids, first)| (0, ids.clone(), *first)).collect();
        Self::made_up(0, &rows)
    }

    /// A corpus of rows that differ, so many from each source.
    pub fn of_sources(n_rows: &[usize]) -> Self {
        let files = n_rows.iter().enumerate().flat_map(|(file, &n)| std::iter::repeat_n(file as u32, n));
        let rows: Vec<_> = files.enumerate().map(|(row, file)| (file, vec![row as u32; 4], 1)).collect();
        Self::made_up(n_rows.len(), &rows)
    }

    /// The files, to be weighed otherwise.
    pub fn sources_mut(&mut self) -> &mut [Source] {
        &mut self.sources
    }
}
