//! Rows that were tokenised once, kept on disk by the hash of what they were made from, and mapped the next time.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use formats::atomic::TempPath;
use formats::hash;
use serde::{Deserialize, Serialize};

use super::corpus::{Corpus, Tally, blake3_of_all};
use super::encoder::RowEncoder;
use super::rows::{Digest, Rows, RowsWriter};
use crate::base_cache::CacheOptions;
use crate::error::{Error, Result};
use crate::options::{DataOptions, Source};

/// How rows are read and laid out: another number for rows that an older program would not have made.
const LAYOUT_VERSION: u32 = 1;

/// Data sets that are kept; the one that was not used for longest goes first.
const MOST_KEPT: usize = 8;

const INDEX: &str = "index.json";

/// What stands beside the columns.
#[derive(Serialize, Deserialize)]
struct Index {
    key: String,
    digest: Digest,
    tally: Tally,
    /// BLAKE3 of the others.
    blake3: String,
}

impl Index {
    fn new(key: String, digest: Digest, tally: Tally) -> Self {
        let blake3 = hash::blake3_bytes(serde_json::json!([key, digest, tally]).to_string().as_bytes());
        Self { key, digest, tally, blake3 }
    }
}

/// The folder of kept rows.
pub struct RowCache<'a> {
    options: &'a CacheOptions,
    /// What ids follow from besides the data: tokenizer, template, date.
    text_blake3: &'a dyn Fn() -> Result<String>,
}

impl<'a> RowCache<'a> {
    /// The cache of these options, which may keep nothing; `text_blake3` hashes tokenizer and template.
    pub fn new(options: &'a CacheOptions, text_blake3: &'a dyn Fn() -> Result<String>) -> Self {
        Self { options, text_blake3 }
    }

    /// The rows of some files: mapped where they are kept, else read, and kept for the next time if they are many.
    ///
    /// # Errors
    /// As [`Corpus::read`]. What goes wrong with the cache alone is a warning of the corpus.
    pub fn read(
        &self,
        sources: &[Source],
        encoder: &RowEncoder<'_>,
        end_of_turn: Option<u32>,
    ) -> Result<Corpus> {
        let (blake3, hashes) = blake3_of_all(sources)?;
        let read = |writer| Corpus::read_hashed(sources, blake3.clone(), encoder, end_of_turn, writer);
        let in_memory = || read(RowsWriter::new(None)?);
        let Some(dir) = self.options.dir.as_deref().filter(|_| self.are_many(sources)) else {
            return in_memory();
        };
        let key = self.key(sources, &hashes, encoder.options())?;
        let path = dir.join("rows").join(hash::blake3_bytes(key.as_bytes()));
        if let Some(corpus) = mapped(&path, &key, sources) {
            return Ok(corpus);
        }
        let cannot = |error: Error| format!("the rows are not kept for the next start: {error}");
        match keep(&path, key, read) {
            // The disk's faults are no reason not to train.
            Err(error @ Error::Formats(_)) => {
                let mut corpus = in_memory()?;
                corpus.warning = Some(cannot(error));
                Ok(corpus)
            }
            other => other,
        }
    }

    fn are_many(&self, sources: &[Source]) -> bool {
        let bytes = |source: &Source| source.path.metadata().map_or(0, |metadata| metadata.len());
        sources.iter().map(bytes).sum::<u64>() >= self.options.least_data_bytes
    }

    /// Everything that the rows follow from.
    fn key(&self, sources: &[Source], hashes: &[String], options: &DataOptions) -> Result<String> {
        let mut key =
            format!("rows {LAYOUT_VERSION}, {}, text {}", env!("CARGO_PKG_VERSION"), (self.text_blake3)()?);
        let DataOptions { max_seq_len, on_too_long, train_on, max_bad_rows, .. } = options;
        key += &format!(", {max_seq_len}, {on_too_long:?}, {train_on:?}, {max_bad_rows}");
        for (Source { format, fields, .. }, hash) in sources.iter().zip(hashes) {
            key += &format!(", {format:?} {fields:?} {hash}");
        }
        Ok(key)
    }
}

fn keep(path: &Path, key: String, read: impl FnOnce(RowsWriter) -> Result<Corpus>) -> Result<Corpus> {
    let folder = TempPath::dir_beside(path)?;
    let corpus = read(RowsWriter::new(Some(folder.temp()))?)?;
    let index = Index::new(key, corpus.rows().digest(), corpus.tally.clone());
    let index = serde_json::to_vec(&index).unwrap_or_default();
    formats::atomic::write_bytes(&folder.temp().join(INDEX), &index)?;
    folder.commit()?;
    remove_oldest(path.parent().unwrap_or(Path::new(".")));
    Ok(corpus)
}

/// Kept rows; `None` when there are none, or damaged ones, which are then written anew.
fn mapped(path: &Path, key: &str, sources: &[Source]) -> Option<Corpus> {
    let index = path.join(INDEX);
    let found: Index = serde_json::from_slice(&std::fs::read(&index).ok()?).ok()?;
    let expected = Index::new(key.to_owned(), found.digest.clone(), found.tally.clone());
    let rows = Rows::open(path, &found.digest).ok().filter(|_| found.blake3 == expected.blake3)?;
    // When they were last used; a cache on a disk that cannot be written is of use all the same.
    let _ = std::fs::File::options()
        .write(true)
        .open(&index)
        .and_then(|file| file.set_modified(SystemTime::now()));
    Some(Corpus::of_kept(sources, rows, found.tally))
}

fn remove_oldest(dir: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let used = |path: PathBuf| {
        Some((path.join(INDEX).metadata().and_then(|metadata| metadata.modified()).ok()?, path))
    };
    let mut kept: Vec<_> = entries.filter_map(|entry| used(entry.path())).collect();
    kept.sort();
    for (_, path) in kept.iter().rev().skip(MOST_KEPT) {
        let _ = std::fs::remove_dir_all(path);
    }
}
